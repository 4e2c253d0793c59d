"""The dotlock: what is taken for one, whose it is, and what is left alone."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import doors
from mailsite import need
from spools import mbox, never_pause
from tpop3d.mailspool import dotlock, lockfile
from tpop3d.mailspool.dotlock import Dotlock
from tpop3d.mailspool.lockfile import here, is_dead, is_lock, is_of_here, look
from tpop3d.mailspool.locks import REQUIRE, TRY, SpoolLocks
from tpop3d.system.refusal import IN_USE, TEMPORARY, Refusal

MAIL = mbox(b"Subject: one\n\nmail for the user john.lock\n")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "john.lock"


@pytest.fixture(params=["local", "remote"])
def lock(request, path):
    return Dotlock(str(path), is_local=request.param == "local")


def age(path, seconds=301):
    """Let it be as old as that by the clock of its file system."""
    os.utime(path, follow_symlinks=False)
    now = os.lstat(path).st_mtime
    os.utime(path, (now - seconds,) * 2, follow_symlinks=False)


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


# What is certainly a lock


LOCKS = [
    b"0", b"0\n", b"0\0", b"1234", b"1234\n", b"4194304\n", b"1234:host.example.org",
    b"1234:host\n", b"77\nhost\n", b"77\n" + here(), b"1234567890",
]  # fmt: skip
OTHERS = [
    b"", b"\n", b"\0", b"From ", MAIL, b"\n" + MAIL, b"1234\n" + MAIL, b"77\n" + here() + MAIL,
    b"1234 host\n", b"77\nmy shopping list\n", b"77\n\n", b"77\n\nhost\n", b"1234:\n", b"host:77\n",
    b"12345678901\n", b"-1\n", b" 77\n", b"77\nh\xc3\xb6st\n", b"77\nhost\0\n",
    b"77\n" + b"x" * 300, b"Received: by mail", b"77\r\n", b"\xd9\xa3",
]  # fmt: skip


@pytest.mark.parametrize("content", LOCKS)
def test_these_are_locks(content):
    assert is_lock(content)


@pytest.mark.parametrize("content", OTHERS)
def test_these_are_none(content):
    assert not is_lock(content)


def test_what_real_programs_write_is_a_lock(tmp_path):
    """Those that keep the lock while another program runs can be asked."""
    spool = tmp_path / "spool"
    spool.touch()
    lock = tmp_path / "spool.lock"
    run = {"cwd": tmp_path, "check": True}
    subprocess.run([need("dotlockfile"), "-l", lock], **run)
    assert is_lock(lock.read_bytes())
    subprocess.run([need("dotlockfile"), "-u", lock], **run)
    subprocess.run([need("dotlockfile"), "-l", "-p", lock], **run)
    assert is_lock(lock.read_bytes())
    subprocess.run([need("dotlockfile"), "-u", lock], **run)
    subprocess.run([need("lockfile"), lock], **run)  # procmail's
    assert is_lock(lock.read_bytes())
    lock.unlink()
    done = subprocess.run([need("lockmail"), spool, "cat", lock], capture_output=True, **run)
    assert done.stdout.startswith(b"%d:" % int(done.stdout.partition(b":")[0]))
    assert is_lock(done.stdout)  # maildrop's


# What is broken


@pytest.mark.parametrize("content", LOCKS)
def test_an_old_lock_is_broken_and_a_young_one_is_not(path, lock, content):
    path.write_bytes(content)
    assert lock.take() is False
    assert path.read_bytes() == content
    age(path, 290)
    assert lock.take() is False
    age(path)
    assert lock.take() is True
    assert path.read_bytes().startswith(b"%d\n" % os.getpid())
    assert lock.remove() == ""
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("content", OTHERS)
def test_anything_else_is_left_alone(path, lock, content):
    path.write_bytes(content)
    inode = path.stat().st_ino
    age(path, 1e8)
    why = lock.take().reason
    assert str(path) in why
    assert lock.remove() == ""
    assert (path.read_bytes(), path.stat().st_ino) == (content, inode)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "dangling link"])
def test_what_is_no_file_is_waited_for_and_then_left_alone(path, lock, kind):
    target = path.parent / "target"
    target.write_bytes(b"0\n")
    age(target)
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(target if kind == "link" else "nothing")
    assert lock.take() is False
    age(path)
    assert str(path) in lock.take().reason
    assert sorted(os.listdir(path.parent)) == ["john.lock", "target"]


@pytest.mark.parametrize("content", [MAIL, b"\n" + MAIL, b"7\nhost\n" + MAIL, MAIL * 4])
def test_nobody_waits_for_mail(path, lock, content):
    path.write_bytes(content)
    assert "not certainly a lock" in lock.take().reason
    assert path.read_bytes() == content


def test_a_lock_that_cannot_be_read_is_left_alone(path, lock, monkeypatch):
    """sendmail's mail.local gives it no mode at all; root could read it."""
    path.write_bytes(b"0\0")
    age(path)
    real = os.open

    def open_(name, flags, *rest, **more):
        if name == str(path) and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    assert "not certainly a lock" in lock.take().reason
    assert path.exists()


