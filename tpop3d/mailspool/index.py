"""The index keeps the listing of a large spool from one session to the next. It is only a cache.

It is used only if the spool is the one that it was written for: the same file, in which each
message starts where and as it did, and `ids` is what it was (idfile.py). A change within a message
is not seen. So what RETR sends is compared with the size in the listing, and messages are compared
with the listing before they are removed. An index that is odd in any way is ignored. It lies in the
mailbox's state directory as `index`, and is written as `index.new` and renamed.

    header   see `_HEADER`
    columns  the arrays of `Listing`, one after the other
    ids      the unique-ids, none if no session has asked for them yet: the packed ones (ids.py),
             then the others, with an LF behind each
    trailer  the CRC-32 of all that
"""

from __future__ import annotations

import os
import struct
from binascii import crc32
from time import time_ns

from tpop3d.mailspool import statefile
from tpop3d.mailspool.failures import Truncated
from tpop3d.mailspool.ids import Ids
from tpop3d.mailspool.scan import (
    COLUMNS,
    DIGEST,
    Listing,
    NotAnMbox,
    do_nothing,
    do_separators_lead,
    scan,
)
from tpop3d.mailspool.uidl_styles import MAX_ID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tpop3d.mailspool.idfile import Given
    from tpop3d.mailspool.statefile import Octets

NAME = "index"
UNDER_WAY = "index.new"
MAGIC = b"tpop3dX3"
SAMPLE = 4096  # octets at each end of the spool that must be the same
SETTLED = 2_000_000_000  # nanoseconds since the last change: a later one gets other times
WORTH = 1 << 18  # octets: a smaller spool is scanned as fast as its index is read
BLOCK = 4096  # ids that are written at a time
LINE_END = 2  # octets of a line end, at most
SHORTEST = len(b"From ")  # octets of the shortest message
_HEADER = struct.Struct("<8s16s5Q3I3Q3B")
_ROW = sum(getattr(Listing(0), name).itemsize for name in COLUMNS)  # octets for each message
_TRAILER = struct.Struct("<I")


class Known:
    """An index that was read and brought up to date. `ids` may be those of the first messages only.
    `is_current`: need it not be written again?"""

    __slots__ = ("ids", "is_current", "listing")

    def __init__(self, listing: Listing, ids: Ids, is_current: bool) -> None:
        self.listing = listing
        self.ids = ids
        self.is_current = is_current


def load(
    directory: str,
    spool: int,
    status: os.stat_result,
    given: Given,
    refresh: Callable[[], None] = do_nothing,
) -> Known | None:
    """Read the index of a spool with this status, and bring it up to date; None if it is no use.

    `given` is what `ids` remembers. `refresh` is called now and then while the spool is scanned.
    """
    try:
        fd = statefile.open_regular(f"{directory}/{NAME}")
    except OSError:
        return None
    try:
        return _known(_Sections(fd, status.st_size), spool, status, given, refresh)
    except (ValueError, struct.error, OSError, Truncated, NotAnMbox, MemoryError):
        return None
    finally:
        os.close(fd)


class _Sections:
    """Reads the sections of an index that is open as `fd` one by one, for they may be large.

    Raises ValueError if the file has another length than its header says, or more messages than a
    spool of this size can have; and OSError.
    """

    def __init__(self, fd: int, spool_size: int) -> None:
        self._fd = fd
        self._position = self._crc = 0
        self.header = _HEADER.unpack(self.read(_HEADER.size))
        end, (count, packed, others) = self.header[4], self.header[10:13]
        is_possible = count * SHORTEST <= end <= spool_size
        are_possible = packed <= count and others <= count * (MAX_ID + 1)
        length = _HEADER.size + count * _ROW + packed * DIGEST + others + _TRAILER.size
        if not is_possible or not are_possible or os.fstat(fd).st_size != length:
            raise ValueError("it is no index of this spool")

    def read(self, length: int) -> bytes:
        """The next octets. Raises OSError."""
        octets = statefile.read_part(self._fd, self._position, length)
        self._position += length
        self._crc = crc32(octets, self._crc)
        return octets

    def take_ids(self, packed: int, others: int) -> Ids:
        """Read this number of packed ids, and this number of octets of others. Raises OSError."""
        ids = Ids(self.read(packed * DIGEST))
        ids.rest = self.read(others).split(b"\n")
        ids.rest.pop()  # nothing stands behind the last LF
        return ids

    def are_whole(self) -> bool:
        """Is the CRC-32 that follows that of all sections? Raises OSError."""
        crc = self._crc
        return self.read(_TRAILER.size) == _TRAILER.pack(crc)


