"""The two kinds of lock: the session lock, and the spool locks that other programs honour.

    lock           where                  held                       left by a crash
    -------------  ---------------------  -------------------------  ------------------------
    session lock   fcntl, on the state    from before the spool is   nothing
                   directory's `lock`     opened to the session's
                                          end
    fcntl, flock   on the spool           while the spool is         nothing
                                          recovered and scanned,
    dotlock        a file beside the      and while it is expunged   the file: dotlock.py says
                   spool                                             who may remove it

They are taken in the order of the table, and given back in reverse.

The session lock keeps two POP sessions of a mailbox apart. Only its holder writes journal, ids and
index, so these need no lock of their own. No other program knows this lock, and no process that has
a spool lock waits for it: so the two kinds cannot deadlock.

The spool locks keep deliverers and other mail programs out. Debian Policy 11.6 wants fcntl before
the dotlock. Some deliverers take flock alone, which does not conflict with the other two. Other
programs take them in other orders, and whoever waits for one lock with another in hand may wait for
a program that does the reverse. So `SpoolLocks` never waits with a lock in hand: it tries all of
them, gives back those it has got if one is held, pauses for a random time, and tries again.

Both fcntl locks are of the open-file-description kind (fcntl_locking(2)): they conflict with the
POSIX locks of all programs, and are not lost when another descriptor of the file is closed. They
end with the last descriptor, so they are never stale.

NFS makes an fcntl lock of flock(2) (flock(2)), which would conflict with our own: we take no flock
on file systems of other hosts.
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

    # Sleeps for some seconds; returns True if the session is told to end, and waiting with it.
    Pause = Callable[[float], bool]

SESSION_LOCK_GRACE = 1.0  # seconds; the old session of a client that reconnects at once is ending
BACK_OFF = 0.05, 0.2  # seconds, at least and at most, between two tries
# Dotlocks are created if possible; are required, or the spool is not touched; are not created.
TRY, REQUIRE, NO = "try", "require", "no"
REFRESH_AFTER = 30.0  # seconds; a tenth of the age at which a dotlock is broken
HELD = (errno.EAGAIN, errno.EACCES)  # errors of F_OFD_SETLK: somebody else has the lock
# Errors of flock(2): the file system has no such locks.
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
# File systems that other hosts change, too, and whose locks a server keeps.
REMOTE = (b"nfs", b"nfs4", b"cifs", b"smb3", b"smbfs", b"9p", b"afs", b"lustre")


def lock_file(fd: int) -> bool:
    """Take an fcntl lock on the whole file, exclusively, without waiting.

    Returns False if somebody else has it. Raises OSError if the file system cannot lock.
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
    """Give back the lock that `lock_file` has taken. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def take_session_lock(path: str, pause: Pause) -> int | Refusal:
    """Lock the file `path`, and create it if it is missing; waits for `SESSION_LOCK_GRACE`.

    Returns a descriptor, or a `Refusal`. The lock lasts until the descriptor is closed; it dies
    with its holder, so it is never stale, and the file is never removed.
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
    """Call `attempt` until it returns True, with random pauses, for at most `seconds`.

    `attempt` is called at least once. Returns False if time is over, or if `pause` says to stop.
    """
    deadline = monotonic() + seconds
    shortest, longest = BACK_OFF
    while not attempt():
        left = deadline - monotonic()
        # Two programs that pause for the same time would meet again and again.
        chance = shortest + (longest - shortest) * os.urandom(1)[0] / 255
        if left <= 0 or pause(min(chance, left)):
            return False
    return True


class SpoolLocks:
    """Takes fcntl, flock, then dotlock on one spool, all or none; may be used again and again.

    `dotlocks` is one of TRY, REQUIRE, NO. `flock`: is flock wanted, if the file system is local?
    `take_group` is explained in `spool.Terms`.
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
        self._awaited = ""  # the lock that somebody else has
        self._refreshed = 0.0
        self._told: set[str] = set()
        self.warning = ""  # of the last `acquire` and `release`; each text comes once

    def acquire(self, seconds: float, pause: Pause) -> Refusal | None:
        """Take all locks within `seconds`, or none; returns why not, or None if we have them."""
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
        """Keep the dotlock fresh, every `REFRESH_AFTER` seconds. Is to be called often."""
        now = monotonic()
        if now - self._refreshed >= REFRESH_AFTER:
            self._refreshed = now
            self._dotlock.refresh()

    def release(self) -> None:
        """Give all locks back. A dotlock that is no longer ours is left alone."""
        if warning := self._with_group(self._dotlock.remove):
            self._warn(warning)
        for unlock in (_unflock_file, unlock_file) if self._flock else (unlock_file,):
            try:
                unlock(self._fd)
            except OSError as error:
                # The lock ends with the descriptor at the latest.
                self._warn(f"the spool cannot be unlocked ({error.strerror})")

    def _try(self) -> bool:
        """Try all locks once. True: we have them, or it is no use to wait (`_refused` says why)."""
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
        """Call `act` with the group that may create and remove dotlocks."""
        self._take_group(True)
        try:
            return act()
        finally:
            self._take_group(False)

    def _take_dotlock(self) -> bool:
        """Create the dotlock. True also if it cannot be created and is not required."""
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
    """Take no group: we need none."""


def flock_file(fd: int) -> bool:
    """Take an flock(2) exclusively, without waiting. Raises OSError.

    Returns False if somebody else has it, and True also if the file system has no such locks.
    """
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
    """Is the file on a file system of this host? True also if that cannot be told: some local file
    systems have device numbers that mountinfo does not show (btrfs).

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
