"""An open maildrop: opens, checks, reads and expunges a spool.

Other programs change the spool, too. It is locked only while it is scanned and while it is
expunged. Before anything is sent or removed, we check that it has only grown since. We read with
`pread`, never with `mmap`: then a spool that another program cuts is an error, and no signal.
"""

from __future__ import annotations

import os

from tpop3d.mailspool import idfile, statefile, uidl_styles
from tpop3d.mailspool import index as indexes
from tpop3d.mailspool.deletion import first_other, kept_ranges, last_kept, surplus
from tpop3d.mailspool.expunge import Unfinished, expunge, keep_new_mail_flag
from tpop3d.mailspool.failures import Truncated, letting_go, named_by, of_error
from tpop3d.mailspool.locks import SpoolLocks, take_session_lock
from tpop3d.mailspool.parallel_scan import scan_all
from tpop3d.mailspool.recovery import RecoveryOutcome, journaled_path, recover
from tpop3d.mailspool.scan import BLOCK, Listing, NotAnMbox, is_internal, scan
from tpop3d.mailspool.uidl import UniqueIds
from tpop3d.mailspool.watch import Watch
from tpop3d.system.refusal import PARTIAL, PERMANENT, TEMPORARY, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tpop3d.mailspool.ids import Ids
    from tpop3d.mailspool.light import array
    from tpop3d.mailspool.locks import Pause

LINE_ENDS = 4  # octets at most that complete a last line and separate it from the next message
NO_FILE = -1  # the descriptor of a missing spool: an empty maildrop


class Terms:
    """How spools are opened: settings of the configuration, and functions of the session.

    `dotlocks` is one of TRY, REQUIRE, NO. `lock_timeout` is in seconds. `pause(seconds)` sleeps,
    and returns True if waiting is to end. `index`: is an index kept? `style` is the style of
    unique-ids, one of `STYLES`. `flock`: are spools locked with flock(2), too? `take_group(True)`
    takes the group that may create and remove dotlocks, `take_group(False)` gives it back.
    """

    __slots__ = ("dotlocks", "flock", "index", "lock_timeout", "pause", "style", "take_group")

    def __init__(
        self,
        dotlocks: str,
        lock_timeout: float,
        pause: Pause,
        index: bool = True,
        style: str = uidl_styles.TPOP3D,
        flock: bool = True,
        take_group: Callable[[bool], None] | None = None,
    ) -> None:
        self.dotlocks = dotlocks
        self.flock = flock
        self.index = index
        self.lock_timeout = lock_timeout
        self.pause = pause
        self.style = style
        self.take_group = take_group


