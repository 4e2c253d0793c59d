"""auth-pam: what PAM's answers come to, and who is asked about in the first place."""

import os
import pwd
import sys

import pytest

import authkit
from mailsite import MAIL_USER
from pamkit import ANN, BOB, ENABLE, SECRET
from tpop3d.auth import isolation
from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Login

ACCOUNT = "account required pam_permit.so"


def says(verdict):
    return verdict.answer, verdict.reason


# Yes and no


def test_the_right_password_gives_the_account(pam):
    account = pam.ask().account
    assert account.name == ANN.encode()
    assert (account.uid, account.gid) == (MAIL_USER.pw_uid, MAIL_USER.pw_gid)


def test_who_is_refused_and_what_the_log_is_told(pam):
    assert says(pam.ask(password="wrong")) == (NO, "wrong password")
    assert says(pam.ask("nobody-knows")) == (NO, "unknown user")
    assert says(pam.ask(BOB)) == (NO, "PAM knows the user, and the system does not")
    assert says(pam.ask(BOB, "wrong")) == (NO, "unknown user")


@pytest.mark.parametrize("locked", ["!$6$x$y", "!", "*", "!!"])
def test_the_log_is_told_of_a_locked_account(pam, locked):
    """PAM's answer is the same, and who is let in is PAM's business."""
    pam.shadow.write_text(f"{ANN}:{locked}:19000:0:99999:7:::\n")
    assert says(pam.ask(password="wrong")) == (NO, "locked account")
    assert pam.ask().answer == YES


def test_who_is_not_in_shadow_is_not_locked_there(pam):
    pam.shadow.write_text("somebody:!::::::::\n")  # and the user is a directory's
    assert says(pam.ask(password="wrong")) == (NO, "wrong password")
    pam.shadow.unlink()
    assert says(pam.ask(password="wrong")) == (NO, "wrong password")


