"""Locks on real file systems, through a real server: what stands where a dotlock should be."""

import fcntl
import grp
import os
import pwd
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import doors
from mailsite import ENVIRONMENT, IS_ROOT, MAIL_USER, need, poll
from protocol import run_server
from spools import mbox, messages_of
from test_dotlock import age, dead_pid
from test_hazard_full_disk import filled, mounted

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n", b"Subject: three\n\n3\n")
REST = b"".join(messages_of(SPOOL)[1:])
MAIL = mbox(b"Subject: hello\n\nfor the user john.lock\n")
LOGIN = b"USER john\r\nPASS secret\r\n"
DELETE = LOGIN + b"DELE 1\r\nQUIT\r\n"
OTHER = pwd.getpwnam("daemon") if IS_ROOT else MAIL_USER


@pytest.fixture
def john(site):
    site.configure({"lock-timeout-seconds": 1})
    site.add("john", SPOOL)
    return site


@pytest.fixture
def lock(john):
    return john.spools / "john.lock"


def serve(site, said=DELETE):
    """The last answer of a session, and its log."""
    output, log = run_server(site, [said])
    return output.splitlines()[-1], log.decode()


def begin_to_log_in(wire, lock):
    """Have a session hold its dotlock while it opens the maildrop."""
    assert wire.line().startswith(b"+OK")
    wire.ask("USER john")
    wire.send(b"PASS secret\r\n")
    wait_for(lock)


def is_removed(site):
    return site.spool("john").read_bytes() == REST


# A user whose mailbox has the name of another's dotlock


def many(count):
    return b"".join(mbox(b"Subject: %d\n\n%b\n" % (n, b"x" * 500)) for n in range(count))


@pytest.mark.parametrize("seconds", [0, 301, 1e7])
def test_a_login_does_not_touch_another_users_mailbox(john, lock, seconds):
    mail = many(500)
    john.add("john.lock", mail)
    age(lock, seconds)
    answer, log = serve(john)
    assert answer.startswith(b"+OK")
    assert is_removed(john)
    assert lock.read_bytes() == mail
    assert log.count(f"{lock} is in the way") == 1
    assert sorted(os.listdir(john.spools)) == ["john", "john.lock"]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_nor_does_it_across_uids(john, lock, count):
    if not IS_ROOT:
        pytest.skip("an ordinary user is one user")
    mail = grp.getgrnam("mail").gr_gid
    john.configure({"auth-flatfile-mail-group": "mail"})
    os.chown(john.spools, 0, mail)
    john.spools.chmod(0o2775)
    john.add("john.lock", many(count))
    for path, owner in ((john.spool("john"), MAIL_USER), (lock, OTHER)):
        os.chown(path, owner.pw_uid, mail)
        path.chmod(0o660)
    age(lock)
    answer, log = serve(john)
    assert answer.startswith(b"+OK")
    assert is_removed(john)
    assert lock.read_bytes() == many(count)
    assert lock.stat().st_uid == OTHER.pw_uid
    assert f"{lock} is in the way" in log
    lock.unlink()
    lock.write_bytes(b"0\n")  # this is a lock, and the group may break it
    os.chown(lock, OTHER.pw_uid, mail)
    age(lock)
    answer, log = serve(john, LOGIN + b"QUIT\r\n")
    assert answer.startswith(b"+OK")
    assert "john.lock" not in log
    assert os.listdir(john.spools) == ["john"]


def slow_to_open(site):
    """A spool that takes a moment to scan: its last message has a hole."""
    with site.spool("john").open("ab") as file:
        file.truncate(len(SPOOL) + 800_000_000)
    site.configure({"mailspool-index": "no"})


def wait_for(path):
    """As soon as it is there."""
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline


def test_mail_that_is_delivered_to_a_dotlock_is_not_lost(john, lock):
    slow_to_open(john)
    with doors.inetd(john) as wire:
        begin_to_log_in(wire, lock)
        with lock.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(MAIL)
        assert wire.line().startswith(b"+OK")
        wire.logs.wait_for(f"{lock} was our lock, and somebody writes to it")
        assert lock.read_bytes().endswith(MAIL)
        assert wire.ask("DELE 3").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
    assert lock.read_bytes().endswith(MAIL)
    assert sorted(os.listdir(john.spools)) == ["john", "john.lock"]


