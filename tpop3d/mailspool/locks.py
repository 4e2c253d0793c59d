"""The two kinds of lock: the session lock, and the spool locks that other programs honour.

The session lock keeps two POP sessions apart for as long as they last. The spool locks (fcntl,
then dotlock: Debian Policy 11.6) keep deliverers out, and are held only while the spool is scanned
and while it is expunged.

Both fcntl locks are of the open-file-description kind (fcntl_locking(2)): they conflict with
everybody's POSIX locks, and are not lost when some other descriptor of the file is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from time import monotonic, time

from tpop3d.mailspool import statefile
from tpop3d.mailspool.refusal import IN_USE, Refusal, of_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Sleep for so many seconds; True: the session is told to end, so stop waiting.
    Pause = Callable[[float], bool]

SESSION_LOCK_GRACE = 1.0  # seconds; a client that reconnects at once finds its old session ending
BACK_OFF = 0.05, 0.2  # seconds, at least and at most, between two tries
# Dotlocks: made where they can be made; made, or the spool is not touched; not made.
TRY, REQUIRE, NO = "try", "require", "no"
STALE_AFTER = 300.0  # seconds; the age at which liblockfile, too, breaks a dotlock
NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # of O_TMPFILE
HELD = (errno.EAGAIN, errno.EACCES)  # what F_OFD_SETLK says of a lock that somebody else has


def lock_file(fd: int) -> bool:
    """Lock the whole file exclusively, without waiting. False: somebody else has it.

    Raises OSError where the file system cannot lock.
    """
    # struct flock: l_type, l_whence, l_start, l_len, l_pid (which must be 0)
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def unlock_file(fd: int) -> None:
    """Give the lock of `lock_file` back."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def take_session_lock(path: str, pause: Pause) -> int | Refusal:
    """Lock the file `path`, made if need be, for as long as the returned descriptor is open.

    The lock dies with its holder, so it is never stale and the file is never removed.
    """
    try:
        fd = statefile.open_regular(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        return of_error(error, f"session lock {path}")
    try:
        if wait_for(lambda: lock_file(fd), SESSION_LOCK_GRACE, pause):
            return fd
        refusal = Refusal(IN_USE, "another POP3 session has the maildrop")
    except OSError as error:
        refusal = of_error(error, f"session lock {path}")
    os.close(fd)
    return refusal


def wait_for(attempt: Callable[[], bool], seconds: float, pause: Pause) -> bool:
    """Try until it works, with random pauses, for at most `seconds`. At least one try is made."""
    deadline = monotonic() + seconds
    shortest, longest = BACK_OFF
    while not attempt():
        left = deadline - monotonic()
        # Two programs that back off in step would meet again and again.
        chance = shortest + (longest - shortest) * os.urandom(1)[0] / 255
        if left <= 0 or pause(min(chance, left)):
            return False
    return True


class SpoolLocks:
    """fcntl, then dotlock, all or nothing, on one spool."""

    def __init__(self, fd: int, path: str, dotlocks: str) -> None:
        self._fd = fd
        self._dotlock = path + ".lock"
        self._dotlocks = dotlocks
        self._ours: tuple[int, int] | None = None  # device and inode of the dotlock we made
        self.warning = ""  # set where the dotlock could not be made and fcntl has to do

    def acquire(self, seconds: float, pause: Pause) -> Refusal | None:
        """Take both locks within `seconds`, or neither."""
        try:
            if wait_for(self._try, seconds, pause):
                return None
        except OSError as error:
            return of_error(error, f"spool lock {self._dotlock}")
        return Refusal(IN_USE, f"spool still locked after {seconds:g} seconds")

    def release(self) -> None:
        """Give both back. A dotlock that is no longer the one we made is left alone."""
        ours, self._ours = self._ours, None
        if ours is not None:
            try:
                status = os.lstat(self._dotlock)
                if (status.st_dev, status.st_ino) == ours:
                    os.unlink(self._dotlock)
            except FileNotFoundError:
                pass
            except OSError as error:
                # Others break it when this process has ended.
                self.warning = f"{self._dotlock} cannot be removed ({error.strerror})"
        try:
            unlock_file(self._fd)
        except OSError as error:
            # The lock ends with the descriptor at the latest.
            self.warning = f"the spool cannot be unlocked ({error.strerror})"

    def _try(self) -> bool:
        if not lock_file(self._fd):
            return False
        complete = False
        try:
            complete = self._dotlocks == NO or self._make_dotlock()
        finally:
            if not complete:
                self.release()
        return complete

    def _make_dotlock(self) -> bool:
        """Make the dotlock; True also where this user cannot make one, unless it is required."""
        try:
            self._ours = _make_dotlock(self._dotlock)
        except FileExistsError:
            self._break_if_stale()
            return False
        except OSError as error:
            cannot = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
            if not cannot or self._dotlocks == REQUIRE:
                raise
            self.warning = (
                f"{self._dotlock} cannot be made ({error.strerror}), fcntl alone has to do"
            )
        return True

    def _break_if_stale(self) -> None:
        """Remove a dotlock whose holder is dead, or that is older than any holder should be.

        The fcntl lock is ours meanwhile, so no other session does the same at this moment.
        """
        try:
            found = os.lstat(self._dotlock)
            if time() - found.st_mtime <= STALE_AFTER and not _holder_is_dead(self._dotlock):
                return
            again = os.lstat(self._dotlock)
            if (again.st_ino, again.st_mtime_ns) == (found.st_ino, found.st_mtime_ns):
                os.unlink(self._dotlock)
        except FileNotFoundError:
            pass  # given back in the meantime


def _make_dotlock(path: str) -> tuple[int, int]:
    """Make a dotlock that names this process, as liblockfile's do; returns its device and inode.

    Where the file system can, it is there with its content or not at all: a crash leaves none that
    names nobody, and blocks all for five minutes. Raises OSError, FileExistsError if it exists.
    """
    try:
        flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
        fd = os.open(os.path.dirname(path), flags, 0o644)
    except OSError as error:
        if error.errno not in NO_UNNAMED:
            raise
        return _make_named_dotlock(path)
    try:
        _write_holder(fd)
        try:
            # With a descriptor it is linkat(2), which follows the link (open(2), O_TMPFILE).
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
        except FileNotFoundError:  # no /proc
            return _make_named_dotlock(path)
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino


def _make_named_dotlock(path: str) -> tuple[int, int]:
    # O_EXCL is atomic on NFS too, since version 3.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o644)
    try:
        _write_holder(fd)
        status = os.fstat(fd)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino


def _write_holder(fd: int) -> None:
    """On a full disk the file stays empty, and locks all the same."""
    try:
        os.write(fd, b"%d\n" % os.getpid())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _holder_is_dead(dotlock: str) -> bool:
    """Does the dotlock name a process that does not exist? Not so if it names none."""
    try:
        fd = os.open(dotlock, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return False
    try:
        holder = os.read(fd, 16).strip()
    finally:
        os.close(fd)
    if not holder.isdigit() or int(holder) == 0:
        return False  # procmail writes 0
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # somebody else's, so alive; or no pid of this system
    return False