# Everything that pam_debug(8) can say, in the order of the codes.
CODES = {
    "success": (YES, ""),
    "open_err": (CANNOT_SAY, "PAM: Failed to load module (1)"),
    "symbol_err": (CANNOT_SAY, "PAM: Symbol not found (2)"),
    "service_err": (CANNOT_SAY, "PAM: Error in service module (3)"),
    "system_err": (CANNOT_SAY, "PAM: System error (4)"),
    "buf_err": (CANNOT_SAY, "PAM: Memory buffer error (5)"),
    "perm_denied": (NO, "PAM: Permission denied"),
    "auth_err": (NO, "wrong password"),
    "cred_insufficient": (CANNOT_SAY, "PAM: Insufficient credentials"),
    "authinfo_unavail": (CANNOT_SAY, "PAM: Authentication service cannot retrieve"),
    "user_unknown": (NO, "unknown user"),
    "maxtries": (NO, "PAM: Have exhausted maximum number of retries"),
    "new_authtok_reqd": (NO, "expired password"),
    "acct_expired": (NO, "expired account"),
    "session_err": (CANNOT_SAY, "PAM: Cannot make/remove an entry"),
    "cred_unavail": (CANNOT_SAY, "PAM: Authentication service cannot retrieve user"),
    "cred_expired": (NO, "PAM: User credentials expired"),
    "cred_err": (CANNOT_SAY, "PAM: Failure setting user credentials (17)"),
    "no_module_data": (CANNOT_SAY, "PAM: No module specific data is present (18)"),
    "conv_err": (CANNOT_SAY, "PAM: Conversation error (19)"),
    "authtok_err": (CANNOT_SAY, "PAM: Authentication token manipulation error (20)"),
    "authtok_recover_err": (CANNOT_SAY, "PAM: Authentication information cannot be recovered"),
    "authtok_lock_busy": (CANNOT_SAY, "PAM: Authentication token lock busy (22)"),
    "authtok_disable_aging": (CANNOT_SAY, "PAM: Authentication token aging disabled (23)"),
    "try_again": (CANNOT_SAY, "PAM: Failed preliminary check by password service (24)"),
    # Nobody else has anything to say here, and then libpam says no.
    "ignore": (NO, "PAM: Permission denied"),
    "abort": (CANNOT_SAY, "PAM: Critical error - immediate abort (26)"),
    "authtok_expired": (NO, "expired password"),
    "module_unknown": (CANNOT_SAY, "PAM: Module is unknown (28)"),
    "bad_item": (CANNOT_SAY, "PAM: Bad item passed to pam_*_item() (29)"),
    "conv_again": (CANNOT_SAY, "PAM: Conversation is waiting for event (30)"),
    "incomplete": (CANNOT_SAY, "PAM: Application needs to call libpam again (31)"),
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_pam(pam, code):
    assert len(CODES) == 32  # _PAM_RETURN_VALUES
    answer, reason = CODES[code]
    for lines in (
        (f"auth required pam_debug.so auth={code}", ACCOUNT),
        ("auth required pam_permit.so", f"account required pam_debug.so acct={code}"),
    ):
        pam.service(*lines)
        verdict = pam.ask()
        assert verdict.answer == answer
        if code == "auth_err" and lines[1] != ACCOUNT:
            reason = "refused account"  # after the right password
        assert verdict.reason.startswith(reason)
        assert (verdict.account is not None) == (answer == YES)


def test_of_an_account_that_is_refused_nobody_learns_without_the_password(pam):
    pam.service(pam.matrix()[0], "account required pam_debug.so acct=acct_expired")
    assert says(pam.ask()) == (NO, "expired account")
    assert says(pam.ask(password="wrong")) == (NO, "wrong password")


def test_the_log_is_told_of_an_expired_account_where_pam_says_no_more(pam):
    """Debian's services end in pam_deny(8)."""
    pam.service(pam.matrix()[0], "account required pam_deny.so")
    assert says(pam.ask()) == (NO, "refused account")
    pam.shadow.write_text(f"{ANN}:$6$x$y:19000:0:99999:7::0:\n")
    assert says(pam.ask()) == (NO, "expired account")
    assert says(pam.ask(password="wrong")) == (NO, "wrong password")


def test_only_the_account_line_decides_after_the_password(pam):
    """pam_matrix's own: the user is one of another service."""
    pam.add("daemon", SECRET, "imap")
    assert pam.ask("daemon").answer == NO


# Who is asked about


@pytest.mark.parametrize(
    "name",
    [b"", b"/", b"a/b", b"../" + ANN.encode(), b".", b".ann", b"ann\0", ANN.encode() + b"\0x",
     b"ann\n", b"ann\r", b"x" * 256, b"x" * 4096],
)  # fmt: skip
def test_pam_is_not_asked_about_what_is_no_plain_name(pam, name):
    pam.marking("auth required pam_permit.so", ACCOUNT)
    assert says(pam.ask(name)) == (NO, "not a plain user name")
    assert not pam.mark.exists()


@pytest.mark.parametrize("name", [b"x" * 255, b"ann\xff\xfe", b"gr\xc3\xbc\xc3\x9fe", b"-x", b"a"])
def test_pam_is_asked_about_any_other_name(pam, name):
    pam.marking("auth required pam_permit.so", ACCOUNT)
    assert says(pam.ask(name)) == (NO, "PAM knows the user, and the system does not")
    assert b"PAM_USER=" + name + b"\n" in pam.mark.read_bytes()


@pytest.mark.parametrize("name", ["root", "toor"])
def test_pam_is_not_asked_about_root_by_whatever_name(pam, monkeypatch, name):
    root = pwd.struct_passwd((name, "x", 0, 1, "", "/", ""))
    monkeypatch.setattr(pwd, "getpwnam", lambda asked: root)
    pam.marking("auth required pam_permit.so", ACCOUNT)
    assert says(pam.ask(name)) == (NO, "root has no mailbox here")
    assert not pam.mark.exists()


@pytest.mark.parametrize("password", [b"\0", b"open sesame\0", b"\0open sesame"])
def test_pam_is_not_asked_about_a_password_with_a_nul(pam, password):
    """It would be cut off there."""
    pam.marking(*pam.matrix())
    assert pam.ask(password=password).answer == NO
    assert not pam.mark.exists()


def test_apop_is_refused(pam):
    pam.marking("auth required pam_permit.so", ACCOUNT)
    driver = pam.driver()
    assert not driver.checks_apop
    apop = Login(ANN.encode(), timestamp=b"<x@y>", digest=b"0" * 32)
    assert isolation.ask(driver, apop, 5).answer == NO
    assert not pam.mark.exists()


def test_the_domain_is_part_of_the_name(pam):
    pam.marking("auth required pam_permit.so", ACCOUNT)
    login = authkit.login(ANN.encode(), b"example.org")
    assert isolation.ask(pam.driver(), login, 5).answer == NO
    assert f"PAM_USER={ANN}@example.org\n" in pam.mark.read_text()


# Where the client is


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "fe80::1%eth0"])
def test_pam_is_told_the_clients_address(pam, address):
    pam.marking(f"auth required pam_succeed_if.so quiet rhost = {address}", ACCOUNT)
    assert pam.ask(client=address).answer == YES
    assert f"\nPAM_RHOST={address}\n" in f"\n{pam.mark.read_text()}"
    assert pam.ask(client="192.0.2.99").answer == NO


