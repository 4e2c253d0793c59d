"""Locks: all or none, honoured by others, never left behind. What is a dotlock, and whose, is
asked in test_dotlock.py."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mailsite import poll
from spools import never_pause
from tpop3d.mailspool.locks import (
    NO,
    REQUIRE,
    TRY,
    SpoolLocks,
    _is_local,
    lock_file,
    take_session_lock,
    wait_for,
)
from tpop3d.system.refusal import IN_USE, PERMANENT, TEMPORARY, Refusal


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(b"")
    return path


@pytest.fixture
def fd(path):
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def brief_pause(seconds):
    time.sleep(seconds)
    return False


def locks_of(fd, path, dotlocks=TRY):
    return SpoolLocks(fd, str(path), dotlocks)


def flocked_by_somebody(path):
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def held_by_somebody(path):
    """Is there a POSIX lock, as another program sees it?"""
    code = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
    assert done.returncode == 0 or b"BlockingIOError" in done.stderr
    return done.returncode != 0


def test_all_locks_are_taken_and_given_back(fd, path):
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    dotlock = Path(f"{path}.lock")
    assert dotlock.read_bytes().startswith(b"%d\n" % os.getpid())
    assert held_by_somebody(path)
    assert flocked_by_somebody(path)
    locks.release()
    assert os.listdir(path.parent) == [path.name]
    assert not held_by_somebody(path)
    assert not flocked_by_somebody(path)


def test_a_dotlock_of_somebody_alive_is_respected(fd, path):
    Path(f"{path}.lock").write_text(f"{os.getppid()}\n")
    refused = locks_of(fd, path).acquire(0.3, brief_pause)
    assert isinstance(refused, Refusal)
    assert refused.kind == IN_USE
    assert f"{path}.lock" in refused.reason
    assert Path(f"{path}.lock").exists()
    assert not held_by_somebody(path)
    assert not flocked_by_somebody(path)


@pytest.mark.parametrize("how", ["lockf", "flock"])
def test_a_lock_of_the_file_that_somebody_has_is_respected(fd, path, how):
    code = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        f"fcntl.{how}(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        refused = locks_of(fd, path).acquire(0.3, brief_pause)
        assert isinstance(refused, Refusal)
        assert refused.kind == IN_USE
        assert ("flock" if how == "flock" else "fcntl") in refused.reason
        assert not Path(f"{path}.lock").exists()
        assert held_by_somebody(path) == (how == "lockf")
        assert flocked_by_somebody(path) == (how == "flock")
        holder.stdin.close()
    assert locks_of(fd, path).acquire(5, brief_pause) is None


def test_who_has_flock_does_not_keep_us_out_where_it_is_not_used(fd, path):
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        locks = SpoolLocks(fd, str(path), TRY, flock=False)
        assert locks.acquire(0, never_pause) is None
        locks.release()
        assert flocked_by_somebody(path)  # still, by that one


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_flock_does_without(fd, path, monkeypatch, error):
    def none(fd, operation):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", none)
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    assert locks.warning == ""
    locks.release()
    assert not held_by_somebody(path)


def test_a_broken_flock_is_no_reason_to_go_on(fd, path, monkeypatch):
    def broken(fd, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    assert isinstance(locks_of(fd, path).acquire(0, never_pause), Refusal)
    assert not held_by_somebody(path)


MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 21 0:33 / /srv/with\\040-\\040blanks rw shared:7 master:2 - {type} host:/export rw
41 21 0:34 / /proc rw - proc proc rw
"""
TYPES = {"nfs": False, "nfs4": False, "cifs": False, "9p": False, "tmpfs": True, "fuse.x": True}


@pytest.mark.parametrize("kind", TYPES)
def test_whose_file_system_it_is(fd, tmp_path, monkeypatch, kind):
    """There is no statfs(2); a file on none of the mounts stands for a btrfs subvolume."""
    (tmp_path / "mounts").write_text(MOUNTS.format(type=kind))
    real_open, real_stat = open, os.fstat

    def is_local(major, minor):
        fields = list(real_stat(fd))
        fields[2] = os.makedev(major, minor)
        monkeypatch.setattr(os, "fstat", lambda _: os.stat_result(fields))
        found = _is_local(fd)
        monkeypatch.setattr(os, "fstat", real_stat)
        return found

    def open_(name, *rest, **more):
        there = tmp_path / "mounts" if name == "/proc/self/mountinfo" else name
        return real_open(there, *rest, **more)

    monkeypatch.setattr("builtins.open", open_)
    assert is_local(0, 33) is TYPES[kind]
    assert is_local(0, 34)
    assert is_local(0, 99)
    assert is_local(254, 33)


def test_flock_is_not_taken_where_it_would_be_an_fcntl_lock(fd, path, monkeypatch):
    monkeypatch.setattr("tpop3d.mailspool.locks._is_local", lambda _: False)
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    assert held_by_somebody(path)
    assert not flocked_by_somebody(path)
    locks.release()


