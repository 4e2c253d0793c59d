"""`tpop3d --test-login`: the maildrop opens as in a session, or does not, for the same reasons."""

import os

import pytest

from authkit import converse, foreign_driver
from mailsite import ENVIRONMENT, IS_ROOT, MAIL_USER
from test_hazard_other_programs import dotlockfile
from test_recover import NEW, interrupted
from tpop3d.pop3 import replies
from trying import DRIVER, SPOOL, attempt

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")


@pytest.fixture
def anna(site):
    site.add("anna", SPOOL)
    return site


@as_root
def test_a_spool_of_somebody_elses(anna):
    os.chown(anna.spool("anna"), 2001, 2001)
    got = attempt(anna)
    assert got.status == 5
    assert "owned by uid 2001, not by the mailbox's user" in got.of("maildrop")[0]
    assert got.of("result") == ["the login succeeds, and the maildrop does not open"]


def test_a_state_directory_that_cannot_be_made(anna):
    anna.configure({"state-directory": anna.passwd / "state"})
    got = attempt(anna)
    assert got.status == 5
    assert got.of("maildrop")[0].startswith(f"refused: state directory {anna.passwd}/state/")
    assert "Not a directory" in got.of("maildrop")[0]


@as_root
@pytest.mark.parametrize("mine", ["0, 0", f"0, {MAIL_USER.pw_gid}", f"{MAIL_USER.pw_uid}, 0"])
def test_an_account_of_roots(anna, mine):
    code = f"return Verdict.yes(Account(b'anna', {mine}, ['/nonexistent']))"
    env = ENVIRONMENT | foreign_driver(anna.path, "odd", DRIVER.format(code, ""))
    anna.configure({"auth-flatfile-enable": "no", "auth-odd-enable": "yes"})
    got = attempt(anna, env=env)
    assert got.status == 5
    assert "uid 0 and gid 0 own no mailbox here" in got.of("maildrop")[0]
    # A session says the same, and neither has made anything for it.
    ended = converse(anna.conf, b"USER anna\r\nPASS secret\r\nQUIT\r\n", env=env)
    assert ended.lines[-1] == replies.MAILDROP_REFUSED.line
    assert [place.name for place in anna.state.iterdir()] == ["empty"]


def test_garbage_in_the_spool(anna):
    anna.spool("anna").write_bytes(b"garbage\n" + SPOOL)
    got = attempt(anna)
    assert got.status == 5
    assert "not an mbox, at offset 0 " in got.of("maildrop")[0]


def test_a_maildrop_without_a_spool_is_empty(anna):
    anna.spool("anna").unlink()
    got = attempt(anna)
    assert got.status == 0
    assert "missing, so it is empty" in got.of("mailbox")[0]
    assert got.of("maildrop")[0].startswith("opens: 0 messages, 0 octets")


def test_which_mailbox_is_chosen(anna):
    second = f"bsd:{anna.spools}/none {anna.spools}/$(user) {anna.passwd}"
    anna.configure({"auth-flatfile-mailbox": second})
    got = attempt(anna)
    ends = [line.partition(" ")[2] for line in got.of("mailbox")]
    assert ends == ["(missing)", "(chosen)", "(exists)"]


def test_a_session_has_the_maildrop(anna, inetd):
    inetd.login("anna")
    got = attempt(anna)
    assert got.status == 5
    assert "another POP3 session has the maildrop" in got.of("maildrop")[0]
    assert inetd.ask("STAT").startswith(b"+OK 2 ")


def test_a_dotlock_is_waited_for_no_longer_than_a_session_waits(anna):
    anna.configure({"lock-timeout-seconds": 1})
    lock = f"{anna.spool('anna')}.lock"
    assert dotlockfile(anna, "-l", "-p", lock) == 0
    got = attempt(anna)
    assert got.status == 5
    assert "spool still locked after 1 seconds" in got.of("maildrop")[0]
    assert os.path.exists(lock)
    assert dotlockfile(anna, "-u", lock) == 0


def test_a_crashed_removal_is_finished_as_by_a_session(site, monkeypatch):
    interrupted(site, "anna", monkeypatch)
    site.passwd.write_text("anna:{plaintext}secret\n")
    got = attempt(site)
    assert got.status == 0
    assert got.of("journal") == ["an expunge that was interrupted is done"]
    assert site.spool("anna").read_bytes() == NEW
