"""Which of an account's mailboxes is the maildrop.

The mailbox's user looks at them: a user may see less than root, and on a file server more. A
mailbox that cannot be looked at is not missing: otherwise the next one would be served, and nobody
would be told.
"""

from __future__ import annotations

import os
import stat

from tpop3d.mailspool import state_directory
from tpop3d.system import reasons
from tpop3d.system.privileges import apart, for_a_moment
from tpop3d.system.refusal import PERMANENT, TEMPORARY, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpop3d.auth.driver import Account

PATIENCE = 30.0  # seconds, for a process that looks at the mailboxes
LOCK = ".lock"  # what programs append to a mailbox's path for its dotlock, and more behind it
EXISTS, MISSING = "exists", "missing"


class Choice:
    """The maildrop's `path`; the `name` of its state directory, and its `place` once that is made,
    or why it is not; `needs_group`: can its user reach it only with all groups and ids?"""

    __slots__ = ("name", "needs_group", "path", "place")

    def __init__(self, path: str, name: str, *, needs_group: bool) -> None:
        self.path = path
        self.name = name
        self.place: str | Refusal = ""
        self.needs_group = needs_group


def choose(account: Account) -> Choice | Refusal:
    """Choose the first mailbox that exists; else the first, which is empty then.

    This process must be able to become the account's user, and is who it was when this returns.
    Raises `StillPrivileged` and OSError; the process must then end.
    """
    for path in account.mailboxes:
        if is_named_like_a_lock(path):
            why = "named like the lock of another mailbox, which other programs would remove"
            return Refusal(f"{path}: {why}", PERMANENT)
    found = for_a_moment(account.uid, account.gid, lambda: _choose(account))
    is_whole = os.geteuid() != 0
    if isinstance(found, Refusal) and not is_whole:
        # Perhaps the group is needed, for a directory of 0770 root:mail; or FUSE wants to see the
        # user in all ids.
        is_whole = True
        found = _choose_apart(account, found)
    if isinstance(found, Refusal):
        return found
    index, real = found
    name = state_directory.name_of(real, account.uid)
    return Choice(account.mailboxes[index], name, needs_group=is_whole)


def _choose_apart(account: Account, trouble: Refusal) -> tuple[int, str] | Refusal:
    """Call `_choose` in a process that is the user for good; if it tells nothing, return the
    trouble so far."""
    try:
        ids = account.uid, account.gid, account.lock_gid
        octets = apart(*ids, lambda: _encoded(_choose(account)), PATIENCE)
    except OSError:
        return trouble
    what, _, text = os.fsdecode(octets).partition("\0")
    if what in (TEMPORARY, PERMANENT):
        return Refusal(text, what)
    # It comes from a process of the user's, and no more of it is believed.
    if what in map(str, range(len(account.mailboxes))) and text:
        return int(what), text
    return trouble


def is_named_like_a_lock(path: str) -> bool:
    """Could some program take a mailbox of this name for the lock of another?"""
    name = os.path.basename(path)
    return name.endswith(LOCK) or f"{LOCK}." in name


def seen(account: Account) -> Iterator[str | Refusal]:
    """Say of each mailbox EXISTS, MISSING, or why it cannot be told; each is looked at when its
    turn comes. This process is the mailboxes' user."""
    pairs = zip(account.mailboxes, account.required, strict=True)
    return (_look(path, required) for path, required in pairs)


def _choose(account: Account) -> tuple[int, str] | Refusal:
    """The index of the chosen mailbox, and its real path."""
    chosen = 0
    for index, found in enumerate(seen(account)):
        if isinstance(found, Refusal):
            return found
        if found == EXISTS:
            chosen = index
            break
    return chosen, state_directory.real_path(account.mailboxes[chosen])


def _encoded(found: tuple[int, str] | Refusal) -> bytes:
    if isinstance(found, Refusal):
        return os.fsencode(f"{found.kind}\0{found.reason}")
    return os.fsencode(f"{found[0]}\0{found[1]}")


def _look(path: str, required: str) -> str | Refusal:
    """Does a mailbox exist? EXISTS, MISSING, or why it cannot be told."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _trouble_above(path, required) or MISSING
    except OSError as error:
        return Refusal(f"{path}: {reasons.why(error)}", TEMPORARY)
    return EXISTS


def _trouble_above(path: str, required: str) -> Refusal | None:
    """Why a mailbox may be missing for another reason than that no mail has come.

    An MTA makes directories with the first mail; but not the required one, and none in place of a
    symbolic link that leads nowhere.
    """
    place = required
    try:
        if required and not stat.S_ISDIR(os.stat(required).st_mode):
            return Refusal(f"{required}: not a directory", TEMPORARY)
        place = os.path.dirname(path)
        while len(place) > len(required or "/") and not os.path.lexists(place):
            place = os.path.dirname(place)
        os.stat(place)
    except FileNotFoundError as error:
        why = f"{reasons.why(error)}; is the file system mounted?"
        return Refusal(f"{place}: {why}", TEMPORARY)
    except OSError as error:
        return Refusal(f"{place}: {reasons.why(error)}", TEMPORARY)
    return None