def test_a_lock_that_is_given_back_meanwhile_is_got(fd, path):
    dotlock = Path(f"{path}.lock")
    dotlock.write_text("0\n")
    waited = []

    def pause(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            dotlock.unlink()
        return False

    assert locks_of(fd, path).acquire(60, pause) is None
    assert len(waited) == 3
    assert all(0.05 <= seconds <= 0.2 for seconds in waited)


def test_a_session_that_is_told_to_end_stops_waiting(fd, path):
    Path(f"{path}.lock").write_text("0\n")
    assert isinstance(locks_of(fd, path).acquire(3600, never_pause), Refusal)


def refuse_to_make(monkeypatch, error):
    real = os.open

    def open_(name, flags, *rest, **more):
        if flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(error, os.strerror(error))
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)


CANNOT = [
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG,
]  # fmt: skip


@pytest.mark.parametrize("error", CANNOT)
def test_where_no_dotlock_may_be_made_the_others_have_to_do_with_a_warning(
    fd, path, monkeypatch, error
):
    refuse_to_make(monkeypatch, error)
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    assert locks.warning.count(os.strerror(error)) == 1
    assert locks.warning.endswith("; fcntl and flock have to do")
    assert held_by_somebody(path)
    assert flocked_by_somebody(path)
    locks.release()
    assert locks.acquire(0, never_pause) is None
    assert locks.warning == ""  # it was said
    locks.release()


@pytest.mark.parametrize("error", CANNOT)
def test_a_fresh_dotlock_is_waited_for_also_where_none_can_be_made(fd, path, monkeypatch, error):
    refuse_to_make(monkeypatch, error)
    Path(f"{path}.lock").write_text("0\n")
    refused = locks_of(fd, path).acquire(0, never_pause)
    assert isinstance(refused, Refusal)
    assert refused.kind == IN_USE
    assert not held_by_somebody(path)


@pytest.mark.parametrize("error", CANNOT)
def test_where_one_is_required_and_cannot_be_made_the_spool_is_not_touched(
    fd, path, monkeypatch, error
):
    refuse_to_make(monkeypatch, error)
    refused = locks_of(fd, path, dotlocks=REQUIRE).acquire(0, never_pause)
    assert os.strerror(error) in refused.reason
    assert f"{path}.lock" in refused.reason
    assert refused.kind == TEMPORARY
    assert not held_by_somebody(path)
    assert not flocked_by_somebody(path)


def test_a_directory_that_breaks_is_no_reason_to_go_on(fd, path, monkeypatch):
    refuse_to_make(monkeypatch, errno.EIO)
    assert isinstance(locks_of(fd, path).acquire(0, never_pause), Refusal)
    assert not held_by_somebody(path)


def test_a_dotlock_without_room_for_its_pid_locks_all_the_same(fd, path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", no_space)
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    assert Path(f"{path}.lock").read_bytes() == b""
    locks.release()
    assert not Path(f"{path}.lock").exists()


def test_a_dotlock_whose_writing_breaks_is_not_left_behind(fd, path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    assert isinstance(locks_of(fd, path).acquire(0, never_pause), Refusal)
    monkeypatch.undo()
    assert not Path(f"{path}.lock").exists()
    assert not held_by_somebody(path)


def test_without_dotlocks_none_is_made(fd, path):
    locks = locks_of(fd, path, dotlocks=NO)
    assert locks.acquire(0, never_pause) is None
    assert not Path(f"{path}.lock").exists()
    locks.release()


def test_the_session_lock_dies_with_its_holder(tmp_path):
    lock = str(tmp_path / "lock")
    pid = os.fork()
    if not pid:
        take_session_lock(lock, never_pause)
        os.write(1, b"")
        Path(f"{lock}.taken").touch()
        time.sleep(60)
        os._exit(0)
    try:
        poll(lambda: Path(f"{lock}.taken").exists(), "the child to take the lock")
        refused = take_session_lock(lock, never_pause)
        assert isinstance(refused, Refusal)
        assert refused.kind == IN_USE
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    fd = take_session_lock(lock, never_pause)
    assert isinstance(fd, int)
    os.close(fd)


def test_the_session_lock_survives_the_closing_of_another_descriptor(tmp_path):
    # A POSIX lock would not, fcntl(2) says.
    lock = str(tmp_path / "lock")
    fd = take_session_lock(lock, never_pause)
    assert isinstance(fd, int)
    os.close(os.open(lock, os.O_RDWR))
    assert isinstance(take_session_lock(lock, never_pause), Refusal)
    os.close(fd)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/tty", path)])
def test_a_session_lock_that_is_no_file_is_refused(tmp_path, make):
    """At once, whatever its user has put there."""
    lock = str(tmp_path / "lock")
    make(lock)
    refused = take_session_lock(lock, never_pause)
    assert isinstance(refused, Refusal)
    assert refused.kind == PERMANENT
    assert refused.reason == f"session lock {lock}: not a regular file"


def test_a_file_that_cannot_be_locked_is_an_error_and_not_busy(tmp_path):
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)  # an exclusive lock needs write access
    with pytest.raises(OSError, match="Bad file descriptor"):
        lock_file(fd)
    os.close(fd)


def test_waiting_tries_at_least_once():
    tries = []
    assert not wait_for(lambda: bool(tries.append(1)), 0, never_pause)
    assert tries == [1]
    assert wait_for(lambda: True, 0, never_pause)


def test_fcntl_has_what_is_needed():
    assert fcntl.F_OFD_SETLK
