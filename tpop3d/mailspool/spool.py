"""An open maildrop: opening, checking, reading, expunging.

The spool is the truth and belongs to many: it is locked only while it is scanned and while it is
expunged, and before anything is sent or removed it is checked that it has only grown since.
Reads are `pread`, never `mmap`: a spool that another program cuts is an error, not a signal.
"""

from __future__ import annotations

import os
import stat
from array import array

from tpop3d.mailspool import refusal
from tpop3d.mailspool.expunge import Unfinished, expunge, kept_ranges
from tpop3d.mailspool.locks import SpoolLocks, take_session_lock
from tpop3d.mailspool.refusal import Refusal, Truncated, of_error
from tpop3d.mailspool.scan import BLOCK, Listing, NotAnMbox, is_internal, scan
from tpop3d.mailspool.uniqueids import unique_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tpop3d.mailspool.locks import Pause

LINE_ENDS = 4  # octets: what completes a last line and separates it from the next message
NO_FILE = -1  # the descriptor of a spool that does not exist: an empty maildrop


class Terms:
    """How spools are opened here: what the configuration says and what the session lends.

    `lock_timeout` is in seconds; `pause` sleeps, and says whether to give up waiting.
    """

    __slots__ = ("dotlock", "lock_timeout", "pause")

    def __init__(self, dotlock: bool, lock_timeout: float, pause: Pause) -> None:
        self.dotlock = dotlock
        self.lock_timeout = lock_timeout
        self.pause = pause