class Spool:
    """The maildrop of one session, from its scan to `close`."""

    def __init__(self, path: str, state: str, terms: Terms, session_lock: int) -> None:
        self.path = path
        self.warning = ""  # of the locks: when the spool was opened, later when it was expunged
        self.found: RecoveryOutcome | None = None  # of a journal, when the spool was opened
        self._state = state
        self._terms = terms
        self._session_lock = session_lock
        self._locks: SpoolLocks | None = None
        self._fd = NO_FILE
        self._listing = Listing(0)
        self._watch: Watch | None = None  # None before the scan
        self._ids = UniqueIds(terms.style, state)
        self._read = bytearray()  # an entry for each message: 1 if it was read to its end
        self._is_known = False  # is the listing from an index?
        self._is_news = False  # do we know more of the spool than the index does?

    def __len__(self) -> int:
        return len(self._listing)

    @property
    def octets(self) -> array[int]:
        """The size of each message in octets, as RETR sends it, without dot-stuffing."""
        return self._listing.octets

    def open(self, owner: int) -> Refusal | None:
        """Open and scan the spool; returns why not, or None. It must be missing, or a regular file
        of the user `owner` (a uid)."""
        return self.recover(owner, then=self._scan)

    def recover(self, owner: int, then: Callable[[], Refusal | None]) -> Refusal | None:
        """Open the spool, finish an interrupted expunge, and call `then`, under the spool locks.
        Returns the first refusal. `then` is not called if the spool is missing."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return self._recover()
        except OSError as error:
            return of_error(error, self.path)
        # O_NONBLOCK: if it has become a FIFO since, opening it must not hang.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            if refused := _refuse_file(self.path, status, owner):
                return refused
            try:
                # Programs tell new mail by the atime, so our reading must not change it.
                self._fd = os.open(self.path, flags | os.O_NOATIME)
            except PermissionError:
                self._fd = os.open(self.path, flags)
            if refused := _refuse_file(self.path, os.fstat(self._fd), owner):
                return refused
        except OSError as error:
            return of_error(error, self.path)
        locks = SpoolLocks(
            self._fd,
            self.path,
            self._terms.dotlocks,
            self._terms.flock,
            self._terms.take_group,
        )
        self._locks = locks
        if refused := locks.acquire(self._terms.lock_timeout, self._terms.pause):
            return Refusal(f"{self.path}: {refused.reason}", refused.kind)
        try:
            return self._recover() or then()
        finally:
            locks.release()
            self.warning = locks.warning

    def _recover(self) -> Refusal | None:
        try:
            before = os.fstat(self._fd) if self._fd != NO_FILE else None
            try:
                self.found = recover(self._fd, self._state, self._refresh)
            finally:
                if before is not None:
                    keep_new_mail_flag(self._fd, before)
        except OSError as error:
            return of_error(error, f"{self.path}: an expunge that was interrupted")
        return None

    def _scan(self) -> Refusal | None:
        try:
            letting_go(self._ids.load)
        except OSError as error:
            return of_error(error, f"{self._state}/{idfile.NAME}")
        try:
            status = os.fstat(self._fd)
            self._watch = Watch(self.path, self._fd)
            self._watch.saw(status)
            known = None
            if self._terms.index:
                given = self._ids.given
                known = indexes.load(self._state, self._fd, status, given, self._refresh)
            if known is not None:
                self._listing, self._ids.known = known.listing, known.ids
            else:
                # Other styles need more of a message than its first octets.
                with_digests = self._terms.style == uidl_styles.TPOP3D
                leads = self._ids.given.separators_lead or None  # None: the spool tells
                size = status.st_size
                self._listing = letting_go(
                    lambda: scan_all(self._fd, size, with_digests, leads, self._refresh)
                )
                if is_internal(self._fd, self._listing):
                    self._listing.drop_first()
            if self._listing.separators_lead and self._listing.has_surplus:
                self._ids.given.separators_lead = True
            self._is_known = known is not None
            self._is_news = known is None or not known.is_current
            self._read = bytearray(len(self._listing))
        except NotAnMbox as error:
            reason = f"{self.path}: not an mbox, at offset {error.offset} stands something else"
            return Refusal(reason, PERMANENT)
        except Truncated:
            return Refusal(f"{self.path}: shortened while it was scanned", TEMPORARY)
        except OSError as error:
            return of_error(error, self.path)
        return None

    def _refresh(self) -> None:
        """Keep the dotlock fresh, if there is one. Is to be called often while work takes long."""
        if self._locks is not None:
            self._locks.refresh()

    def _scan_part(self, start: int, end: int) -> Listing:
        """List the messages of a part of the spool. Raises what `scan` does."""
        leads = self._listing.separators_lead
        return scan(self._fd, start, end, separators_lead=leads, refresh=self._refresh)

    def changed(self) -> Refusal | None:
        """Refuse a spool that has changed other than by growing."""
        return self._watch.changed(self._listing) if self._watch is not None else None

    def blocks(self, index: int) -> Iterator[bytes]:
        """Yield the stored content of a message in blocks. Raises `Truncated` if the spool ends
        before the message does, and OSError."""
        position, end = self._listing.bodies[index], self._listing.ends[index]
        while position < end:
            block = os.pread(self._fd, min(BLOCK, end - position), position)
            if not block:
                raise Truncated
            yield block
            position += len(block)
        self._read[index] = 1

    def distrust(self) -> None:
        """Forget the index, since the spool holds something else than we know: the next session
        scans it."""
        self._is_news = False
        indexes.forget(self._state)

    def unique_ids(self) -> Ids:
        """The unique-id of each message, computed at the first call. Raises OSError."""
        is_new = len(self._ids.known) < len(self._listing)
        self._is_news |= is_new
        if is_new:
            letting_go(lambda: self._ids.of(self._fd, self._listing))
        return self._ids.known

    def expunge(self, deleted: Sequence[int]) -> Refusal | None:
        """Remove the messages whose entry in `deleted` is 1. Mail that came meanwhile is kept.
        A PARTIAL refusal: a later session finishes it. Any other: nothing was removed."""
        if not any(deleted):
            return None
        try:
            # Ids take time, so they are computed before the spool is locked against deliverers. We
            # remember what they depend on, so that the twin of a removed message keeps its id.
            self.unique_ids()
        except OSError as error:
            return of_error(error, "nothing removed")
        locks, watch = self._locks, self._watch
        assert locks is not None  # there are messages, so it was scanned
        assert watch is not None
        if refused := locks.acquire(self._terms.lock_timeout, self._terms.pause):
            self.warning = locks.warning
            return refused
        try:
            is_touched = watch.is_touched()
            if changed := self.changed():
                return Refusal(f"nothing removed: {changed.reason}", TEMPORARY)
            return self._expunge_locked(deleted, watch, is_touched)
        except Unfinished as error:
            self._is_news = False
            indexes.forget(self._state)
            why = f"removing messages was interrupted ({error.error.strerror})"
            return Refusal(f"{why}, and is finished by the next session", PARTIAL)
        except (Truncated, NotAnMbox):
            return Refusal("nothing removed: it has changed", TEMPORARY)
        except OSError as error:
            return of_error(error, "nothing removed")
        finally:
            locks.release()
            self.warning = locks.warning

    def _expunge_locked(
        self, deleted: Sequence[int], watch: Watch, is_touched: bool
    ) -> Refusal | None:
        listing = self._listing
        before = os.fstat(self._fd)
        size, end = before.st_size, listing.end
        if size > end and deleted[-1]:
            # The last message may end later now: a deliverer may have completed its separator.
            end = self._scan_part(listing.starts[-1], size).next_start(0)
            added = end - listing.end
            if not 0 <= added <= LINE_ENDS or os.pread(self._fd, added, listing.end).strip(b"\r\n"):
                return Refusal("nothing removed: its last message grew", TEMPORARY)
        # We compare messages again if the spool was touched since the scan, or if an index has
        # told what is there. In the latter case a message that was read to its end needs no look.
        if is_touched or self._is_known:
            seen = bytes(len(listing)) if is_touched else self._read
            if (index := first_other(listing, deleted, seen, end, self._scan_part)) >= 0:
                self.distrust()
                why = f"nothing removed: message {index + 1} is another"
                return Refusal(why, TEMPORARY)
        starts = listing.starts
        extra = surplus(self._fd, listing, deleted) if size == end else 0
        if extra:
            starts = starts[:]
            starts[last_kept(deleted) + 1] -= extra
        ranges = kept_ranges(starts, end, deleted, size)
        following = letting_go(lambda: self._ids.prepare(deleted, is_optional=not ranges))
        first, is_prepared = starts[deleted.index(1)], following is not None
        self._is_news = False  # if this is interrupted, we do not know what the spool holds
        try:
            expunge(
                self._fd, self.path, self._state, first, ranges, size, is_prepared, self._refresh
            )
        finally:
            keep_new_mail_flag(self._fd, before)
        try:
            self._ids.remove(deleted, following)
            listing.remove(deleted, end)
            listing.end -= extra
            watch.saw(os.fstat(self._fd))
            self._is_news = True
        except MemoryError:  # the messages are removed all the same
            self._is_news = False
            indexes.forget(self._state)
        return None

    def close(self) -> None:
        """Save what is known, close the spool, and give back the session lock last. Further calls
        do nothing."""
        try:
            self._remember()
        except MemoryError:
            indexes.forget(self._state)
        for fd in (self._fd, self._session_lock):
            if fd != NO_FILE:
                os.close(fd)
        self._fd = self._session_lock = NO_FILE

    def _remember(self) -> None:
        """Save what the ids depend on, and an index if the spool is large enough."""
        watch = self._watch
        if not self._is_news or watch is None or watch.status is None:
            return
        size = self._listing.end
        is_indexed = self._terms.index and size >= indexes.WORTH and len(self._listing) > 0
        try:
            if is_indexed and self._listing.digests:
                self.unique_ids()  # costs little, since their digests are there
        except OSError:
            return
        finally:
            self._is_news = False
        is_complete = len(self._ids.known) == len(self._listing)
        letting_go(lambda: self._ids.save(is_complete))
        if is_indexed:
            seen = watch.status, watch.was_settled
            known, given = self._ids.known, self._ids.given
            indexes.save(self._state, self._fd, *seen, self._listing, known, given)
        else:
            indexes.forget(self._state)


def open_spool(path: str, owner: int, state: str, terms: Terms) -> Spool | Refusal:
    """Open the maildrop at `path` for a session; we run as the user `owner` (a uid) already.

    `state` is the mailbox's state directory. A missing spool is an empty maildrop.
    """
    session_lock = take_session_lock(f"{state}/lock", terms.pause)
    if isinstance(session_lock, Refusal):
        return session_lock
    spool = Spool(path, state, terms, session_lock)
    try:
        refused = spool.open(owner)
    except BaseException:
        spool.close()
        raise
    if refused:
        spool.close()
        return refused
    return spool


def recover_spool(owner: int, state: str, terms: Terms) -> RecoveryOutcome | Refusal | None:
    """Finish an interrupted expunge on the spool of the state directory `state`, as the user
    `owner` (a uid). Returns what became of a journal, None if there was none, or a refusal."""
    session_lock = take_session_lock(f"{state}/lock", terms.pause)
    if isinstance(session_lock, Refusal):
        return session_lock
    if refused := statefile.remove_left(state):
        os.close(session_lock)
        return refused
    try:
        path = journaled_path(state)
    except OSError as error:
        os.close(session_lock)
        return of_error(error, f"journal in {state}")
    spool = Spool(path, state, terms, session_lock)
    try:
        refused = spool.recover(owner, then=lambda: None)
        if spool.found is not None and spool.found.is_waiting:
            return Refusal(f"{path}: {spool.found.line}", TEMPORARY)
        return refused or spool.found
    finally:
        spool.close()


def _refuse_file(path: str, status: os.stat_result, owner: int) -> Refusal | None:
    """Refuse to touch a spool that is no regular file of its user's."""
    why = named_by(status.st_mode)
    if not why and status.st_uid != owner:
        why = f"owned by uid {status.st_uid}, not by the mailbox's user (uid {owner})"
    return Refusal(f"{path}: {why}", PERMANENT) if why else None
