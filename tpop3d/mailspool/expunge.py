"""Removes messages from a spool in place.

The spool keeps its inode and its name, because other programs hold both. The kept octets move
towards the front, then the end is cut off; journal.py explains the steps. The caller has the
session lock and the spool locks.
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
    """The expunge could not be finished now; the next session that opens the spool finishes it.
    Nothing is lost. `error` says why."""

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
    """Move `ranges` of a spool of `size` octets together, to `first` and on, and cut it there.

    `is_prepared`: is there an `ids.next`, which takes effect with the expunge? `refresh` is called
    now and then.

    Raises OSError if nothing was changed and nothing will be, and `Unfinished` if a later session
    finishes it. Without ranges the expunge is a truncation: it needs no space on the disk, and does
    without a journal if none can be written.
    """
    final = first + sum(end - start for start, end in ranges)
    if final == first and final % BLOCK == 0 and not is_prepared:
        _cut(spool, final)
        return
    # Where no write can succeed (quota, file size limit, read-only), this one fails before there
    # is a journal. It writes an octet as it was.
    if final > first:
        os.pwrite(spool, os.pread(spool, 1, final - 1), final - 1)
    plan = Plan(path, os.fstat(spool).st_ino, first, final, size)
    try:
        pieces = [(spool, *one) for one in ranges]
        journal = _with_memory(lambda: journals.write(directory, plan, spool, pieces, refresh))
    except OSError as error:
        # Perhaps the journal has its name already, and only the directory could not be fsynced.
        if not journals.withdraw(directory):
            raise Unfinished(error) from error
        if final > first:
            idfile.discard(directory)
            raise
        # At worst a power cut leaves zeros in place of removed messages, or ids of removed messages
        # stay remembered.
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
    """Call `act`; if it runs out of memory, it fails as a system call does, with ENOMEM."""
    try:
        return act()
    except MemoryError:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None


def keep_new_mail_flag(spool: int, before: os.stat_result) -> None:
    """Set the times of a spool so that it shows new mail if it did so before we wrote to it.

    To shells and mail programs there is new mail if the mtime is later than the atime. `before` is
    the status before we wrote. An empty spool shows no new mail.

    To show none, the atime becomes the second before our last write, and the mtime the second
    before that: programs compare nanoseconds or whole seconds, and mail that comes within the
    second of our write must be new. The seconds are those of the file system's clock.
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
