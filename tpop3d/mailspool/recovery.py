"""Carrying out a journal's plan, at once or after a crash; and what to make of a journal found.

Whoever calls has the session lock and the spool locks. The spool may hold more mail than when the
plan was made: it goes with the rest.
"""

from __future__ import annotations

import os
from binascii import crc32

from tpop3d.mailspool import idfile
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool.journal import Invalid, Journal, Plan
from tpop3d.mailspool.scan import do_nothing
from tpop3d.system.files import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Blocks that are neither old nor new: where a write was cut short. With more of them, and none
# that is certainly new, somebody else has been at work.
MAX_TORN = 2
UNFIT = "journal.unfit"
NO_SPOOL = "no-spool"

# What a spool is to a journal.
UNCUT = "uncut"  # as it was, or as it shall be but for its end, or between
CUT = "cut"  # as it shall be
STRANGE = "strange"


def carry_out(
    journal: Journal, spool: int, directory: str, refresh: Callable[[], None] = do_nothing
) -> None:
    """Make of the spool what the journal says, and remove the journal. `refresh` is called for each
    chunk.

    Raises OSError; then the journal is there, and the next one to open the spool goes on. It is
    not interrupted by signals that only set a flag.
    """
    plan = journal.plan
    while True:
        position = plan.first
        while position < plan.final:
            # A block is never written by two writes.
            end = min(plan.final, (position // journals.CHUNK + 1) * journals.CHUNK)
            journals.write_all(spool, journal.read(position, end), position)
            position = end
            refresh()
        os.fsync(spool)
        size = os.fstat(spool).st_size
        if size <= plan.size:
            break
        # Somebody has delivered, before we came or without a lock.
        journal.become(_with_more(journal, spool, size, directory, refresh))
        plan = journal.plan
    os.ftruncate(spool, plan.final)
    _finish(spool, directory)


def _finish(spool: int, directory: str) -> None:
    """The spool is as it shall be. Raises OSError."""
    os.fsync(spool)
    idfile.settle(directory)
    journals.remove(directory)


def _with_more(
    journal: Journal, spool: int, size: int, directory: str, refresh: Callable[[], None]
) -> Journal:
    """The same plan for a spool that has grown, written down in place of the other."""
    old = journal.plan
    plan = Plan(old.path, old.inode, old.first, old.final + size - old.size, size)
    pieces = [journal.kept(), (spool, old.size, size)]
    return journals.write(directory, plan, spool, pieces, refresh)


class RecoveryOutcome:
    """What was made of a journal that was found: a line for the log, whether it is alarming, and
    whether the journal waits for better times."""

    __slots__ = ("is_alarming", "is_waiting", "line")

    def __init__(self, line: str, is_alarming: bool, is_waiting: bool = False) -> None:
        self.line = line
        self.is_alarming = is_alarming
        self.is_waiting = is_waiting


def recover(
    spool: int, directory: str, refresh: Callable[[], None] = do_nothing
) -> RecoveryOutcome | None:
    """Finish what a crash has interrupted, if anything.

    A journal that does not fit the spool is put aside. Where there is no spool (-1), it waits for
    it: perhaps what the spool is on was not mounted yet. Raises OSError, also where the journal
    cannot be carried out now.
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
        # Whoever has written it may not have come to that.
        sync_directory(directory)
        if state == CUT:
            _finish(spool, directory)
            return RecoveryOutcome("an expunge that was interrupted had been done", False)
        carry_out(journal, spool, directory, refresh)
        return RecoveryOutcome("an expunge that was interrupted is done", False)
    finally:
        journal.close()


def _waits(directory: str) -> RecoveryOutcome | None:
    """What is made of a journal without a spool. It may be damaged: that is found out in time."""
    if journals.plan(directory) is None:
        idfile.discard(directory)
        return None
    line = "an expunge that was interrupted waits for the spool, which is missing"
    return RecoveryOutcome(line, is_alarming=True, is_waiting=True)


def journaled_path(directory: str) -> str:
    """The path of the spool that a journal is for, as far as that can be told before the spool is
    known; of what is no journal, a path that is no spool's. Raises OSError."""
    try:
        plan = journals.plan(directory)
    except Invalid:
        plan = None
    return plan.path if plan is not None else f"{directory}/{NO_SPOOL}"


def state_of(journal: Journal, spool: int, refresh: Callable[[], None] = do_nothing) -> str:
    """What a spool is to a journal: UNCUT, CUT or STRANGE. Raises OSError."""
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
    # Cut, what follows is mail that came since. Otherwise the old end was changed by somebody.
    new = os.pread(spool, 64, plan.final).lstrip(b"\r\n")
    return CUT if new.startswith(b"From ") or b"From ".startswith(new) else STRANGE


def _has_rest(journal: Journal, spool: int, refresh: Callable[[], None]) -> bool:
    """Is what will be cut as it was?"""
    plan = journal.plan
    if journals.digest(spool, plan.border, plan.size, refresh) != journal.rest:
        return False
    there = journals.read_all(spool, plan.final, plan.border - plan.final)
    # Zeros are of a cut that a power cut has undone: only the size, or only part of the block.
    pairs = zip(there, journal.read(plan.final, plan.border), strict=True)
    return all(octet in (old, 0) for octet, old in pairs)


def _put_aside(directory: str, why: str) -> RecoveryOutcome:
    """Keep a journal under a name that nobody looks for."""
    idfile.discard(directory)
    number = 1
    while os.path.lexists(f"{directory}/{UNFIT}.{number}"):
        number += 1
    os.rename(f"{directory}/{journals.NAME}", f"{directory}/{UNFIT}.{number}")
    sync_directory(directory)
    kept = f"{directory}/{UNFIT}.{number}"
    return RecoveryOutcome(f"a journal was not used, and is kept as {kept}: {why}", True)
