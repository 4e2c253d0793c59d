"""Carries out a journal, at once or after a crash, and judges a journal that it finds.

The caller has the session lock and the spool locks. Each session looks for a journal before it
scans the spool, and so does `--recover` for all mailboxes. A journal that was found fits the spool
or does not; nothing is written to the spool before that is known. journal.py explains the offsets
and the steps. Each block of the spool in first..final is compared with the journal:

    new    it is what the spool shall hold there
    old    its CRC-32 is the one in the table
    torn   neither: a crash has cut a write short

and the end of the spool (final..size) is either as it was or not. Then the spool is

    first..final               behind final               state    so we
    -------------------------  -------------------------  -------  --------------------------
    new, old, and at most      as it was; perhaps more    UNCUT    write the kept octets once
    MAX_TORN torn blocks       mail behind size                    more, and cut
    any, and at least one is   the same                   UNCUT    the same
    new and was not old
    all new                    nothing, or new messages   CUT      remove the journal
    anything else, another inode, or shorter than final   STRANGE  put the journal aside

A cut that a power cut has undone may leave zeros between `final` and the end of its block; they
count as "as it was". STRANGE means that somebody else has changed the spool since: its owner has
put another file in place, or a mail program has edited it. Then the spool counts, the journal is
kept as `journal.unfit.N` for a person to look at, and the log says so.

Without a spool the journal stays where it is: perhaps the file system is not mounted yet.
"""

from __future__ import annotations

import os
from binascii import crc32

from tpop3d.mailspool import idfile
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool.journal import Invalid, Journal, Plan
from tpop3d.mailspool.scan import do_nothing
from tpop3d.system.io import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A crash tears few blocks. With more torn blocks, and none that is certainly new, somebody else has
# written to the spool.
MAX_TORN = 2
UNFIT = "journal.unfit"
NO_SPOOL = "no-spool"

# The state of a spool, compared with a journal.
UNCUT = "uncut"  # the expunge has not begun, or is under way, or only the cut is missing
CUT = "cut"  # the expunge is done
STRANGE = "strange"  # the journal does not fit