# Whose process is gone


def test_ours_of_a_dead_process_of_here_is_broken_at_once(path, lock):
    path.write_bytes(b"%d\n" % dead_pid() + here())
    assert lock.take() is True
    assert lock.remove() == ""
    assert os.listdir(path.parent) == []


HOST, BOOT, NAMESPACE = here().splitlines()
ELSEWHERE = {
    "another host": (b"other.example.org", BOOT, NAMESPACE),
    "another boot": (HOST, b"0" * 32, NAMESPACE),
    "another namespace": (HOST, BOOT, b"4026539999"),
    "no namespace": (HOST, BOOT),
    "one more line": (HOST, BOOT, NAMESPACE, b"1"),
    "only a host": (HOST,),
    "only a pid": (),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_of_all_others_only_the_age_counts(path, lock, where):
    content = b"".join(line + b"\n" for line in (b"%d" % dead_pid(), *ELSEWHERE[where]))
    path.write_bytes(content)
    assert not is_dead(content)
    assert lock.take() is False
    assert path.read_bytes() == content
    age(path)
    assert lock.take() is True
    lock.remove()


def test_ours_of_a_living_process_is_broken_by_age(path, lock):
    """Its pid may have been given to another; who lives refreshes it."""
    path.write_bytes(b"%d\n" % os.getppid() + here())
    assert lock.take() is False
    age(path)
    assert lock.take() is True
    lock.remove()


def test_without_proc_it_names_pid_and_host(path, lock, monkeypatch):
    real = os.open

    def open_(name, *rest, **more):
        if str(name).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return real(name, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    content = b"%d\n%b\n" % (dead_pid(), HOST)
    assert here() == HOST + b"\n"
    assert not is_of_here(content)
    path.write_bytes(content)
    assert lock.take() is False
    path.unlink()
    assert lock.take() is True
    assert path.read_bytes() == b"%d\n%b\n" % (os.getpid(), HOST)
    assert lock.remove() == ""
    assert not path.exists()


def hide_the_boot_id(monkeypatch, variable):
    """As systemd does with ProcSubset=pid."""
    monkeypatch.setattr(lockfile, "BOOT_ID", "/proc/self/hidden")
    if variable is None:
        monkeypatch.delenv("TPOP3D_BOOT_ID", raising=False)
    else:
        monkeypatch.setenv("TPOP3D_BOOT_ID", variable)


def test_whoever_starts_us_may_tell_the_boot_id(monkeypatch):
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    wanted = here()
    for variable in (boot, boot.replace("-", "")):
        hide_the_boot_id(monkeypatch, variable)
        assert here() == wanted


@pytest.mark.parametrize("variable", [None, "", "%b", "x" * 31, "two words" * 4, "x" * 300])
def test_what_is_no_boot_id_is_none(monkeypatch, variable):
    hide_the_boot_id(monkeypatch, variable)
    assert here() == HOST + b"\n"


@pytest.mark.parametrize("name", ["host", "(none)", "", "h\xf6st", "a b\nc"])
def test_any_host_name_gives_a_lock(path, monkeypatch, name):
    uname = os.uname()
    fields = [name if n == 1 else one for n, one in enumerate(uname)]
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(fields))
    content = b"%d\n" % dead_pid() + here()
    assert is_lock(content)
    assert is_dead(content)


# Whose clock


def test_our_clock_is_not_asked(path, lock, monkeypatch):
    monkeypatch.setattr(dotlock, "time", lambda: pytest.fail("it asks our clock"))
    path.write_bytes(b"0\n")
    age(path, 299)
    assert lock.take() is False
    age(path)
    assert lock.take() is True
    lock.remove()


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_is_wrong_breaks_nothing(path, lock, hours):
    """Ours is: that of a process, of which the file system knows nothing."""
    path.write_bytes(b"0\n")
    code = (
        "import sys, time\n"
        f"wrong = time.time() + {hours * 3600}\n"
        "time.time = lambda: wrong\n"
        "from tpop3d.mailspool.dotlock import Dotlock\n"
        "raise SystemExit(Dotlock(sys.argv[1], True).take() is not False)\n"
    )
    command = [sys.executable, "-c", code, path]
    subprocess.run(command, check=True, env=doors.ENVIRONMENT)
    assert path.read_bytes() == b"0\n"
    age(path)
    assert subprocess.run(command, env=doors.ENVIRONMENT).returncode == 1
    assert path.read_bytes() != b"0\n"


def test_where_no_file_can_be_made_our_clock_is_all_there_is(path, lock, monkeypatch):
    path.write_bytes(b"0\n")
    real = os.open

    def open_(name, flags, *rest, **more):
        if flags & (os.O_CREAT | os.O_TMPFILE):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        assert lock.take() is False
    age(path)
    monkeypatch.setattr(os, "open", open_)
    assert "cannot be made (No space left on device)" in lock.take().reason
    assert not path.exists()  # it was stale


def test_a_time_in_the_future_does_not_lock_for_ever(path, lock, monkeypatch):
    """Somebody's clock was wrong when it was set. When that was the file system knows."""
    path.write_bytes(b"0\n")
    age(path, -1e6)
    assert lock.take() is False
    real = lockfile.look

    def later(*arguments, **named):
        seen = real(*arguments, **named)
        if seen is None:
            return None
        fields = list(seen.status)
        status = os.stat_result(fields, {**times(seen.status), "st_ctime": time.time() - 400})
        seen.status = status
        return seen

    monkeypatch.setattr(dotlock, "look", later)
    assert lock.take() is True


def times(status):
    names = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
    return {name: getattr(status, name) for name in names}


def test_it_is_refreshed(path, lock):
    assert lock.take() is True
    age(path)
    lock.refresh()
    assert Dotlock(str(path), is_local=True).take() is False
    path.unlink()
    path.write_bytes(b"1\n")  # it is another's now
    os.utime(path, (0, 0))
    lock.refresh()
    assert path.stat().st_mtime == 0
    assert lock.remove() == ""
    assert path.read_bytes() == b"1\n"
    path.unlink()
    lock.refresh()
    assert not path.exists()


def test_spool_locks_refresh_it_now_and_then(tmp_path, monkeypatch):
    spool = tmp_path / "spool"
    spool.touch()
    with spool.open("r+b") as file:
        locks = SpoolLocks(file.fileno(), str(spool), TRY)
        assert locks.acquire(0, never_pause) is None
        path = tmp_path / "spool.lock"
        os.utime(path, (0, 0))
        locks.refresh()
        assert path.stat().st_mtime == 0
        now = time.monotonic()
        monkeypatch.setattr("tpop3d.mailspool.locks.monotonic", lambda: now + 31)
        locks.refresh()
        assert path.stat().st_mtime > 0
        os.utime(path, (0, 0))
        locks.refresh()
        assert path.stat().st_mtime == 0
        locks.release()


# What takes its place between a look and the unlink


def replace_at(monkeypatch, name, path, content, where="before"):
    """When `os.NAME` is called, the file at `path` is replaced, once."""
    real = getattr(os, name)
    done = []

    def call(*arguments, **named):
        if not done and str(arguments[0]) == str(path):
            done.append(1)
            path.unlink()
            path.write_bytes(content)
        return real(*arguments, **named)

    monkeypatch.setattr(os, name, call)
    return done


@pytest.mark.parametrize("content", [b"1\n", MAIL, b""])
def test_a_file_that_takes_a_stale_locks_place_is_not_lost(path, lock, monkeypatch, content):
    path.write_bytes(b"0\n")
    age(path)
    done = replace_at(monkeypatch, "rename", path, content)
    taken = lock.take()  # mail is no lock that one could wait for
    assert done
    assert isinstance(taken, Refusal) if content == MAIL else taken is False
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("content", [b"1\n", MAIL, b""])
def test_a_file_that_takes_our_locks_place_is_not_lost(path, lock, monkeypatch, content):
    assert lock.take() is True
    done = replace_at(monkeypatch, "rename", path, content)
    assert str(path) in lock.remove()
    assert done
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_what_cannot_be_put_back_is_kept_aside_and_named(path, lock, monkeypatch):
    path.write_bytes(b"0\n")
    age(path)
    replace_at(monkeypatch, "rename", path, MAIL)
    real = os.link

    def link(source, target, **named):
        if not str(source).startswith("/proc"):
            path.write_bytes(b"0\n")  # somebody was quick
        real(source, target, **named)

    monkeypatch.setattr(os, "link", link)
    why = lock.take().reason
    (aside,) = set(os.listdir(path.parent)) - {path.name}
    assert aside in why
    assert aside.startswith("john.lock.")
    assert (path.parent / aside).read_bytes() == MAIL
    assert path.read_bytes() == b"0\n"


def test_a_lock_that_is_refreshed_at_the_last_moment_is_not_broken(path, lock, monkeypatch):
    path.write_bytes(b"0\n")
    age(path)
    real = os.rename

    def rename(source, target):
        os.utime(source)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert lock.take() is False
    assert path.read_bytes() == b"0\n"
    assert os.listdir(path.parent) == [path.name]


# Mail that an MTA delivers to our lock, as the mailbox of a user of that name


def test_mail_that_came_to_our_lock_stays(path, lock):
    assert lock.take() is True
    with path.open("ab") as file:
        file.write(MAIL)
    why = lock.remove()
    assert str(path) in why
    assert path.read_bytes().endswith(MAIL)
    assert os.listdir(path.parent) == [path.name]
    age(path)
    assert isinstance(lock.take(), Refusal)
    assert path.read_bytes().endswith(MAIL)


def test_mail_that_is_just_coming_to_our_lock_is_not_lost(path):
    """An MTA has it open, and has not written yet."""
    lock = Dotlock(str(path), is_local=True)
    assert lock.take() is True
    with path.open("ab", buffering=0) as file:
        assert str(path) in lock.remove()
        file.write(MAIL)
        assert os.fstat(file.fileno()).st_nlink == 1
    assert path.read_bytes().endswith(MAIL)
    assert os.listdir(path.parent) == [path.name]


def test_nobody_waits_for_an_old_lock_that_somebody_has_open(path):
    """He may be at work, or hang for ever. It is neither broken nor waited for."""
    lock = Dotlock(str(path), is_local=True)
    path.write_bytes(b"0\n")
    with path.open("ab"):
        assert lock.take() is False
        age(path)
        assert str(path) in lock.take().reason
        assert os.listdir(path.parent) == [path.name]
    assert lock.take() is True
    lock.remove()


def test_who_only_reads_our_lock_does_not_keep_it(path):
    lock = Dotlock(str(path), is_local=True)
    assert lock.take() is True
    with path.open("rb"):
        assert lock.remove() == ""
    assert os.listdir(path.parent) == []


def test_where_leases_say_nothing_it_is_removed(path, monkeypatch):
    """NFS and SMB say of every file that somebody may have it open."""
    lock = Dotlock(str(path), is_local=False)
    assert lock.take() is True
    real = fcntl.fcntl

    def call(fd, command, *rest):
        if command == fcntl.F_SETLEASE:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(fd, command, *rest)

    monkeypatch.setattr(fcntl, "fcntl", call)
    assert lock.remove() == ""
    assert not path.exists()


def test_one_of_ours_that_somebody_has_broken_is_no_business_of_ours(path, lock):
    assert lock.take() is True
    path.unlink()
    assert lock.remove() == ""
    assert lock.take() is True
    path.unlink()
    path.write_bytes(b"1\n")
    assert lock.remove() == ""
    assert path.read_bytes() == b"1\n"


# What cannot be removed


def refuse_to_remove(monkeypatch, error=errno.EPERM):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "unlink", refuse)


