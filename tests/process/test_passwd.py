"""auth-passwd: the system's own users. As root, with a real user made for the tests."""

import os
import pwd
import secrets
import subprocess
from time import time

import pytest

import authkit
import pamkit
from mailsite import IS_ROOT, MAIL_USER, need
from tpop3d.auth import passwords
from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Login

PASSWORD = "open: sesame"
ENABLE = {"auth-passwd-enable": "yes"}

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can make users and read /etc/shadow")


def run(program, *arguments, **options):
    command = [need(program), *arguments]
    options = {"text": True} | options
    return subprocess.run(command, check=True, capture_output=True, **options).stdout


@pytest.fixture(scope="module")
def made():
    """The name of a user that exists for these tests only."""
    name = f"t-{secrets.token_hex(6)}"
    run("useradd", "--no-create-home", "--home-dir", "/nonexistent", name)
    try:
        yield name
    finally:
        run("userdel", name)


@pytest.fixture
def user(made):
    """The same user with its password, unlocked and not expired."""
    set_password(made, PASSWORD)
    run("chage", "-M", "-1", "-E", "-1", made)
    return made


def set_password(user, password):
    run("chpasswd", input=f"{user}:{password}\n")


def driver_of(**settings):
    return authkit.config_of(ENABLE, **settings).drivers["passwd"]


def verdict_of(name, password=PASSWORD, driver=None, **settings):
    driver = driver or driver_of(**settings)
    octets = password.encode() if isinstance(password, str) else password
    name = name.encode() if isinstance(name, str) else name
    return driver.authenticate(authkit.login(name, password=octets))


@as_root
def test_the_right_password_gives_the_account(user):
    account = verdict_of(user).account
    entry = pwd.getpwnam(user)
    assert account.name == user.encode()
    assert (account.uid, account.gid) == (entry.pw_uid, entry.pw_gid)


@as_root
@pytest.mark.parametrize("password", ["", "x", PASSWORD + " ", PASSWORD.upper(), b"\xff", b"a\0"])
def test_a_wrong_password_is_refused(user, password):
    verdict = verdict_of(user, password)
    assert (verdict.answer, verdict.account) == (NO, None)


@as_root
def test_the_stored_hash_is_no_password(user):
    stored = run("getent", "shadow", user).split(":")[1]
    assert stored.startswith("$")
    assert verdict_of(user, stored).answer == NO


@as_root
def test_a_password_of_8_bit_octets(user):
    run("chpasswd", input=f"{user}:".encode() + b"gr\xfc\xdfe\n", text=False)
    assert verdict_of(user, b"gr\xfc\xdfe").answer == YES
    assert verdict_of(user, b"gr\xfc\xdf").answer == NO


@as_root
@pytest.mark.parametrize("method", ["MD5", "SHA256", "SHA512", "YESCRYPT"])
def test_every_method_of_the_system(user, method):
    run("chpasswd", "-c", method, input=f"{user}:{PASSWORD}\n")
    assert verdict_of(user).answer == YES
    assert verdict_of(user, "wrong").answer == NO


@as_root
def test_a_locked_account_is_refused(user):
    run("usermod", "--lock", user)
    assert run("getent", "shadow", user).split(":")[1].startswith("!$")
    for password in (PASSWORD, "!", ""):
        assert verdict_of(user, password).answer == NO


@as_root
@pytest.mark.parametrize("hashed", ["*", "!", "!!", "*LK*", "x", "*0", "*1"])
def test_an_account_that_never_had_a_password_is_refused(user, hashed):
    run("usermod", "-p", hashed, user)
    for password in ("", hashed, "*0", "*1", "x"):
        assert verdict_of(user, password).answer == NO


@as_root
@pytest.mark.parametrize(("day", "answer"), [("0", NO), ("2000-01-01", NO), ("2999-01-01", YES)])
def test_an_account_counts_until_it_expires(user, day, answer):
    run("chage", "-E", day, user)
    assert verdict_of(user).answer == answer
    assert verdict_of(user, "wrong").answer == NO


@as_root
@pytest.mark.parametrize(("today", "answer"), [(19999, YES), (20000, NO), (20001, NO)])
def test_the_day_of_expiry_itself_is_too_late(user, monkeypatch, today, answer):
    run("chage", "-E", "20000", user)
    monkeypatch.setattr("tpop3d.auth.system_users.time", lambda: today * 86400 + 3600)
    assert verdict_of(user).answer == answer