class Spool:
    """The maildrop of one session, from its scan to `close`."""

    def __init__(self, path: str, terms: Terms, session_lock: int) -> None:
        self.path = path
        self.warning = ""
        self._terms = terms
        self._session_lock = session_lock
        self._fd = NO_FILE
        self._listing = Listing(0)
        self._seen: tuple[int, ...] = ()  # what fstat said when the spool was last found good
        self._ids: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self._listing)

    @property
    def octets(self) -> array[int]:
        """The size of each message as RETR sends it, without dot-stuffing."""
        return self._listing.octets

    def open(self, owner: int) -> Refusal | None:
        """Open and scan the spool, which must be a regular file of the user `owner`, or missing."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return of_error(error, self.path)
        # O_NONBLOCK: if it has become a FIFO since, opening it must not hang.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            if wrong := _wrong_file(status, owner):
                return Refusal(refusal.PERMANENT, f"{self.path}: {wrong}")
            self._fd = os.open(self.path, flags)
            if wrong := _wrong_file(os.fstat(self._fd), owner):
                return Refusal(refusal.PERMANENT, f"{self.path}: {wrong}")
        except OSError as error:
            return of_error(error, self.path)
        locks = SpoolLocks(self._fd, self.path, self._terms.dotlock)
        if refused := locks.acquire(self._terms.lock_timeout, self._terms.pause):
            return Refusal(refused.kind, f"{self.path}: {refused.reason}")
        self.warning = locks.warning
        try:
            return self._scan()
        finally:
            locks.release()

    def _scan(self) -> Refusal | None:
        try:
            status = os.fstat(self._fd)
            self._listing = scan(self._fd, 0, status.st_size)
            if is_internal(self._fd, self._listing):
                self._listing.drop_first()
        except NotAnMbox as error:
            reason = f"{self.path}: not an mbox, at offset {error.offset} stands something else"
            return Refusal(refusal.PERMANENT, reason)
        except Truncated:
            return Refusal(refusal.TEMPORARY, f"{self.path}: shortened while it was scanned")
        except OSError as error:
            return of_error(error, self.path)
        self._seen = _look(status)
        return None

    def changed(self) -> str:
        """How the spool changed other than by growing; "" if it did not.

        Cheap as long as nothing has touched it. Otherwise the start of every message must be what
        and where it was, and what follows the last one must be new messages.
        """
        if self._fd == NO_FILE:
            return ""
        try:
            status = os.fstat(self._fd)
            named = os.lstat(self.path)
            if (named.st_dev, named.st_ino) != (status.st_dev, status.st_ino):
                return "another file has its name"
            if _look(status) == self._seen:
                return ""
            if status.st_size < self._listing.end:
                return "it became shorter"
            if why := self._differs(status.st_size):
                return why
        except OSError as error:
            return error.strerror or "it cannot be read"
        self._seen = _look(status)
        return ""

    def _differs(self, size: int) -> str:
        listing = self._listing
        for index, print_ in enumerate(listing.prints):
            if hash(os.pread(self._fd, listing.head(index), listing.starts[index])) != print_:
                return f"message {index + 1} is another"
        if size > listing.end and len(listing):
            # A deliverer may be at work: it is enough that nothing contradicts a new message.
            grown = os.pread(self._fd, 64, listing.end).lstrip(b"\r\n")
            if not (grown.startswith(b"From ") or b"From ".startswith(grown)):
                return "its last message grew"
        return ""

    def blocks(self, index: int) -> Iterator[bytes]:
        """Yield the stored content of a message. Raises `Truncated` where it is gone."""
        position, end = self._listing.bodies[index], self._listing.ends[index]
        while position < end:
            block = os.pread(self._fd, min(BLOCK, end - position), position)
            if not block:
                raise Truncated
            yield block
            position += len(block)

    def unique_ids(self) -> Sequence[bytes]:
        """The unique-id of each message, computed when first asked for."""
        if self._ids is None:
            self._ids = unique_ids(self._fd, self._listing)
        return self._ids

    def expunge(self, deleted: Sequence[int]) -> Refusal | None:
        """Remove the messages whose entry in `deleted` is 1. Mail that came meanwhile is kept."""
        if not any(deleted):
            return None
        locks = SpoolLocks(self._fd, self.path, self._terms.dotlock)
        if refused := locks.acquire(self._terms.lock_timeout, self._terms.pause):
            return refused
        try:
            if why := self.changed():
                return Refusal(refusal.TEMPORARY, f"nothing removed: {why}")
            return self._expunge_locked(deleted)
        except Unfinished as error:
            return Refusal(
                refusal.PARTIAL,
                f"removing messages failed half-way ({error.error.strerror}): the mail that is kept"
                f" is in octets 0..{error.written} and {error.read}..end",
            )
        except Truncated:
            return Refusal(refusal.TEMPORARY, "nothing removed: it became shorter")
        except OSError as error:
            return of_error(error, "nothing removed")
        finally:
            locks.release()

    def _expunge_locked(self, deleted: Sequence[int]) -> Refusal | None:
        listing = self._listing
        size = os.fstat(self._fd).st_size
        end = listing.end
        if size > end and deleted[-1]:
            # Where does the last message end now? A deliverer may have completed its separator.
            end = scan(self._fd, listing.starts[-1], size).next_start(0)
            added = end - listing.end
            if added > LINE_ENDS or os.pread(self._fd, added, listing.end).strip(b"\r\n"):
                return Refusal(refusal.TEMPORARY, "nothing removed: its last message grew")
        first = listing.starts[deleted.index(1)]
        expunge(self._fd, first, kept_ranges(listing.starts, end, deleted, size))
        return None

    def close(self) -> None:
        """Let go of the spool, and of the session lock last. Once is enough; more do no harm."""
        for fd in (self._fd, self._session_lock):
            if fd != NO_FILE:
                os.close(fd)
        self._fd = self._session_lock = NO_FILE


def open_spool(path: str, owner: int, state: str, terms: Terms) -> Spool | Refusal:
    """Open the maildrop at `path` for a session of the user `owner`, who is who we are by now.

    `state` is the mailbox's state directory. A spool that does not exist is an empty maildrop.
    """
    session_lock = take_session_lock(f"{state}/lock", terms.pause)
    if isinstance(session_lock, Refusal):
        return session_lock
    spool = Spool(path, terms, session_lock)
    try:
        refused = spool.open(owner)
    except BaseException:
        spool.close()
        raise
    if refused:
        spool.close()
        return refused
    return spool


def _wrong_file(status: os.stat_result, owner: int) -> str:
    """Why a spool of this status is none that we touch; "" if it is one."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_uid != owner:
        return f"owned by uid {status.st_uid}, not by the mailbox's user (uid {owner})"
    return ""


def _look(status: os.stat_result) -> tuple[int, ...]:
    """What tells at a glance that nobody has touched a file."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