@pytest.mark.parametrize("peer", ["unix", "pipe", "unknown"])
def test_pam_is_told_nothing_of_a_client_without_an_address(pam, peer):
    pam.marking(*pam.matrix())
    assert pam.decided(ANN, peer=peer) == (YES, "pam")
    assert "PAM_USER=" in pam.mark.read_text()
    assert "PAM_RHOST" not in pam.mark.read_text()
    pam.decided(ANN)
    assert "PAM_RHOST=192.0.2.1\n" in pam.mark.read_text()


# The configuration


def test_the_service_is_that_of_the_configuration(pam):
    pam.service("auth required pam_deny.so")
    pam.service("auth required pam_permit.so", ACCOUNT, name="imap")
    assert pam.ask().answer == NO
    for facility in ("imap", "IMAP"):  # libpam's names are in lower case
        assert pam.ask(auth_pam_facility=facility).answer == YES


@pytest.mark.parametrize("facility", ["a/b", "../pam.d/tpop3d", "/etc/passwd", ""])
def test_what_cannot_be_a_service_is_an_error(facility):
    pytest.importorskip("pam")
    errors = authkit.errors_of(
        authkit.text_of(authkit.LEAST | ENABLE | {"auth-pam-facility": facility})
    )
    assert "auth-pam-facility" in errors[0]


def test_a_service_without_a_file_is_a_warning(pam, monkeypatch):
    places = [str(pam.path / "etc"), str(pam.services)]
    monkeypatch.setattr("tpop3d.auth.pam.PLACES", places)
    assert pam.driver().warnings == pam.driver(auth_pam_facility="TPOP3D").warnings == []
    config = authkit.config_of(ENABLE, auth_pam_facility="imap")
    assert f"there is no {places[0]}/imap;" in config.warnings[0]
    assert config.warnings[0].startswith("test.conf:")


def test_python_pam_is_missed_when_the_configuration_is_read(monkeypatch):
    class Without:
        """What imports, except for that package."""

        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, *where):
            return None if name == "pam" else self.finder.find_spec(name, *where)

    monkeypatch.setattr(sys, "meta_path", [Without(finder) for finder in sys.meta_path])
    (error,) = authkit.errors_of(authkit.text_of(authkit.LEAST | ENABLE))
    assert "auth-pam-enable: needs the package python-pam" in error
    assert "pip install 'tpop3d[pam]'" in error


def test_where_the_spool_is(pam):
    assert pam.ask(mailbox="/all/$(user)").account.mailboxes == [f"/all/{ANN}"]
    account = pam.ask(mailbox="/all/$(user)", auth_pam_mailspool_dir="/dir/").account
    assert account.mailboxes == [f"/dir/{ANN}"]
    home = os.path.normpath(MAIL_USER.pw_dir)
    assert pam.ask(mailbox="$(home)/m").account.mailboxes == [f"{home}/m"]


def test_the_group_may_be_given(pam):
    account = pam.ask(auth_pam_mail_group="12345").account
    assert (account.gid, account.lock_gid) == (MAIL_USER.pw_gid, 12345)
    errors = authkit.errors_of(
        authkit.text_of(authkit.LEAST | ENABLE | {"auth-pam-mail-group": "no-such-group"})
    )
    assert "auth-pam-mail-group" in errors[0]
