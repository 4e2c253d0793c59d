"""The files in a mailbox's state directory: index and journal, and whether they fit the spool."""

from __future__ import annotations

import os
import stat

from tpop3d.mailspool import index as indexes
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool import recovery
from tpop3d.mailspool.journal import Invalid, Unfit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.mailspool.idfile import Given
    from tpop3d.mailspool.index import Known

# The state of an index.
ABSENT = "absent"
CURRENT = "current"
BEHIND = "behind"  # a session brings it up to date
ODD = "odd"  # a session ignores it
UNKNOWN = "unknown"
# The state of a journal.
NONE = "none"
UNFINISHED = "unfinished"
DONE = "done"
UNFIT = "unfit"
DAMAGED = "damaged"
WAITING = "waiting"
STATES = {
    recovery.UNCUT: (
        UNFINISHED,
        "the next session finishes it, and shows fewer messages",
    ),
    recovery.CUT: (DONE, "the spool is as it says; the next session removes it"),
    recovery.STRANGE: (UNFIT, "it does not fit the spool; the next session puts it aside"),
}


class FoundFile:
    """One of our files: its state, the reason for that, and its size in octets."""

    __slots__ = ("octets", "reason", "state")

    def __init__(self, state: str, reason: str = "", octets: int = 0) -> None:
        self.state = state
        self.reason = reason
        self.octets = octets


def index(
    place: str, spool: int, status: os.stat_result, given: Given
) -> tuple[FoundFile, Known | None]:
    """Look at the index of a spool; returns it, and its content if a session would use it."""
    try:
        there = os.lstat(f"{place}/{indexes.NAME}")
    except FileNotFoundError:
        return FoundFile(ABSENT), None
    except OSError as error:
        return FoundFile(UNKNOWN, error.strerror or ""), None
    known = indexes.load(place, spool, status, given) if stat.S_ISREG(there.st_mode) else None
    if known is None:
        reason = "damaged, or not of this spool as it is; a session takes no notice of it"
        return FoundFile(ODD, reason, there.st_size), None
    if known.is_current:
        return FoundFile(CURRENT, "", there.st_size), known
    reason = "older than the spool, or about as old; a session brings it up to date"
    return FoundFile(BEHIND, reason, there.st_size), known


def journal(place: str, spool: int) -> FoundFile:
    """Look at the journal of a spool; `spool` is its descriptor, -1 if there is no spool."""
    try:
        octets = os.lstat(f"{place}/{journals.NAME}").st_size
        if spool < 0:
            journals.plan(place)
            return FoundFile(WAITING, "it waits for the spool, which is missing", octets)
        found = journals.read(place, os.fstat(spool).st_size)
    except FileNotFoundError:
        return FoundFile(NONE)
    except Unfit as error:
        return FoundFile(UNFIT, f"{error}; the next session puts it aside", octets)
    except Invalid as error:
        return FoundFile(DAMAGED, f"{error}; the next session puts it aside", octets)
    except OSError as error:
        return FoundFile(UNKNOWN, error.strerror or "")
    if found is None:
        return FoundFile(NONE)
    try:
        return FoundFile(*STATES[recovery.state_of(found, spool)], octets)
    except OSError as error:
        return FoundFile(UNKNOWN, error.strerror or "", octets)
    finally:
        found.close()


def others(place: str) -> list[str]:
    """Return the names of journals that were put aside, or are just being written."""
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return []
    prefixes = (f"{recovery.UNFIT}.", journals.UNDER_WAY)
    return [name for name in names if name.startswith(prefixes)]
