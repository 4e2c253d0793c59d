"""Locks: both or none, honoured by others, never left behind."""

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
    lock_file,
    take_session_lock,
    wait_for,
)
from tpop3d.mailspool.refusal import IN_USE, PERMANENT, Refusal


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


def test_both_locks_are_taken_and_given_back(fd, path):
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    dotlock = Path(f"{path}.lock")
    assert dotlock.read_bytes() == b"%d\n" % os.getpid()
    assert held_by_somebody(path)
    locks.release()
    assert not dotlock.exists()
    assert not held_by_somebody(path)


def test_a_dotlock_of_somebody_alive_is_respected(fd, path):
    Path(f"{path}.lock").write_text(f"{os.getppid()}\n")
    refused = locks_of(fd, path).acquire(0.3, brief_pause)
    assert isinstance(refused, Refusal)
    assert refused.kind == IN_USE
    assert Path(f"{path}.lock").exists()
    assert not held_by_somebody(path)


def test_a_posix_lock_of_somebody_is_respected(fd, path):
    code = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        refused = locks_of(fd, path).acquire(0.3, brief_pause)
        assert isinstance(refused, Refusal)
        assert refused.kind == IN_USE
        assert not Path(f"{path}.lock").exists()
        holder.stdin.close()
    assert locks_of(fd, path).acquire(5, brief_pause) is None


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


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def test_the_dotlock_of_a_dead_process_is_broken(fd, path):
    Path(f"{path}.lock").write_text(f"{dead_pid()}\n")
    locks = locks_of(fd, path)
    assert locks.acquire(5, brief_pause) is None
    locks.release()


@pytest.mark.parametrize("content", ["", "0\n", "somebody\n", "1\n"])
def test_an_old_dotlock_is_broken_and_a_young_one_is_not(fd, path, content):
    dotlock = Path(f"{path}.lock")
    dotlock.write_text(content)
    locks = locks_of(fd, path)
    assert isinstance(locks.acquire(0, never_pause), Refusal)
    old = time.time() - 301
    os.utime(dotlock, (old, old))
    assert locks.acquire(5, brief_pause) is None
    locks.release()


def test_a_dotlock_that_somebody_else_made_meanwhile_is_left_alone(fd, path):
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    dotlock = Path(f"{path}.lock")
    dotlock.rename(f"{dotlock}.old")
    dotlock.write_text("somebody's\n")
    locks.release()
    assert dotlock.read_text() == "somebody's\n"


def refuse_to_make(monkeypatch, error):
    real = os.open

    def open_(name, flags, *rest, **more):
        if str(name).endswith(".lock") or flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(error, os.strerror(error))
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_where_no_dotlock_may_be_made_fcntl_has_to_do_with_a_warning(fd, path, monkeypatch, error):
    refuse_to_make(monkeypatch, error)
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    assert os.strerror(error) in locks.warning
    assert held_by_somebody(path)
    locks.release()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_where_one_is_required_and_cannot_be_made_the_spool_is_not_touched(
    fd, path, monkeypatch, error
):
    refuse_to_make(monkeypatch, error)
    refused = locks_of(fd, path, dotlocks=REQUIRE).acquire(0, never_pause)
    assert os.strerror(error) in refused.reason
    assert not held_by_somebody(path)


def test_a_dotlock_has_its_pid_from_its_first_moment(fd, path, monkeypatch):
    """One that a crash has left without would keep all others away for five minutes."""
    seen = []
    real = os.link

    def link(*arguments, **named):
        real(*arguments, **named)
        seen.append(Path(f"{path}.lock").read_text())

    monkeypatch.setattr(os, "link", link)
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    assert seen == [f"{os.getpid()}\n"]
    locks.release()


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
def test_where_files_without_a_name_are_unknown_it_is_made_by_its_name(
    fd, path, monkeypatch, error
):
    real = os.open

    def open_(name, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(error, os.strerror(error))
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    locks = locks_of(fd, path)
    assert locks.acquire(0, never_pause) is None
    assert Path(f"{path}.lock").read_text() == f"{os.getpid()}\n"
    assert isinstance(locks_of(fd, path).acquire(0, never_pause), Refusal)
    locks.release()
    assert not Path(f"{path}.lock").exists()


def test_a_directory_without_room_for_a_dotlock_is_no_reason_to_go_on(fd, path, monkeypatch):
    refuse_to_make(monkeypatch, errno.ENOSPC)
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
