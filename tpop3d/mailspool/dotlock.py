"""The dotlock: a file beside a spool that keeps others away while it is there (`spool.lock`).

What makes one is that its name was free. Whoever dies leaves it behind, and the next one has to
tell a lock that is dead from one that is held, and a lock from a file that only has such a name.

- It is made with its content, in one step: a file without a name (or with another one) is written
  and then linked (as liblockfile does, which is also atomic on NFS). A crash leaves none that names
  nobody.
- One of ours, of here, whose process is gone is broken at once. Any other is broken by age alone,
  as liblockfile does it. The age is what the file system says: the time of a file that was made
  just now beside it, less the lock's. Its clock may be another host's, and ours may be wrong. Where
  no file can be made ours is all there is. Whoever works for long refreshes its lock.
- Nothing is unlinked that is not certainly a lock. It is not unlinked by its name either, since
  another file may take that between a look and the unlink: it gets a name first that nobody knows,
  is looked at again there (it must be the same file, with the same content, and nobody may have it
  open for writing), and only then unlinked. Otherwise it is linked back. This holds for breaking
  others' and for giving back ours: an MTA may take that for a mailbox, too.
- Where none can be made, a fresh one of somebody else is waited for all the same.
"""

from __future__ import annotations

import errno
import os
from time import time

from tpop3d.mailspool.lockfile import STALE_AFTER, Seen, here, is_dead, look
from tpop3d.system import reasons
from tpop3d.system.refusal import Refusal

NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # of O_TMPFILE
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # of link(2)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Why none can be made here, though nothing is broken.
CANNOT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, *NO_SPACE)
MAKING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Dotlock:
    """One dotlock: made, refreshed and removed by us, or waited for and broken.

    `is_local`: its file system knows who has a file open, since all who have are of this host.
    """

    def __init__(self, path: str, is_local: bool) -> None:
        self.path = path
        self._is_local = is_local
        self._ours: Seen | None = None  # the one that we have made
        self._left: Seen | None = None  # one that we have made, and could not remove
        self._clock: float | None = None  # the file system's time, at the last try
        self._here = b""  # what it says of where it was made

    def take(self) -> bool | Refusal:
        """Make the lock. False: somebody has it. A refusal: it can be neither made nor removed, so
        it is no use to wait. Raises OSError."""
        gone: bool | Refusal = True
        for _ in range(2):  # the second time after what was in the way is gone
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
                continue  # given back at this moment
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
        """Say that it is still held, so that nobody takes it for stale."""
        try:
            if self._is(self._ours, look(self.path)):
                os.utime(self.path, follow_symlinks=False)
        except OSError:
            pass  # it looks as old as it is

    def remove(self) -> str:
        """Give it back, if it is the one that we have made; returns a warning, or ""."""
        ours, self._ours, self._left = self._ours, None, None
        if ours is None:
            return ""
        gone: bool | Refusal = False
        try:
            # A close look comes later, where nobody knows its name.
            is_untouched = _is_untouched(os.lstat(self.path), ours.status)
            seen = ours if is_untouched else look(self.path)
            if seen is None or not _may_be(seen, ours):
                return ""  # somebody has broken it, and may have another there
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
        """Unlink what was seen. False: by then it was another file, which is where it was."""
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
        """Raises OSError, FileExistsError if it exists."""
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
            # With a descriptor it is linkat(2), which follows the link (open(2), O_TMPFILE).
            os.link(f"/proc/self/fd/{fd}", self.path, src_dir_fd=fd)
        except FileNotFoundError:  # no /proc
            self._make_by_name()
            return
        finally:
            os.close(fd)
        self._ours = ours

    def _make_by_name(self) -> None:
        """Where there are no files without a name: make it by another name first."""
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
                pass  # it is in nobody's way

    def _has_linked(self, draft: str, fd: int) -> bool:
        """Give it the right name; False where there are no hard links."""
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
        """Say who we are, and learn what time it is there. On a full disk the file stays empty,
        and locks all the same."""
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
    """Is this the lock that we have made, or what has become of it? A number of an inode may be
    given to the next file."""
    if seen.content is None or ours.content is None:
        return seen.inode == ours.inode
    return seen.inode == ours.inode and seen.content.startswith(ours.content)
