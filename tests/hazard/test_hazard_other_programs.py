"""Mail programs on this machine use the spool, too, and locks are understood by all."""

import os
import subprocess
import sys
import time

import pytest

import doors
from clients import Client
from mailsite import CHECKOUT, IS_ROOT, need
from neighbours import run_as_mail_user
from protocol import run_server
from spools import mbox, messages_of, never_pause
from tpop3d.mailspool.locks import TRY, SpoolLocks

SPOOL = mbox(b"Subject: one\nStatus: O \n\n1\n", b"Subject: two\n\n2\n", b"Subject: three\n\n3\n")
CHANGED = b"-ERR [SYS/TEMP] maildrop was changed by another program, nothing deleted\r\n"
LOGIN = b"USER anna\r\nPASS secret\r\n"
MAILX = CHECKOUT / ".unpacked/bsd-mailx/usr/bin/bsd-mailx"


@pytest.fixture
def path(site):
    site.add("anna", SPOOL)
    return site.spool("anna")


# Programs that change what they did not deliver


def delete_with_mutt(site, path):
    client = Client(site, None)
    client.write(
        client.home / "muttrc",
        f"""
        set folder={client.mail} delete=yes quit=yes sleep_time=0
        push "<delete-pattern>~s three<enter><quit>"
        """,
    )
    client.run_on_terminal("mutt", "-n", "-F", "muttrc", "-f", str(path))
    assert b"three" not in path.read_bytes()


def delete_with_mail(site, path):
    """It needs a mail transport agent to be installed, so tests/run has it unpacked."""
    program = str(MAILX) if MAILX.exists() else need("bsd-mailx")
    client = Client(site, None)
    client.write(client.home / ".mailrc", "set hold\n")
    client.run(program, "-f", str(path), said=b"d 3\nq\n")
    assert b"three" not in path.read_bytes()


def rewrite_a_status(site, path):
    with path.open("r+b") as file:
        file.write(SPOOL.replace(b"Status: O ", b"Status: RO"))


def insert_a_status(site, path):
    with path.open("r+b") as file:
        file.write(SPOOL.replace(b"Subject: two\n", b"Subject: two\nStatus: RO\n"))


PROGRAMS = [delete_with_mutt, delete_with_mail, rewrite_a_status, insert_a_status]


@pytest.mark.parametrize("command", ["RETR 1", "QUIT"])
@pytest.mark.parametrize("change", PROGRAMS)
def test_a_program_that_changes_the_spool_ends_the_session(site, path, change, command):
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert wire.ask("DELE 2").startswith(b"+OK")
        change(site, path)
        left = path.read_bytes()
        assert left != SPOOL
        answer = wire.ask(command)
        assert answer == CHANGED or command == "QUIT"
        assert answer.startswith(b"-ERR [SYS/TEMP] ")
        assert wire.line() == b""
        wire.logs.wait_for(r"session .*user=anna .*dele=0 left=3 .*end=error")
    assert path.read_bytes() == left
    output, _ = run_server(site, [LOGIN + b"RETR 2\r\nQUIT\r\n"])
    assert b"Subject: two\r\n" in output


# Locks of liblockfile


def dotlockfile(site, *arguments):
    return run_as_mail_user(site, need("dotlockfile"), *arguments).returncode


def test_liblockfile_respects_our_dotlock_and_gets_it_afterwards(site, path):
    with path.open("r+b") as file:
        locks = SpoolLocks(file.fileno(), str(path), TRY)
        assert locks.acquire(0, never_pause) is None
        assert dotlockfile(site, "-l", "-p", "-r", "0", f"{path}.lock") != 0
        assert dotlockfile(site, "-l", "-r", "0", f"{path}.lock") != 0
        locks.release()
        assert dotlockfile(site, "-l", "-p", "-r", "0", f"{path}.lock") == 0


def test_a_session_respects_liblockfiles_dotlock_and_gets_it_afterwards(site, path):
    site.configure({"lock-timeout-seconds": 1})
    # It writes down the process that called it, which is this one.
    assert dotlockfile(site, "-l", "-p", f"{path}.lock") == 0
    output, _ = run_server(site, [LOGIN])
    assert output.splitlines()[-1].startswith(b"-ERR [IN-USE] ")
    assert int((path.parent / "anna.lock").read_text()) == os.getpid()
    assert dotlockfile(site, "-u", f"{path}.lock") == 0
    output, _ = run_server(site, [LOGIN])
    assert output.splitlines()[-1].startswith(b"+OK ")