def _known(
    sections: _Sections,
    spool: int,
    status: os.stat_result,
    given: Given,
    refresh: Callable[[], None],
) -> Known | None:
    magic, style, *numbers, was_settled, hides_first, separators_lead = sections.header
    inode, device, end, mtime, ctime, head, tail, mark, count, packed, others = numbers
    if magic != MAGIC or (inode, device) != (status.st_ino, status.st_dev):
        return None
    if status.st_size < end or not count or mark != given.mark:
        return None
    if samples(spool, end) != (head, tail):
        return None
    listing = Listing(end, bool(separators_lead))
    listing.hides_first = bool(hides_first)
    for name in COLUMNS:
        column = getattr(listing, name)
        column.frombytes(sections.read(count * column.itemsize))
    ids = sections.take_ids(packed, others)
    if not sections.are_whole():
        return None
    if style.rstrip(b"\0").decode() != given.style:
        ids = Ids()
    is_same = (status.st_size, status.st_mtime_ns, status.st_ctime_ns) == (end, mtime, ctime)
    if is_same and was_settled:
        return Known(listing, ids, True)
    if differing(spool, listing) >= 0:
        return None
    if is_same:
        return Known(listing, ids, False)
    leads = given.separators_lead or do_separators_lead(spool, status.st_size)
    return _scanned_on(spool, status.st_size, leads, listing, ids, refresh)


def _scanned_on(
    spool: int, size: int, leads: bool, listing: Listing, ids: Ids, refresh: Callable[[], None]
) -> Known | None:
    """Scan what has changed: the last message and what came behind it; all, where no mail came, or
    its separators are others."""
    if size == listing.end or leads != listing.separators_lead:
        new = scan(spool, 0, size, separators_lead=leads, refresh=refresh)
        return _again(listing, new, ids)
    new = scan(spool, listing.starts[-1], size, separators_lead=leads, refresh=refresh)
    return _with_more(spool, listing, new, ids)


def _with_more(spool: int, listing: Listing, new: Listing, ids: Ids) -> Known | None:
    """Append the messages that were delivered since. `new` begins with the last message of the
    index, whose separator or last line end may have been delivered later."""
    end = listing.ends[-1]
    if not len(new) or new.starts[0] != listing.starts[-1]:
        return None
    added = new.ends[0] - end
    if added and (added > LINE_END or os.pread(spool, added, end).strip(b"\r\n")):
        ids.cut(len(listing) - 1)  # the message has grown, so it is another one now
    for name in COLUMNS:
        column = getattr(listing, name)
        column.pop()
        column.extend(getattr(new, name))
    listing.end = new.end
    listing.has_surplus |= new.has_surplus
    return Known(listing, ids, False)


def _again(old: Listing, new: Listing, ids: Ids) -> Known | None:
    """Keep the ids for a new listing: somebody has changed something within a message, or the rule
    for separators is another now. None if messages start elsewhere than before."""
    if old.hides_first:
        new.drop_first()
    return Known(new, ids, False) if new.starts[: len(old)] == old.starts else None


def is_settled(status: os.stat_result) -> bool:
    """Would the times of a file that has this status now tell a later change? They would not if the
    last change is too recent for the clock of the file system."""
    return time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED


def save(
    directory: str,
    spool: int,
    seen: os.stat_result,
    was_settled: bool,
    listing: Listing,
    ids: Ids,
    given: Given,
) -> None:
    """Write an index. The spool had the status `seen` when the listing was true; `was_settled` is
    the result of `is_settled` at that time. `given` is what `ids` remembers.

    A failure (a full disk) is no error: then there is no index.
    """
    try:
        head, tail = samples(spool, listing.end)
        header = _HEADER.pack(
            MAGIC,
            given.style.encode(),
            seen.st_ino,
            seen.st_dev,
            listing.end,
            seen.st_mtime_ns,
            seen.st_ctime_ns,
            head,
            tail,
            given.mark,
            len(listing),
            len(ids.packed) // DIGEST,
            sum(map(len, ids.rest)) + len(ids.rest),
            was_settled,
            listing.hides_first,
            listing.separators_lead,
        )
        parts = _with_trailer(_parts(header, listing, ids))
        statefile.replace(f"{directory}/{NAME}", parts)
    except (OSError, struct.error):  # struct.error: the spool has a time before 1970
        forget(directory)


def _parts(header: bytes, listing: Listing, ids: Ids) -> Iterator[Octets]:
    yield header
    for name in COLUMNS:
        yield getattr(listing, name)
    yield ids.packed
    # A join of all would take more memory than its result.
    for first in range(0, len(ids.rest), BLOCK):
        yield b"\n".join(ids.rest[first : first + BLOCK]) + b"\n"


def _with_trailer(parts: Iterable[Octets]) -> Iterator[Octets]:
    found = 0
    for part in parts:
        found = crc32(part, found)
        yield part
    yield _TRAILER.pack(found)


def forget(directory: str) -> None:
    """Remove the index, if there is one."""
    for name in (UNDER_WAY, NAME):
        statefile.remove(f"{directory}/{name}")


def samples(fd: int, end: int) -> tuple[int, int]:
    """The CRC-32 of the first and of the last octets that a listing covers. Raises OSError."""
    length = min(SAMPLE, end)
    return crc32(os.pread(fd, length, 0)), crc32(os.pread(fd, length, end - length))


def differing(fd: int, listing: Listing) -> int:
    """The index of the first message that does not begin as it did, or -1. Raises OSError."""
    for index, print_ in enumerate(listing.prints):
        if crc32(os.pread(fd, listing.head(index), listing.starts[index])) != print_:
            return index
    return -1