def test_nor_is_mail_that_comes_a_moment_later(john, lock):
    """Whoever delivers has opened it, and is slow."""
    slow_to_open(john)
    with doors.inetd(john) as wire:
        begin_to_log_in(wire, lock)
        with lock.open("r+b", buffering=0) as file:
            assert wire.line().startswith(b"+OK")
            wire.logs.wait_for(f"{lock} was our lock, and somebody writes to it")
            file.seek(0, os.SEEK_END)
            file.write(MAIL)
        assert lock.read_bytes().endswith(MAIL)
        assert wire.ask("QUIT").startswith(b"+OK")
    assert lock.read_bytes().endswith(MAIL)


# flock(2)


def test_flock_of_somebody_is_waited_for(john):
    with john.spool("john").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        answer, log = serve(john)
        assert answer.startswith(b"-ERR [IN-USE]")
        assert "still locked after 1 seconds (flock)" in log
        john.configure({"mailspool-flock": "no"})
        assert serve(john, LOGIN + b"QUIT\r\n")[0].startswith(b"+OK")
        john.configure({"mailspool-flock": "yes"})
    assert serve(john)[0].startswith(b"+OK")
    assert is_removed(john)


def test_flock_is_held_while_a_spool_is_read_and_no_longer(john):
    slow_to_open(john)
    with doors.inetd(john) as wire, john.spool("john").open("rb") as file:

        def is_free():
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            fcntl.flock(file, fcntl.LOCK_UN)
            return True

        assert wire.line().startswith(b"+OK")
        wire.ask("USER john")
        wire.send(b"PASS secret\r\n")
        wait_for(john.spools / "john.lock")
        assert not is_free()
        assert wire.line().startswith(b"+OK")
        assert is_free()


# Another pid namespace


NAMESPACE = """
import os, sys
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(sys.argv[2])
pid = os.fork()
if not pid:
    from tpop3d.mailspool.dotlock import Dotlock
    os.setgid(int(sys.argv[4]))
    os.setuid(int(sys.argv[3]))
    assert Dotlock(sys.argv[1], True).take() is True
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.waitpid(pid, 0)
"""


@contextmanager
def locked_in_a_namespace(lock):
    """A lock of ours, of a process that lives in a pid namespace of its own, by a number that no
    process has here."""
    if not IS_ROOT:
        pytest.skip("only root makes pid namespaces")
    ids = str(MAIL_USER.pw_uid), str(MAIL_USER.pw_gid)
    number = dead_pid()
    command = [need("unshare"), "-pf", "--mount-proc", "--kill-child", sys.executable, "-c"]
    command += [NAMESPACE, lock, str(number - 1), *ids]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        said = process.stdout.readline()
        if not said:
            pytest.skip("there are no pid namespaces here")
        assert int(said) == number
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
        yield process


def test_a_lock_of_another_pid_namespace_is_not_broken(john, lock):
    with locked_in_a_namespace(lock) as process:
        content = lock.read_bytes()
        assert serve(john)[0].startswith(b"-ERR [IN-USE]")
        assert lock.read_bytes() == content
        process.kill()
        process.communicate()
    assert serve(john)[0].startswith(b"-ERR [IN-USE]")  # nobody here can know
    age(lock)
    assert serve(john)[0].startswith(b"+OK")
    assert is_removed(john)
    assert os.listdir(john.spools) == ["john"]


# Where a lock can be neither made nor removed


@pytest.fixture
def sticky(john):
    if not IS_ROOT:
        pytest.skip("only root can leave another's lock")
    os.chown(john.spools, 0, 0)
    john.spools.chmod(0o1777)


def check_stuck(site, lock, why):
    """A session does without a dotlock, and says so once; where one is required it is refused, for
    now. One that is fresh is waited for."""
    content = lock.read_bytes() if lock.is_file() else None
    site.configure({"mailspool-dotfile-locking": "require"})
    answer, log = serve(site)
    assert answer.startswith(b"-ERR [SYS/TEMP]")
    assert why in log
    assert site.spool("john").read_bytes() == SPOOL
    site.configure({"mailspool-dotfile-locking": "try"})
    if lock.exists():
        os.utime(lock)
        answer, log = serve(site)
        assert answer.startswith(b"-ERR [IN-USE]")
        assert str(lock) in log
        age(lock)
    answer, log = serve(site)
    assert answer.startswith(b"+OK")
    assert log.count(why) == 1
    assert log.count("fcntl and flock have to do") == 1
    assert is_removed(site)
    if content is not None:
        assert lock.read_bytes() == content


def test_a_sticky_directory_and_another_users_stale_lock(john, lock, sticky):
    lock.write_bytes(b"0\n")
    os.chown(lock, OTHER.pw_uid, OTHER.pw_gid)
    age(lock)
    check_stuck(john, lock, f"{lock} cannot be removed (Operation not permitted)")


