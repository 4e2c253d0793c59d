"""Which of an account's mailboxes is the maildrop.

It is looked at as the mailbox's user, who may see less than root, and on a file server more. What
cannot be looked at is not missing: otherwise the next mailbox would be served, without a word.
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
    """The path of the maildrop; the name of its state directory, and its path once it is made;
    and does it take all that the user can have to reach it?"""

    __slots__ = ("name", "needs_group", "path", "place")

    def __init__(self, path: str, name: str, *, needs_group: bool) -> None:
        self.path = path
        self.name = name
        self.place: str | Refusal = ""
        self.needs_group = needs_group


def choose(account: Account) -> Choice | Refusal:
    """The first mailbox that exists, else the first, which is empty then.

    This process can become the account's user, and is who it was when this returns. Raises
    `StillPrivileged` and OSError; the process must then end.
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
    """What `_choose` gives in a process that is the user for good; or else the trouble so far."""
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
    """For each mailbox EXISTS, MISSING, or why that cannot be said; found out when it is asked
    for. We are its user."""
    pairs = zip(account.mailboxes, account.required, strict=True)
    return (_look(path, required) for path, required in pairs)


def _choose(account: Account) -> tuple[int, str] | Refusal:
    """Which mailbox, by its place among the others, and its real path."""
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
    """Does a mailbox exist? Any answer but two is trouble."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _trouble_above(path, required) or MISSING
    except OSError as error:
        return Refusal(f"{path}: {reasons.why(error)}", TEMPORARY)
    return EXISTS


def _trouble_above(path: str, required: str) -> Refusal | None:
    """Why a mailbox may be missing other than for want of mail.

    An MTA makes directories with the first mail; but neither the required one, nor one in place of
    a symbolic link that leads nowhere.
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
