"""A mailspool as `--inspect` sees it: its messages as a session would show them, and what is odd.

Nothing is locked, and nothing is written. Who else is at work may therefore be met in the middle of
it; then it is looked at again.
"""

from __future__ import annotations

import os

from tpop3d.inspection import locks, remains, texts
from tpop3d.inspection.locks import Dotlock, Holders, Lock
from tpop3d.mailspool import idfile, styles
from tpop3d.mailspool import state as states
from tpop3d.mailspool.refusal import Truncated, named_by
from tpop3d.mailspool.scan import BLOCK, Listing, NotAnMbox, is_internal, scan
from tpop3d.mailspool.uniqueids import DIGITS, SUFFIX_DIGITS, unique_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TRIES = 3
FROM_LINE = 200  # octets of it that are looked at
NO_FILE = -1
NO_LIMIT = 1 << 62

# Kinds of problems.
GARBAGE = "garbage"
CHANGED = "changed"
HIDDEN = "hidden"
DUPLICATE = "duplicate"
CRLF = "crlf"
NO_LINE_END = "no-line-end"
NO_EMPTY_LINE = "no-empty-line"


class Settings:
    """What of the configuration says how a mailspool is seen."""

    def __init__(
        self, state_directory: str, style: str, index: bool, memory: int = NO_LIMIT
    ) -> None:
        self.memory = memory  # octets that a process may have of it
        self.state_directory = state_directory
        self.style = style
        self.index = index


class Problem:
    """Something odd: its kind, a text, the offset of the octet and the number of the message that
    it is about (None: of none)."""

    __slots__ = ("kind", "message", "offset", "text")

    def __init__(self, kind: str, text: str, offset: int | None, message: int | None) -> None:
        self.kind = kind
        self.text = text
        self.offset = offset
        self.message = message


class Mailbox:
    """What was seen. Without a `listing` there is no mailspool that could be read; `reason` says
    why. `place` is its state directory, "" if there is none."""

    def __init__(self, path: str, settings: Settings) -> None:
        self.path = path
        self.settings = settings
        self.reason = ""
        self.status: os.stat_result | None = None
        self.place = ""
        self.session_lock: Lock | None = None
        self.spool_lock: Lock | None = None
        self.flock: Lock | None = None
        self.dotlock: Dotlock | None = None
        self.index = remains.Found(remains.ABSENT)
        self.journal = remains.Found(remains.NONE)
        self.others: list[str] = []  # names in the state directory
        self.problems: list[Problem] = []
        self.listing: Listing | None = None
        self.ids: list[bytes] = []
        self.lines: list[tuple[bytes, bytes]] = []  # the From_ line and the subject of each message

    @property
    def octets(self) -> int:
        """The sum of the sizes of all messages, as STAT gives it."""
        return sum(self.listing.octets) if self.listing is not None else 0


def look(path: str, settings: Settings, become_owner: Callable[[int, int], None]) -> Mailbox:
    """Look at the mailspool `path`. Who holds locks is found out first, since root sees more; then
    `become_owner` is called, with the uid and gid of what will be read."""
    mailbox = Mailbox(path, settings)
    try:
        mailbox.status = os.lstat(path)
    except FileNotFoundError:
        mailbox.reason = "there is no such file; to a session, that is an empty maildrop"
        if not os.path.isdir(os.path.dirname(path)):
            mailbox.reason = "its directory is missing, too; is the file system mounted?"
    except OSError as error:
        mailbox.reason = error.strerror or "it cannot be found"
    mailbox.place = _place(mailbox)
    session_lock = f"{mailbox.place}/lock"
    inodes = {name: locks.inode_of(name) for name in (path, session_lock)}
    holders = locks.holders_of(inode for inode in inodes.values() if inode is not None)

    def holders_at(name: str) -> Holders:
        inode = inodes[name]
        return holders[inode] if inode is not None else Holders()

    def look_at(name: str) -> Lock | None:
        return locks.look(name, holders_at(name).fcntl)

    owner = mailbox.status or (os.lstat(mailbox.place) if mailbox.place else None)
    if owner is not None:
        become_owner(owner.st_uid, owner.st_gid)
    if mailbox.place:
        mailbox.session_lock = look_at(session_lock)
        mailbox.others = remains.others(mailbox.place)
    try:
        mailbox.dotlock = locks.look_for_dotlock(path)
    except OSError:
        pass  # what is said of the spool says it all
    if mailbox.status is None:
        if mailbox.place:
            mailbox.journal = remains.journal(mailbox.place, NO_FILE)
    elif kind := named_by(mailbox.status.st_mode):
        mailbox.reason = kind
    else:
        mailbox.spool_lock = look_at(path)
        mailbox.flock = locks.look_at_flock(holders_at(path))
        _read(mailbox)
    return mailbox


def _place(mailbox: Mailbox) -> str:
    """The state directory. Of a spool that is missing nobody knows the owner: any will do."""
    directory, status = mailbox.settings.state_directory, mailbox.status
    real = states.real_path(mailbox.path)
    if status is not None:
        place = os.path.join(directory, states.name_of(real, status.st_uid))
        return place if os.path.isdir(place) else ""
    _, _, wanted = states.name_of(real, 0).partition(".")
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return ""
    fitting = [name for name in names if name.partition(".")[2] == wanted]
    return os.path.join(directory, fitting[0]) if fitting else ""