def test_a_sticky_directory_and_another_users_lock_that_cannot_be_read(john, lock, sticky):
    lock.write_bytes(b"0\0")
    lock.chmod(0)
    os.chown(lock, OTHER.pw_uid, OTHER.pw_gid)
    age(lock)
    check_stuck(john, lock, f"{lock} is in the way, is not certainly a lock, and is left alone")


@pytest.mark.parametrize("kind", ["empty", "directory", "text"])
def test_a_stale_thing_that_is_no_lock(john, lock, kind):
    if kind == "directory":
        lock.mkdir()
        (lock / "file").touch()
    else:
        lock.write_text("" if kind == "empty" else "my shopping list\n")
    john.give_to_mail_user(lock)
    age(lock)
    check_stuck(john, lock, f"{lock} is in the way, is not certainly a lock, and is left alone")
    assert sorted(os.listdir(john.spools)) == ["john", "john.lock"]


@contextmanager
def without_inodes(directory):
    made = [directory / f"file{number}" for number in range(os.statvfs(directory).f_ffree)]
    for path in made:
        path.touch()
    try:
        yield
    finally:
        for path in made:
            path.unlink()


@pytest.fixture
def small(site):
    """A file system of 2 MB and 40 files for the spools."""
    with mounted(site.spools):
        site.configure({"lock-timeout-seconds": 1})
        site.add("john", SPOOL)
        yield site


def test_a_file_system_without_inodes(small):
    lock = small.spools / "john.lock"
    with without_inodes(small.spools):
        check_stuck(small, lock, f"{lock} cannot be made (No space left on device)")


def test_a_file_system_without_inodes_and_somebodys_lock(small):
    """A fresh one is waited for, and a stale one broken, where none of ours can be made."""
    lock = small.spools / "john.lock"
    lock.write_bytes(b"0\n")
    small.give_to_mail_user(lock)
    with without_inodes(small.spools):
        answer, log = serve(small)
        assert answer.startswith(b"-ERR [IN-USE]")
        assert str(lock) in log
        age_without_inodes(lock)
        assert serve(small)[0].startswith(b"+OK")
        assert is_removed(small)
        assert not lock.exists()


def age_without_inodes(lock):
    os.utime(lock, (time.time() - 301,) * 2)


def test_a_full_disk_is_no_reason_to_do_without(small):
    """An empty lock is one of ours all the same; it goes with its session."""
    with filled(small.spools):
        answer, log = serve(small)
        assert answer.startswith(b"+OK")
        assert "john.lock" not in log
        assert is_removed(small)
    assert os.listdir(small.spools) == ["john"]


@contextmanager
def append_only(directory):
    done = subprocess.run([need("chattr"), "+a", directory], capture_output=True)
    if done.returncode:
        pytest.skip(f"this directory cannot be made append-only: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-a", directory], check=True)


def test_an_append_only_directory(john, lock):
    """The lock can be made, and not removed: a session does not wait for its own."""
    if not IS_ROOT:
        pytest.skip("only root sets this attribute")
    with append_only(john.spools):
        answer, log = serve(john)
        assert answer.startswith(b"+OK")
        assert log.count("Operation not permitted") == 1
        assert f"{lock} cannot be removed" in log
        assert is_removed(john)
        assert lock.exists()
        # Its process is gone.
        answer, log = serve(john, LOGIN + b"DELE 2\r\nQUIT\r\n")
        assert answer.startswith(b"+OK")
        assert log.count(f"{lock} cannot be removed") == 1
        assert "[SYS/PERM]" not in log
        john.configure({"mailspool-dotfile-locking": "require"})
        assert serve(john)[0].startswith(b"-ERR [SYS/TEMP]")
    assert serve(john)[0].startswith(b"+OK")
    assert os.listdir(john.spools) == ["john"]


def test_a_session_that_is_killed_leaves_a_lock_that_the_next_one_breaks(john, lock):
    slow_to_open(john)
    with doors.inetd(john) as wire:
        begin_to_log_in(wire, lock)
        pid = int(lock.read_text().split()[0])
        os.kill(pid, 9)
    poll(lambda: not john.processes(), "them to be gone")
    assert lock.exists()
    started = time.monotonic()
    answer, log = serve(john, LOGIN + b"QUIT\r\n")
    assert answer.startswith(b"+OK")
    assert "lock" not in log
    assert time.monotonic() - started < 60
    assert os.listdir(john.spools) == ["john"]
