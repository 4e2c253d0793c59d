"""The dotlock: a file `SPOOL.lock` that keeps other programs away from a spool while it exists.

Whoever creates the name has the lock. A process that dies leaves the file behind. The next program
must tell a dead lock from a held one, and a lock file from another file with such a name.

- The lock is created with its content in one step: a file without a name (or with another name) is
  written and then linked, as liblockfile does; a link is atomic on NFS, too. So a crash leaves no
  lock that names no process. Only without hard links is the lock created first and written then.
- A lock of ours from this host, boot and pid namespace is broken at once if its process is gone.
  Any other lock is broken by age alone (`STALE_AFTER`), as liblockfile does. The file system's
  clock tells the age: the time of a file just created beside the lock, minus the time of the lock.
  That clock may be another host's, and our own may be wrong; our own counts only if no file can be
  created there. A process that works for long refreshes its lock.
- Only what is certainly a lock is unlinked. It is not unlinked under its name, since another file
  may take the name between the look and the unlink. It is renamed to a name that nobody knows, and
  looked at again: it must be the same file with the same content, and nobody may have it open for
  writing. Then it is unlinked; otherwise it is linked back. We remove our own lock in the same way,
  for an MTA may take it for a mailbox and deliver to it. Only if there is no room for another name
  (a full disk, a name that becomes too long) is the lock unlinked under its own.
- If we cannot create a dotlock, we still wait for a fresh one of another program.
"""

from __future__ import annotations

import errno
import os
from time import time

from tpop3d.mailspool.lockfile import STALE_AFTER, Seen, here, is_dead, look
from tpop3d.system import reasons
from tpop3d.system.refusal import Refusal

NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # O_TMPFILE is missing
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # link(2) is missing
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Errors that only mean that we cannot create a dotlock here.
CANNOT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, *NO_SPACE)
MAKING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Dotlock:
    """One dotlock: creates, refreshes and removes ours; breaks a stale one.

    `is_local`: is the file system of this host alone? Then it knows whether a file is open.
    """

    def __init__(self, path: str, is_local: bool) -> None:
        self.path = path
        self._is_local = is_local
        self._ours: Seen | None = None  # the lock that we have created
        self._left: Seen | None = None  # a lock that we have created and could not remove
        self._clock: float | None = None  # the file system's time at the last try
        self._here = b""  # the lines behind the pid: host, boot, pid namespace

    # Each step is a decision on what the one before has found: apart, they would say less.
    def take(self) -> bool | Refusal:  # noqa: C901
        """Make the lock. False: somebody has it. A refusal: it can be neither made nor removed, so
        it is no use to wait. Raises OSError."""
        gone: bool | Refusal = True
        for _ in range(2):  # the second try is for when a file in the way has been removed
            self._clock = None
            cannot = None
            try:
                self._make()
                return True
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in CANNOT:
                    raise
                cannot = Refusal(f"{self.path} cannot be made ({reasons.why(error)})")
            seen = look(self.path)
            if seen is None and cannot:
                return cannot
            if seen is None:
                continue  # it was removed at this moment
            if self._is(self._left, seen):
                self._ours = self._left
                self.refresh()
                return True
            if not seen.is_none and not self._is_stale(seen):
                return False
            if not seen.is_lock:
                why = "is in the way, is not certainly a lock, and is left alone"
                return Refusal(f"{self.path} {why}")
            gone = self._take_away(seen)
            if isinstance(gone, Refusal):
                return gone
        return False if gone else Refusal(f"{self.path} is old, and somebody writes to it")

    def refresh(self) -> None:
        """Set the time of our lock to now, so that nobody takes it for stale."""
        try:
            if self._is(self._ours, look(self.path)):
                os.utime(self.path, follow_symlinks=False)
        except OSError:
            pass  # others see its true age

    def remove(self) -> str:
        """Remove the lock if it is still the one that we have created; returns a warning, or ""."""
        ours, self._ours, self._left = self._ours, None, None
        if ours is None:
            return ""
        gone: bool | Refusal = False
        try:
            # The closer look comes later, at a name that nobody else knows.
            is_untouched = _is_untouched(os.lstat(self.path), ours.status)
            seen = ours if is_untouched else look(self.path)
            if seen is None or not _may_be(seen, ours):
                return ""  # another program has broken it, and may have created its own
            if self._is(ours, seen):
                gone = self._take_away(seen)
        except FileNotFoundError:
            return ""
        except OSError as error:
            gone = Refusal(f"{self.path} cannot be removed ({error.strerror})")
        if gone is True:
            return ""
        self._left = ours
        if isinstance(gone, Refusal):
            return gone.reason
        return f"{self.path} was our lock, and somebody writes to it: it is left alone"

    @staticmethod
    def _is(ours: Seen | None, seen: Seen | None) -> bool:
        if ours is None or seen is None:
            return False
        return ours.inode == seen.inode and ours.content == seen.content

    def _is_stale(self, seen: Seen) -> bool:
        if seen.content is not None and is_dead(seen.content):
            return True
        now = time() if self._clock is None else self._clock
        return now - seen.touched > STALE_AFTER

    def _take_away(self, seen: Seen) -> bool | Refusal:
        """Unlink the file that was seen. False: by then it was another file, or somebody has it
        open to write to it; it keeps its name."""
        side = self._another_name()
        try:
            os.rename(self.path, side)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (*NO_SPACE, errno.ENAMETOOLONG):
                return Refusal(f"{self.path} cannot be removed ({error.strerror})")
            side = self.path  # there is no room for another name
        try:
            if seen.is_still(look(side, alone=self._is_local)):
                os.unlink(side)
                return True
            if side != self.path:
                os.link(side, self.path, follow_symlinks=False)
                os.unlink(side)
        except OSError as error:
            was = "" if side == self.path else f", which was {self.path},"
            return Refusal(f"{side}{was} cannot be removed or put back ({error.strerror})")
        return False

    def _another_name(self) -> str:
        return f"{self.path}.{os.urandom(8).hex()}"

    def _make(self) -> None:
        """Create the lock. Raises OSError: FileExistsError if its name is taken."""
        try:
            flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
            fd = os.open(os.path.dirname(self.path), flags, 0o644)
        except OSError as error:
            if error.errno not in NO_UNNAMED:
                raise
            self._make_by_name()
            return
        try:
            ours = self._write(fd)
            # `src_dir_fd` makes Python call linkat(2), which follows the link (open(2), O_TMPFILE).
            os.link(f"/proc/self/fd/{fd}", self.path, src_dir_fd=fd)
        except FileNotFoundError:  # no /proc
            self._make_by_name()
            return
        finally:
            os.close(fd)
        self._ours = ours

    def _make_by_name(self) -> None:
        """Create the lock under another name first, if files without a name are not supported."""
        draft = self._another_name()
        fd = os.open(draft, MAKING, 0o644)
        try:
            ours = self._write(fd)
            self._ours = ours if self._has_linked(draft, fd) else self._make_in_place()
        finally:
            os.close(fd)
            try:
                os.unlink(draft)
            except OSError:
                pass  # a file of that name is in nobody's way

    def _has_linked(self, draft: str, fd: int) -> bool:
        """Link the draft to the lock's name; False if the file system has no hard links."""
        try:
            os.link(draft, self.path)
        except OSError as error:
            if os.fstat(fd).st_nlink == 2:
                return True  # done, and the answer of an NFS server was lost
            if error.errno not in NO_LINKS:
                raise
            return False
        return True

    def _make_in_place(self) -> Seen:
        fd = os.open(self.path, MAKING, 0o644)
        try:
            return self._write(fd)
        except OSError:
            os.unlink(self.path)
            raise
        finally:
            os.close(fd)

    def _write(self, fd: int) -> Seen:
        """Write who we are into the lock, and learn the file system's time.

        On a full disk the file stays empty, and is a lock all the same.
        """
        self._here = self._here or here()
        content = b"%d\n%b" % (os.getpid(), self._here)
        try:
            content = content[: os.write(fd, content)]
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            content = b""
        status = os.fstat(fd)
        self._clock = status.st_mtime
        return Seen(status, content)


def _is_untouched(now: os.stat_result, before: os.stat_result) -> bool:
    return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) == (
        before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns,
    )  # fmt: skip


def _may_be(seen: Seen, ours: Seen) -> bool:
    """Is this our lock, or our lock with something appended? The inode number alone does not tell:
    the file system may give it to the next file."""
    if seen.content is None or ours.content is None:
        return seen.inode == ours.inode
    return seen.inode == ours.inode and seen.content.startswith(ours.content)