# Fields 3 to 8 of shadow(5), -1 for an empty one, and the reason why the account is refused.
TODAY = int(time() // 86400)
AGES = {
    "nothing known": ([-1] * 6, ""),
    "useradd's": ([TODAY - 40, 0, 99999, 7, -1, -1], ""),
    "young enough": ([TODAY - 40, 0, 41, 7, -1, -1], ""),
    "to be warned": ([TODAY - 40, 0, 41, 30, 5, -1], ""),
    "on its last day": ([TODAY - 40, 0, 40, 7, 5, -1], ""),
    "must be changed since today": ([TODAY - 40, 0, 39, 7, 5, -1], "expired password"),
    "must be changed, for ever": ([TODAY - 40, 0, 30, 7, -1, -1], "expired password"),
    "must be changed, no more warned": ([TODAY - 40, 0, 30, -1, 10, -1], "expired password"),
    "inactive": ([TODAY - 40, 0, 30, 7, 9, -1], "expired password"),
    "inactive at once": ([TODAY - 40, 0, 30, 7, 0, -1], "expired password"),
    "to be set at the first login": ([0, 0, 99999, 7, -1, -1], "expired password"),
    "the same without a maximum": ([0, -1, -1, -1, -1, -1], "expired password"),
    "no maximum": ([TODAY - 40, 0, -1, 7, 0, -1], ""),
    "a maximum of 0": ([TODAY - 40, 0, 0, -1, -1, -1], "expired password"),
    "a maximum of 0, set today": ([TODAY, 0, 0, -1, -1, -1], ""),
    "too young to be changed": ([TODAY, 9, 30, -1, -1, -1], ""),
    "changed in the future": ([TODAY + 9, 0, 5, 7, 0, -1], ""),
    "expired": ([TODAY - 40, 0, 99999, 7, -1, TODAY - 1], "expired account"),
    "expires today": ([TODAY - 40, 0, 99999, 7, -1, TODAY], "expired account"),
    "expires tomorrow": ([TODAY - 40, 0, 99999, 7, -1, TODAY + 1], ""),
    "expired and inactive": ([TODAY - 40, 0, 30, 7, 0, 1], "expired account"),
    "expired, and has yet to be set": ([0, 0, 30, 7, 0, 1], "expired account"),
    "expired, changed in the future": ([TODAY + 9, 0, 5, 7, 0, 1], "expired account"),
    "not known when changed": ([-1, 0, 99999, 7, -1, -1], ""),
    "not known when changed, a maximum": ([-1, 0, 30, 7, 0, -1], "expired password"),
}


@pytest.fixture
def pam_unix(monkeypatch):
    """A driver of real pam_unix(8)."""
    with pamkit.site(monkeypatch) as site:
        monkeypatch.setattr("tpop3d.auth.system_users.SHADOW", "/etc/shadow")
        site.service("auth required pam_unix.so", "account required pam_unix.so")
        yield site


@as_root
@pytest.mark.parametrize("age", AGES)
def test_an_account_ages_as_shadow_and_pam_unix_have_it(user, pam_unix, age):
    """shadow(5), fields 3 to 8: who has to change the password, or may not do even that any more,
    is let in by nobody."""
    days, reason = AGES[age]
    run("chage", *(f"-{option}{day}" for option, day in zip("dmMWIE", days, strict=True)), user)
    verdict, theirs = verdict_of(user), pam_unix.ask(user, PASSWORD)
    assert (theirs.answer, theirs.reason) == (verdict.answer, verdict.reason)
    assert (verdict.answer, verdict.reason) == (NO if reason else YES, reason)
    wrong, theirs = verdict_of(user, "wrong"), pam_unix.ask(user, "wrong")
    assert (theirs.answer, theirs.reason) == (wrong.answer, wrong.reason)
    assert (wrong.answer, wrong.reason) == (NO, "wrong password")


@as_root
def test_root_is_refused_with_the_right_password(user, monkeypatch):
    """Root's own password stays as it is: the user becomes a second root for a moment."""
    entry = pwd.getpwnam(user)
    second_root = pwd.struct_passwd((*entry[:2], 0, *entry[3:]))
    driver = driver_of()
    monkeypatch.setattr(pwd, "getpwnam", lambda name: second_root)
    verdict = verdict_of(user, driver=driver)
    assert (verdict.answer, verdict.account) == (NO, None)
    assert "root" in verdict.reason
    monkeypatch.undo()
    assert verdict_of(user).answer == YES
    assert verdict_of("root", "anything").answer == NO


@as_root
@pytest.mark.parametrize("octets", [b"/%b", b"../%b", b".%b", b"%b/", b"%b\0", b"%b\n", b"%b:"])
def test_a_name_that_is_no_name_is_refused(user, octets):
    assert verdict_of(octets % user.encode()).answer == NO
    assert verdict_of(b"").answer == NO


@as_root
@pytest.mark.parametrize("name", ["no-such-user-here", b"\xff\xfe", b"x" * 200, b"x" * 5000])
def test_an_unknown_user_is_refused(user, name):
    for password in (PASSWORD, "", b"\xff"):
        assert verdict_of(name, password).answer == NO


@as_root
def test_the_domain_is_part_of_the_name(user):
    driver = driver_of()
    login = authkit.login(user.encode(), b"example.org", PASSWORD.encode())
    assert driver.authenticate(login).answer == NO


@as_root
def test_every_refusal_costs_one_crypt(user, monkeypatch):
    """Unknown, locked, or wrong: the time tells nobody which."""
    spent = []
    monkeypatch.setitem(
        passwords.SCHEMES, "crypt", lambda word, setting: spent.append(setting) or False
    )
    verdict_of(user, "wrong")
    verdict_of("no-such-user-here")
    run("usermod", "--lock", user)
    # Somebody must have a hash that the time can be spent on.
    other = f"t-{secrets.token_hex(6)}"
    run("useradd", "--no-create-home", "-p", "$6$saltstring$x", other)
    try:
        verdict_of(user)
    finally:
        run("userdel", other)
    assert len(spent) == 3
    assert all(setting.startswith(b"$") for setting in spent)


@as_root
def test_where_the_spool_is(user):
    assert verdict_of(user).account.mailboxes in (
        [f"/var/mail/{user}"],
        [f"/var/spool/mail/{user}"],
    )
    assert verdict_of(user, mailbox="/all/$(user)").account.mailboxes == [f"/all/{user}"]
    assert verdict_of(user, mailbox="$(home)/m").account.mailboxes == ["/nonexistent/m"]
    spool = verdict_of(user, mailbox="/all/$(user)", auth_passwd_mailspool_dir="/dir/").account
    assert spool.mailboxes == [f"/dir/{user}"]
    assert spool.required == ["/dir"]


@as_root
def test_the_group_may_be_given(user):
    account = verdict_of(user, auth_passwd_mail_group="12345").account
    assert (account.gid, account.lock_gid) == (pwd.getpwnam(user).pw_gid, 12345)


@as_root
def test_apop_is_refused(user):
    driver = driver_of()
    assert not driver.checks_apop
    apop = Login(user.encode(), timestamp=b"<x@y>", digest=b"0" * 32)
    assert driver.authenticate(apop).answer == NO


def test_without_the_right_to_read_shadow_nobody_can_say(tmp_path, monkeypatch):
    monkeypatch.setattr("tpop3d.auth.system_users.SHADOW", str(tmp_path / "missing"))
    assert verdict_of(MAIL_USER.pw_name).answer == CANNOT_SAY
    monkeypatch.undo()
    if not IS_ROOT and not os.access("/etc/shadow", os.R_OK):
        assert verdict_of(MAIL_USER.pw_name).answer == CANNOT_SAY


@as_root
def test_a_user_who_is_not_root_cannot_say():
    """The same, with the real file: run by the mailboxes' user."""
    driver = driver_of()
    pid = os.fork()
    if not pid:
        os.setgid(MAIL_USER.pw_gid)
        os.setuid(MAIL_USER.pw_uid)
        verdict = driver.authenticate(Login(b"nobody", password=b"x"))
        os._exit(0 if verdict.answer == CANNOT_SAY else 1)
    assert os.waitpid(pid, 0)[1] == 0