def _read(mailbox: Mailbox) -> None:
    """Read the spool, again if somebody was at work meanwhile."""
    try:
        try:
            fd = os.open(mailbox.path, locks.FLAGS | os.O_NOATIME)
        except PermissionError:
            fd = os.open(mailbox.path, locks.FLAGS)  # only its owner may leave no atime
    except OSError as error:
        mailbox.reason = error.strerror or "it cannot be read"
        return
    try:
        for _ in range(TRIES):
            mailbox.status = before = os.fstat(fd)
            mailbox.problems, mailbox.listing, mailbox.reason = [], None, ""
            try:
                _read_once(mailbox, fd, before)
            except Truncated:
                mailbox.reason = "it became shorter while it was read"
            after = os.fstat(fd)
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                return
        text = "it changed while it was read: what is said here may be of no one moment"
        mailbox.problems.append(Problem(CHANGED, text, None, None))
    except OSError as error:
        mailbox.reason = error.strerror or "it cannot be read"
        mailbox.listing = None
    finally:
        os.close(fd)


def _read_once(mailbox: Mailbox, fd: int, status: os.stat_result) -> None:
    known = None
    given = idfile.Given(mailbox.settings.style)
    if mailbox.place:
        mailbox.journal = remains.journal(mailbox.place, fd)
        given = idfile.load(mailbox.place, given.style)
        mailbox.index, known = remains.index(mailbox.place, fd, status, given)
    if known is not None and mailbox.settings.index:
        listing, ids = known.listing, known.ids
    else:
        try:
            leads = given.separators_lead or None  # None: as it looks
            listing, ids = scan(fd, 0, status.st_size, separators_lead=leads), []
        except NotAnMbox as error:
            mailbox.reason = _describe_garbage(mailbox, fd, error.offset, status.st_size)
            return
        if is_internal(fd, listing):
            listing.drop_first()
    how = styles.style_for(given.style, fd, listing, ids, given)
    mailbox.ids = unique_ids(fd, listing, ids, how, given)
    mailbox.listing = listing
    _read_headers(mailbox, fd, listing)
    _find_problems(mailbox, fd, listing)


def _describe_garbage(mailbox: Mailbox, fd: int, offset: int, size: int) -> str:
    """Say what stands before the first message, and where that begins, if it does."""
    first = _first_message(fd, offset, size)
    behind = "no message follows" if first < 0 else f"the first message begins at {first}"
    text = f"something else than a From_ line stands at offset {offset}, and {behind}"
    mailbox.problems.append(Problem(GARBAGE, text, offset, None))
    return "not an mbox: a session is refused"


def _first_message(fd: int, position: int, size: int) -> int:
    """Where the first From_ line after an empty line stands, or -1."""
    before = b""
    while position < size:
        block = os.pread(fd, min(BLOCK, size - position), position)
        if not block:
            raise Truncated
        window = before + block
        for mark in (b"\n\nFrom ", b"\n\r\nFrom "):
            if (found := window.find(mark)) >= 0:
                return position - len(before) + found + len(mark) - len(b"From ")
        before = window[-8:]
        position += len(block)
    return -1


def _read_headers(mailbox: Mailbox, fd: int, listing: Listing) -> None:
    """The From_ line and the subject of each message; and which have CRs."""
    mailbox.lines = lines = []
    with_cr = []
    for index, start in enumerate(listing.starts):
        line = os.pread(fd, min(listing.bodies[index] - start, FROM_LINE), start)
        header = styles.header(fd, listing, index)
        if line.endswith(b"\r\n") or b"\r\n" in header:
            with_cr.append(index)
        lines.append((line.removeprefix(b"From ").strip(), texts.subject(header)))
    if with_cr:
        first = with_cr[0]
        of_all = f"in {len(with_cr)} of {len(listing)} messages; the first is {first + 1}"
        text = f"lines end with CR LF, {of_all}"
        mailbox.problems.append(Problem(CRLF, text, listing.starts[first], first + 1))


def _find_problems(mailbox: Mailbox, fd: int, listing: Listing) -> None:
    if listing.hides_first:
        end = listing.starts[0] if len(listing) else listing.end
        text = f"a mail program's own record stands before offset {end}; it is not shown"
        mailbox.problems.append(Problem(HIDDEN, text, 0, None))
    first_with = {unique_id: number for number, unique_id in enumerate(mailbox.ids, 1)}
    for number, unique_id in enumerate(mailbox.ids, 1):
        base = _base(unique_id, first_with)
        if base:
            twin = first_with.get(base)
            whose = f"message {twin}" if twin else "a message that is gone"
            text = f"message {number} has the unique-id of {whose}, and a suffix"
            offset = listing.starts[number - 1]
            mailbox.problems.append(Problem(DUPLICATE, text, offset, number))
    if not listing.end or not len(listing):
        return
    last = os.pread(fd, 3, max(0, listing.end - 3))
    if not last.endswith(b"\n"):
        text = "the last line has no line end; what is delivered next may become a part of it"
        mailbox.problems.append(Problem(NO_LINE_END, text, listing.end, len(listing)))
    elif not last.endswith((b"\n\n", b"\n\r\n")):
        text = "there is no empty line at the end; a message that is delivered without one before"
        text += " it becomes a part of the last"
        mailbox.problems.append(Problem(NO_EMPTY_LINE, text, listing.end, len(listing)))


def _base(unique_id: bytes, others: dict[bytes, int]) -> bytes:
    """The id that another message had first; b"" where this one has no suffix.

    In ids that qpopper wrote into messages a hyphen says nothing.
    """
    base, hyphen, suffix = unique_id.partition(b"-")
    if hyphen and len(base) <= DIGITS and not base.strip(b"0123456789abcdef"):
        return base
    base, hyphen, suffix = unique_id.rpartition(b"-")
    is_suffix = len(suffix) == SUFFIX_DIGITS and not suffix.strip(b"0123456789abcdef")
    return base if hyphen and is_suffix and base in others else b""
