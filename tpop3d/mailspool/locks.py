"""The two kinds of lock: the session lock, and the spool locks that other programs honour.

The session lock keeps two POP sessions apart for as long as they last. The spool locks keep
deliverers out, and are held only while the spool is scanned and while it is expunged: fcntl, flock,
then dotlock (Debian Policy 11.6 wants the first and the last in this order; some deliverers take
flock alone, which does not see the others). Who takes them in another order cannot be waited for
with one of them in hand: either all are taken at once, or none.

Both fcntl locks are of the open-file-description kind (fcntl_locking(2)): they conflict with
everybody's POSIX locks, and are not lost when some other descriptor of the file is closed.

Where the file system makes an fcntl lock of flock(2), as NFS does, ours would keep us out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from time import monotonic

from tpop3d.mailspool import statefile
from tpop3d.mailspool.dotlock import Dotlock
from tpop3d.mailspool.failures import of_error
from tpop3d.system.refusal import IN_USE, TEMPORARY, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Done = TypeVar("Done")

    # Sleep for so many seconds; True: the session is told to end, so stop waiting.
    Pause = Callable[[float], bool]

SESSION_LOCK_GRACE = 1.0  # seconds; a client that reconnects at once finds its old session ending
BACK_OFF = 0.05, 0.2  # seconds, at least and at most, between two tries
# Dotlocks: made where they can be made; made, or the spool is not touched; not made.
TRY, REQUIRE, NO = "try", "require", "no"
REFRESH_AFTER = 30.0  # seconds; a tenth of the age at which a dotlock is broken
HELD = (errno.EAGAIN, errno.EACCES)  # what F_OFD_SETLK says of a lock that somebody else has
# What flock(2) says of a file system that has no such locks.
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
# File systems whose files others change, too, and whose locks are a server's.
REMOTE = (b"nfs", b"nfs4", b"cifs", b"smb3", b"smbfs", b"9p", b"afs", b"lustre")


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
        refusal = Refusal("another POP3 session has the maildrop", IN_USE)
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
    """fcntl, flock, then dotlock, all or nothing, on one spool; as often as need be.

    `dotlocks` is one of TRY, REQUIRE, NO; `flock`: is there to be one, where that can be? For
    `take_group` see `Terms`.
    """

    def __init__(
        self,
        fd: int,
        path: str,
        dotlocks: str,
        flock: bool = True,
        take_group: Callable[[bool], None] | None = None,
    ) -> None:
        is_local = _is_local(fd)
        self._fd = fd
        self._dotlock = Dotlock(path + ".lock", is_local)
        self._dotlocks = dotlocks
        self._take_group = take_group or _take_none
        self._flock = flock and is_local
        self._refused: Refusal | None = None
        self._awaited = ""  # which lock somebody has
        self._refreshed = 0.0
        self._told: set[str] = set()
        self.warning = ""  # of the last `acquire` and `release`; each once

    def acquire(self, seconds: float, pause: Pause) -> Refusal | None:
        """Take all of them within `seconds`, or none."""
        self.warning = ""
        self._refused = None
        try:
            if wait_for(self._try, seconds, pause):
                self._refreshed = monotonic()
                return self._refused
        except OSError as error:
            return of_error(error, f"spool lock {self._dotlock.path}")
        return Refusal(f"spool still locked after {seconds:g} seconds ({self._awaited})", IN_USE)

    def refresh(self) -> None:
        """Say that the dotlock is still held. To be called often; it does little."""
        now = monotonic()
        if now - self._refreshed >= REFRESH_AFTER:
            self._refreshed = now
            self._dotlock.refresh()

    def release(self) -> None:
        """Give all of them back. A dotlock that is no longer the one we made is left alone."""
        if warning := self._with_group(self._dotlock.remove):
            self._warn(warning)
        for unlock in (_unflock_file, unlock_file) if self._flock else (unlock_file,):
            try:
                unlock(self._fd)
            except OSError as error:
                # The locks end with the descriptor at the latest.
                self._warn(f"the spool cannot be unlocked ({error.strerror})")

    def _try(self) -> bool:
        """True: all are taken, or it is no use to wait for them."""
        self._awaited = "fcntl"
        if not lock_file(self._fd):
            return False
        complete = False
        try:
            self._awaited = "flock"
            if not self._flock or flock_file(self._fd):
                self._awaited = self._dotlock.path
                complete = self._dotlocks == NO or self._take_dotlock()
        finally:
            if not complete:
                self.release()
        return complete or self._refused is not None

    def _with_group(self, act: Callable[[], Done]) -> Done:
        """Do something as who may make and remove dotlocks."""
        self._take_group(True)
        try:
            return act()
        finally:
            self._take_group(False)

    def _take_dotlock(self) -> bool:
        """Make the dotlock; True also where there can be none, unless it is required."""
        taken = self._with_group(self._dotlock.take)
        if isinstance(taken, bool):
            return taken
        if self._dotlocks == REQUIRE:
            self._refused = Refusal(f"{taken.reason}, and a dotlock is required", TEMPORARY)
            return False
        rest = "fcntl and flock have" if self._flock else "fcntl has"
        self._warn(f"{taken.reason}; {rest} to do")
        return True

    def _warn(self, warning: str) -> None:
        if warning not in self._told:
            self._told.add(warning)
            self.warning = f"{self.warning}; {warning}" if self.warning else warning


def _take_none(is_wanted: bool) -> None:
    """Where no group has to be taken."""


def flock_file(fd: int) -> bool:
    """Take flock(2) exclusively, without waiting; True also where the file system has none. False:
    somebody else has it. Raises OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        if error.errno not in NO_FLOCK:
            raise
    return True


def _unflock_file(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise


def _is_local(fd: int) -> bool:
    """Is a file on a file system of this host's? True also where nobody can say: some that are
    have device numbers by which they cannot be found (btrfs).

    Python has no statfs(2).
    """
    device = os.fstat(fd).st_dev
    if os.major(device):
        return True  # on a disk
    wanted = b"0:%d" % os.minor(device)
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            for line in mounts:
                # Number, parent, device, ... - type, ... (proc_pid_mountinfo(5))
                mount, _, rest = line.partition(b" - ")
                if mount.split(b" ", 3)[2] == wanted:
                    return rest.partition(b" ")[0] not in REMOTE
    except OSError:
        pass
    return True