def test_a_dead_process_dotlock_of_liblockfile_is_broken_when_it_is_old(site, path):
    """It may be in another container: that its process is not here says nothing."""
    site.configure({"lock-timeout-seconds": 1})
    lock = path.parent / "anna.lock"
    # The shell, which called it, dies.
    run_as_mail_user(site, "sh", "-c", f"{need('dotlockfile')} -l -p {lock}; true")
    output, _ = run_server(site, [LOGIN])
    assert output.splitlines()[-1].startswith(b"-ERR [IN-USE] ")
    os.utime(lock, (time.time() - 301,) * 2)
    output, log = run_server(site, [LOGIN + b"DELE 1\r\nQUIT\r\n"])
    assert output.splitlines()[-1].startswith(b"+OK ")
    assert b"lock" not in log
    assert not list(path.parent.glob("*.lock*"))


def leave_a_dotlock(site, path):
    """As a session that was killed."""
    code = (
        "import os, sys\n"
        "from tpop3d.mailspool.locks import TRY, SpoolLocks\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "refused = SpoolLocks(fd, sys.argv[1], TRY).acquire(0, lambda seconds: True)\n"
        "os._exit(0 if refused is None else 1)\n"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True, env=doors.ENVIRONMENT)
    lock = path.parent / "anna.lock"
    assert lock.exists()
    site.give_to_mail_user(lock)
    return lock


def test_a_dead_session_s_dotlock_is_broken_at_once_by_both(site, path):
    lock = leave_a_dotlock(site, path)
    assert dotlockfile(site, "-l", "-p", "-r", "0", lock) == 0
    lock.unlink()
    leave_a_dotlock(site, path)
    output, _ = run_server(site, [LOGIN + b"DELE 1\r\nQUIT\r\n"])
    assert output.splitlines()[-1].startswith(b"+OK ")
    assert not list(path.parent.glob("*.lock*"))


# mailspool-dotfile-locking


@pytest.fixture
def closed_directory(site, path):
    """A spool directory in which the mailbox's user can make no file."""
    if not IS_ROOT:
        pytest.skip("only root's directories are closed to the mailbox's user")
    os.chown(site.spools, 0, 0)
    site.spools.chmod(0o755)


REST = b"".join(messages_of(SPOOL)[1:])
DELETE = LOGIN + b"DELE 1\r\nQUIT\r\n"
MODES = {
    "default": {},
    "try": {"mailspool-dotfile-locking": "try"},
    "require": {"mailspool-dotfile-locking": "require"},
    "no": {"mailspool-dotfile-locking": "no"},
    "old no": {"mailspool-no-dotfile-locking": "yes"},
}


@pytest.mark.parametrize("mode", MODES)
def test_where_no_dotlock_can_be_made(site, path, closed_directory, mode):
    site.configure(MODES[mode])
    output, log = run_server(site, [DELETE])
    if mode == "require":
        assert output.splitlines()[-1].startswith(b"-ERR [SYS/TEMP] ")
        assert b"anna.lock cannot be made (Permission denied), and a dotlock is required" in log
        assert path.read_bytes() == SPOOL
        return
    assert output.splitlines()[-1].startswith(b"+OK ")
    assert path.read_bytes() == REST
    warned = b"anna.lock cannot be made (Permission denied); fcntl and flock have to do" in log
    assert warned == (mode in ("default", "try"))


@pytest.mark.parametrize("mode", ["default", "no", "old no"])
def test_without_dotlocks_those_of_others_are_nothing(site, path, mode):
    site.configure(MODES[mode] | {"lock-timeout-seconds": 1})
    lock = path.parent / "anna.lock"
    lock.write_text(f"{os.getpid()}\n")
    output, _ = run_server(site, [DELETE])
    if mode == "default":
        assert output.splitlines()[-1].startswith(b"-ERR [IN-USE] ")
        assert path.read_bytes() == SPOOL
    else:
        assert output.splitlines()[-1].startswith(b"+OK ")
        assert path.read_bytes() == REST
    assert lock.read_text() == f"{os.getpid()}\n"
