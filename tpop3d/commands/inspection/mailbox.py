"""A mailspool as `--inspect` sees it: the messages that a session would show, and what is odd.

Nothing is locked, and nothing is written. Another program may therefore change the spool meanwhile;
then it is read again.
"""

from __future__ import annotations

import os

from tpop3d.commands.inspection import display, locks, problems, state_files
from tpop3d.commands.inspection.locks import Dotlock, Holders, Lock
from tpop3d.commands.inspection.problems import CHANGED, CRLF, Problem
from tpop3d.mailspool import idfile, uidl_styles
from tpop3d.mailspool import state_directory as states
from tpop3d.mailspool.failures import Truncated, letting_go, named_by
from tpop3d.mailspool.ids import Ids
from tpop3d.mailspool.scan import Listing, NotAnMbox, is_internal, scan
from tpop3d.mailspool.uidl import unique_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TRIES = 3
FROM_LINE = 200  # octets of it that are read
NO_FILE = -1
NO_LIMIT = 1 << 62


class Settings:
    """The directives that decide how a mailspool is seen."""

    def __init__(
        self, state_directory: str, style: str, index: bool, memory: int = NO_LIMIT
    ) -> None:
        self.memory = memory  # octets that the process may have
        self.state_directory = state_directory
        self.style = style
        self.index = index


class InspectedMailbox:
    """What was found. Without a `listing` no mailspool could be read; `reason` says why.

    `place` is the state directory, "" if there is none.
    """

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
        self.index = state_files.FoundFile(state_files.ABSENT)
        self.journal = state_files.FoundFile(state_files.NONE)
        self.others: list[str] = []  # names in the state directory
        self.problems: list[Problem] = []
        self.listing: Listing | None = None
        self.ids = Ids()
        self.lines: list[tuple[bytes, bytes]] = []  # the From_ line and the subject of each message

    @property
    def octets(self) -> int:
        """The sum of the sizes of all messages, as STAT returns it."""
        return sum(self.listing.octets) if self.listing is not None else 0


def look(
    path: str, settings: Settings, become_owner: Callable[[int, int], None]
) -> InspectedMailbox:
    """Look at the mailspool `path`.

    The holders of locks are found first, because root sees more of them. Then `become_owner` is
    called with the uid and gid of what will be read.
    """
    mailbox = InspectedMailbox(path, settings)
    _find(mailbox)
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
        mailbox.others = state_files.others(mailbox.place)
    try:
        mailbox.dotlock = locks.look_for_dotlock(path)
    except OSError:
        pass  # the reason about the spool says it all
    if mailbox.status is None:
        if mailbox.place:
            mailbox.journal = state_files.journal(mailbox.place, NO_FILE)
    elif kind := named_by(mailbox.status.st_mode):
        mailbox.reason = kind
    else:
        mailbox.spool_lock = look_at(path)
        mailbox.flock = locks.look_at_flock(holders_at(path))
        _read(mailbox)
    return mailbox


def _find(mailbox: InspectedMailbox) -> None:
    """Find the spool's file, or why there is none."""
    try:
        mailbox.status = os.lstat(mailbox.path)
    except FileNotFoundError:
        mailbox.reason = "there is no such file; to a session, that is an empty maildrop"
        if not os.path.isdir(os.path.dirname(mailbox.path)):
            mailbox.reason = "its directory is missing, too; is the file system mounted?"
    except OSError as error:
        mailbox.reason = error.strerror or "it cannot be found"


def _place(mailbox: InspectedMailbox) -> str:
    """Find the state directory. The owner of a missing spool is unknown: any owner's will do."""
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


def _read(mailbox: InspectedMailbox) -> None:
    """Read the spool, again if another program has changed it meanwhile."""
    try:
        try:
            fd = os.open(mailbox.path, locks.FLAGS | os.O_NOATIME)
        except PermissionError:
            fd = os.open(mailbox.path, locks.FLAGS)  # only the owner may keep the atime as it is
    except OSError as error:
        mailbox.reason = error.strerror or "it cannot be read"
        return
    try:
        for _ in range(TRIES):
            mailbox.status = before = os.fstat(fd)
            mailbox.problems, mailbox.listing, mailbox.reason = [], None, ""
            try:
                letting_go(lambda: _read_once(mailbox, fd))
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


def _read_once(mailbox: InspectedMailbox, fd: int) -> None:
    status = mailbox.status
    assert status is not None
    known = None
    given = idfile.Given(mailbox.settings.style)
    if mailbox.place:
        mailbox.journal = state_files.journal(mailbox.place, fd)
        given = idfile.load(mailbox.place, given.style)
        mailbox.index, known = state_files.index(mailbox.place, fd, status, given)
    if known is not None and mailbox.settings.index:
        listing, ids = known.listing, known.ids
    else:
        try:
            leads = given.separators_lead or None  # None: the scan finds out itself
            listing, ids = scan(fd, 0, status.st_size, separators_lead=leads), Ids()
        except NotAnMbox as error:
            mailbox.reason = "not an mbox: a session is refused"
            mailbox.problems.append(problems.garbage(fd, error.offset, status.st_size))
            return
        if is_internal(fd, listing):
            listing.drop_first()
    how = uidl_styles.style_for(given.style, fd, listing, ids, given)
    mailbox.ids = unique_ids(fd, listing, ids, how, given)
    mailbox.listing = listing
    _read_headers(mailbox, fd, listing)
    mailbox.problems += problems.find(fd, listing, mailbox.ids)


def _read_headers(mailbox: InspectedMailbox, fd: int, listing: Listing) -> None:
    """Take the From_ line and the subject of each message, and note which messages have CRs."""
    mailbox.lines = lines = []
    with_cr = []
    for index in range(len(listing)):
        header = uidl_styles.header(fd, listing, index)
        line, newline, _ = header[:FROM_LINE].partition(b"\n")
        if (newline and line.endswith(b"\r")) or b"\r\n" in header:
            with_cr.append(index)
        lines.append((line.removeprefix(b"From ").strip(), display.subject(header)))
    if with_cr:
        first = with_cr[0]
        of_all = f"in {len(with_cr)} of {len(listing)} messages; the first is {first + 1}"
        text = f"lines end with CR LF, {of_all}"
        mailbox.problems.append(Problem(CRLF, text, listing.starts[first], first + 1))