def carry_out(
    journal: Journal, spool: int, directory: str, refresh: Callable[[], None] = do_nothing
) -> None:
    """Change the spool as the journal says, and remove the journal. `refresh` is called for each
    chunk.

    Raises OSError; then the journal is still there, and the next session finishes it. Signals that
    only set a flag do not interrupt it.
    """
    plan = journal.plan
    while True:
        position = plan.first
        while position < plan.final:
            # Chunks end where blocks end, so no block is written by two writes.
            end = min(plan.final, (position // journals.CHUNK + 1) * journals.CHUNK)
            journals.write_all(spool, journal.read(position, end), position)
            position = end
            refresh()
        os.fsync(spool)
        size = os.fstat(spool).st_size
        if size <= plan.size:
            break
        # Somebody has delivered: before we had the locks, or without them.
        journal.become(_with_more(journal, spool, size, directory, refresh))
        plan = journal.plan
    os.ftruncate(spool, plan.final)
    _finish(spool, directory)


def _finish(spool: int, directory: str) -> None:
    """Put the prepared ids in force and remove the journal: the spool is as it shall be. Raises
    OSError."""
    os.fsync(spool)
    idfile.settle(directory)
    journals.remove(directory)


def _with_more(
    journal: Journal, spool: int, size: int, directory: str, refresh: Callable[[], None]
) -> Journal:
    """Write a journal for a spool that has grown, in place of the old one; returns it. Raises
    OSError."""
    old = journal.plan
    plan = Plan(old.path, old.inode, old.first, old.final + size - old.size, size)
    pieces = [journal.kept(), (spool, old.size, size)]
    return journals.write(directory, plan, spool, pieces, refresh)


class RecoveryOutcome:
    """What became of a journal that was found. `line` is for the log. `is_alarming`: must somebody
    look at it? `is_waiting`: does the journal wait for a missing spool?"""

    __slots__ = ("is_alarming", "is_waiting", "line")

    def __init__(self, line: str, is_alarming: bool, is_waiting: bool = False) -> None:
        self.line = line
        self.is_alarming = is_alarming
        self.is_waiting = is_waiting


def recover(
    spool: int, directory: str, refresh: Callable[[], None] = do_nothing
) -> RecoveryOutcome | None:
    """Finish an expunge that a crash has interrupted; returns None if there was none.

    `spool` is a descriptor, or -1 if the spool is missing: then the journal waits. A journal that
    does not fit is put aside. Raises OSError, also if the journal cannot be carried out now.
    """
    journals.discard(directory)
    try:
        if spool < 0:
            return _waits(directory)
        journal = journals.read(directory, os.fstat(spool).st_size, refresh)
    except Invalid as error:
        return _put_aside(directory, str(error))
    if journal is None:
        idfile.discard(directory)
        return None
    try:
        state = state_of(journal, spool, refresh)
        if state == STRANGE:
            return _put_aside(directory, "the spool is not as it was when this was written")
        # The process that has renamed the journal may not have come to this.
        sync_directory(directory)
        if state == CUT:
            _finish(spool, directory)
            return RecoveryOutcome("an expunge that was interrupted had been done", False)
        carry_out(journal, spool, directory, refresh)
        return RecoveryOutcome("an expunge that was interrupted is done", False)
    finally:
        journal.close()


def _waits(directory: str) -> RecoveryOutcome | None:
    """Leave a journal where it is while its spool is missing. If it is damaged, that is found when
    the spool is there."""
    if journals.plan(directory) is None:
        idfile.discard(directory)
        return None
    line = "an expunge that was interrupted waits for the spool, which is missing"
    return RecoveryOutcome(line, is_alarming=True, is_waiting=True)


def journaled_path(directory: str) -> str:
    """The path of the spool that the header of a journal names. Its checksum is not checked, for
    that needs the spool. Without a journal it is a path at which no spool is. Raises OSError."""
    try:
        plan = journals.plan(directory)
    except Invalid:
        plan = None
    return plan.path if plan is not None else f"{directory}/{NO_SPOOL}"


def state_of(journal: Journal, spool: int, refresh: Callable[[], None] = do_nothing) -> str:
    """Compare a spool with a journal; returns UNCUT, CUT or STRANGE. Raises OSError."""
    plan = journal.plan
    status = os.fstat(spool)
    if status.st_ino != plan.inode or status.st_size < plan.final:
        return STRANGE
    torn = differing = 0
    has_begun = False
    for number, (start, end) in enumerate(journals.borders(plan.first, plan.final)):
        refresh()
        there = journals.read_all(spool, start, end - start)
        is_old = crc32(there) == journal.table[number]
        if there == journal.read(start, end):
            has_begun = has_begun or not is_old
            continue
        differing += 1
        torn += not is_old
    if status.st_size >= plan.size and _has_rest(journal, spool, refresh):
        return UNCUT if torn <= MAX_TORN or has_begun else STRANGE
    if differing:
        return STRANGE
    # Behind the cut there is only mail that came since. Anything else is an old end that somebody
    # has changed.
    new = os.pread(spool, 64, plan.final).lstrip(b"\r\n")
    return CUT if new.startswith(b"From ") or b"From ".startswith(new) else STRANGE


def _has_rest(journal: Journal, spool: int, refresh: Callable[[], None]) -> bool:
    """Is the end of the spool that will be cut off as it was?"""
    plan = journal.plan
    if journals.digest(spool, plan.border, plan.size, refresh) != journal.rest:
        return False
    there = journals.read_all(spool, plan.final, plan.border - plan.final)
    # A power cut may undo a cut, but for zeros in the block of `final`.
    pairs = zip(there, journal.read(plan.final, plan.border), strict=True)
    return all(octet in (old, 0) for octet, old in pairs)


def _put_aside(directory: str, why: str) -> RecoveryOutcome:
    """Rename a journal so that no session finds it again, and a person does. Raises OSError."""
    idfile.discard(directory)
    number = 1
    while os.path.lexists(f"{directory}/{UNFIT}.{number}"):
        number += 1
    os.rename(f"{directory}/{journals.NAME}", f"{directory}/{UNFIT}.{number}")
    sync_directory(directory)
    kept = f"{directory}/{UNFIT}.{number}"
    return RecoveryOutcome(f"a journal was not used, and is kept as {kept}: {why}", True)
