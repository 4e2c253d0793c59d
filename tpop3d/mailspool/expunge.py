"""Removing messages from a spool in place.

The spool keeps its inode and its name, because other programs hold both. What is kept moves
towards the front, then the end is cut off. Whoever calls has the session lock and the spool locks.
"""

from __future__ import annotations

import errno
import os

from tpop3d.mailspool import idfile
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool.journal import BLOCK, Plan
from tpop3d.mailspool.recovery import carry_out
from tpop3d.mailspool.scan import do_nothing

SECOND = 1_000_000_000  # nanoseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Done = TypeVar("Done")


class Unfinished(Exception):
    """The journal is written, and could not be carried out now: the next one to open the spool
    does so. Nothing is lost."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def expunge(
    spool: int,
    path: str,
    directory: str,
    first: int,
    ranges: list[tuple[int, int]],
    size: int,
    is_prepared: bool,
    refresh: Callable[[], None] = do_nothing,
) -> None:
    """Move `ranges` of a spool of `size` octets together, to `first` and on, and cut it after them.
    `is_prepared`: with that goes what is remembered of ids, which is written down. `refresh` is
    called now and then.

    Raises OSError when nothing was changed, and nothing will be; `Unfinished` when it is only a
    matter of time. Without ranges it is a truncate, which needs no space on the disk, and no
    journal where there can be none.
    """
    final = first + sum(end - start for start, end in ranges)
    if final == first and final % BLOCK == 0 and not is_prepared:
        _cut(spool, final)
        return
    # A write that cannot succeed (quota, file size limit, read-only) fails here, on an octet
    # that is written as it was, before there is a journal.
    if final > first:
        os.pwrite(spool, os.pread(spool, 1, final - 1), final - 1)
    plan = Plan(path, os.fstat(spool).st_ino, first, final, size)
    try:
        pieces = [(spool, *one) for one in ranges]
        journal = _with_memory(lambda: journals.write(directory, plan, spool, pieces, refresh))
    except OSError as error:
        # Perhaps it has its name already, and only the directory could not be fsynced.
        if not journals.withdraw(directory):
            raise Unfinished(error) from error
        if final > first:
            idfile.discard(directory)
            raise
        # In the worst case a power cut leaves zeros in what was to be removed, or something is
        # remembered of ids that are gone.
        _cut(spool, final)
        _settle(directory)
        return
    try:
        _with_memory(lambda: carry_out(journal, spool, directory, refresh))
    except OSError as error:
        raise Unfinished(error) from error
    finally:
        journal.close()


def _settle(directory: str) -> None:
    try:
        idfile.settle(directory)
    except OSError:
        idfile.discard(directory)


def _with_memory(act: Callable[[], Done]) -> Done:
    """Do something; what wants more memory than there is fails as a system call does."""
    try:
        return act()
    except MemoryError:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None


def keep_new_mail_flag(spool: int, before: os.stat_result) -> None:
    """There is new mail, to shells and mail programs, where a spool's mtime is later than its
    atime. Leave that as it was when the spool had the status `before`, if it was written to since;
    an empty one has none.

    "None" is an atime of the second before the last write, and an mtime of the second before that:
    programs compare nanoseconds or whole seconds, and mail that comes still in the same second is
    new. The seconds are those of the file system's clock.
    """
    try:
        now = os.fstat(spool)
        if (now.st_mtime_ns, now.st_size) == (before.st_mtime_ns, before.st_size):
            return
        if now.st_size and before.st_mtime_ns > before.st_atime_ns:
            return  # the write has made it so
        second = now.st_mtime_ns // SECOND
        os.utime(spool, ns=((second - 1) * SECOND, (second - 2) * SECOND))
    except OSError:
        pass  # no mail depends on it


def _cut(spool: int, final: int) -> None:
    os.ftruncate(spool, final)
    try:
        os.fsync(spool)
    except OSError as error:
        raise Unfinished(error) from error