def test_a_stale_one_that_cannot_be_removed(path, tmp_path, monkeypatch):
    spool = tmp_path / "john"
    spool.touch()
    path.write_bytes(b"0\n")
    age(path)
    refuse_to_remove(monkeypatch)
    with spool.open("r+b") as file:
        locks = SpoolLocks(file.fileno(), str(spool), TRY)
        assert locks.acquire(0, never_pause) is None
        assert str(path) in locks.warning
        assert "Operation not permitted" in locks.warning
        locks.release()
        needs = SpoolLocks(file.fileno(), str(spool), REQUIRE)
        refused = needs.acquire(0, never_pause)
        assert isinstance(refused, Refusal)
        assert refused.kind == TEMPORARY
        assert str(path) in refused.reason
        os.utime(path)
        for one in (locks, needs):
            refused = one.acquire(0, never_pause)
            assert isinstance(refused, Refusal)
            assert refused.kind == IN_USE
    assert path.read_bytes() == b"0\n"


@pytest.mark.parametrize("error", [errno.EPERM, errno.EROFS, errno.EIO])
def test_our_own_that_cannot_be_removed_is_ours_again(tmp_path, monkeypatch, error):
    spool, path = tmp_path / "john", tmp_path / "john.lock"
    spool.touch()
    with spool.open("r+b") as file:
        locks = SpoolLocks(file.fileno(), str(spool), REQUIRE)
        assert locks.acquire(0, never_pause) is None
        refuse_to_remove(monkeypatch, error)
        locks.release()
        assert str(path) in locks.warning
        assert path.exists()
        age(path, 100)
        assert locks.acquire(0, never_pause) is None
        assert locks.warning == ""
        assert time.time() - path.stat().st_mtime < 50  # it is held again
        locks.release()
        assert locks.warning == ""  # it was said
        monkeypatch.undo()
        assert locks.acquire(0, never_pause) is None
        locks.release()
        assert locks.warning == ""
    assert os.listdir(tmp_path) == ["john"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG])
def test_without_room_for_another_name_it_is_removed_all_the_same(path, lock, monkeypatch, error):
    def rename(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "rename", rename)
    path.write_bytes(b"0\n")
    age(path)
    assert lock.take() is True
    with path.open("ab") as file:
        file.write(MAIL)
    assert str(path) in lock.remove()
    assert path.read_bytes().endswith(MAIL)
    path.unlink()
    assert lock.take() is True
    assert lock.remove() == ""
    assert os.listdir(path.parent) == []


# How it is made


def without_unnamed_files(monkeypatch, error):
    real = os.open

    def open_(name, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(error, os.strerror(error))
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)


def test_it_says_who_we_are_from_its_first_moment(path, lock, monkeypatch):
    """One that a crash has left without would keep all others away, and nobody could break it."""
    seen = []
    real = os.link

    def link(*arguments, **named):
        real(*arguments, **named)
        seen.append(path.read_bytes())

    monkeypatch.setattr(os, "link", link)
    assert lock.take() is True
    assert lock.remove() == ""
    without_unnamed_files(monkeypatch, errno.EOPNOTSUPP)
    assert lock.take() is True
    assert seen == [b"%d\n" % os.getpid() + here()] * 2
    assert lock.remove() == ""
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
def test_where_files_without_a_name_are_unknown_it_is_made_by_another(
    path, lock, monkeypatch, error
):
    without_unnamed_files(monkeypatch, error)
    monkeypatch.setattr(dotlock, "time", lambda: pytest.fail("it asks our clock"))
    assert lock.take() is True
    assert os.listdir(path.parent) == [path.name]
    assert Dotlock(str(path), is_local=True).take() is False
    assert os.listdir(path.parent) == [path.name]
    age(path)
    other = Dotlock(str(path), is_local=True)
    assert other.take() is True
    assert os.listdir(path.parent) == [path.name]
    assert other.remove() == ""
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_hard_links_either(path, lock, monkeypatch, error):
    def link(*_, **named):
        raise OSError(error, os.strerror(error))

    without_unnamed_files(monkeypatch, errno.EOPNOTSUPP)
    monkeypatch.setattr(os, "link", link)
    assert lock.take() is True
    assert path.read_bytes() == b"%d\n" % os.getpid() + here()
    assert Dotlock(str(path), is_local=True).take() is False
    assert lock.remove() == ""
    assert os.listdir(path.parent) == []


def test_a_link_whose_answer_was_lost_is_one(path, lock, monkeypatch):
    real = os.link

    def link(*arguments, **named):
        real(*arguments, **named)
        raise FileExistsError(errno.EEXIST, "File exists")

    without_unnamed_files(monkeypatch, errno.EOPNOTSUPP)
    monkeypatch.setattr(os, "link", link)
    assert lock.take() is True
    assert lock.remove() == ""
    assert os.listdir(path.parent) == []


def test_it_is_looked_at_without_following_or_waiting(path):
    os.mkfifo(path)
    assert look(str(path)).content is None
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert look(str(path)).content is None
    path.unlink()
    assert look(str(path)) is None
    Path(path).write_bytes(b"x" * 257)
    assert look(str(path)).content is None
