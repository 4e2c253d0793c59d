"""The redo journal: what an expunge is about to make of a spool, written down before it begins.

A journal is complete when it has its name: it is written as `journal.new`, fsynced, and renamed.
It holds what the spool will hold from the first deleted octet on, and digests of what it holds
there now, so that whoever finds it knows whether the spool is as it was, as it shall be, or
between. It lies in the mailbox's state directory and is the mailbox's user's.

    header   what is said by `Plan`, and the spool's path
    kept     final - first octets
    near     the octets from final to the end of its block, as they are
    table    the CRC-32 of each block of the spool in first..final, as it is; blocks end where
             offsets in the spool are multiples of BLOCK
    trailer  the CRC-32 of what comes after that up to size, and of all that stands before in the
             journal
"""

from __future__ import annotations

import os
import struct
from binascii import crc32

from tpop3d.mailspool import statefile
from tpop3d.mailspool.light import array
from tpop3d.mailspool.scan import do_nothing
from tpop3d.system.files import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    # Octets of a file: its descriptor, and two offsets.
    Piece = tuple[int, int, int]

NAME = "journal"
UNDER_WAY = "journal.new"
MAGIC = b"tpop3dJ1"
BLOCK = 4096  # octets; a page, which the system writes as a whole if anything
CHUNK = 1 << 20  # octets copied at a time; a multiple of BLOCK
MAX_PATH = 1 << 16
_HEADER = struct.Struct("<8s4QI")  # magic, inode, first, final, size, length of the path
_TRAILER = struct.Struct("<II")


class Plan:
    """What is to happen: of the spool's `size` octets those from `first` on are replaced by what is
    kept of them, which ends at `final`; there it is cut. `inode` is the spool's."""

    __slots__ = ("final", "first", "inode", "path", "size")

    def __init__(self, path: str, inode: int, first: int, final: int, size: int) -> None:
        self.path = path
        self.inode = inode
        self.first = first
        self.final = final
        self.size = size

    @property
    def border(self) -> int:
        """Where the block of `final` ends. A cut that is lost in a power cut may have left zeros
        up to there."""
        return min(self.size, -(-self.final // BLOCK) * BLOCK)


class Invalid(Exception):
    """A file of the journal's name that is none: damaged, or of another version."""


class Unfit(Invalid):
    """A journal that cannot be of this spool."""


class Journal:
    """A complete journal that is open: a plan, and what is needed to carry it out."""

    def __init__(self, fd: int, plan: Plan, kept_at: int, table: array[int], rest: int) -> None:
        self.fd = fd
        self.plan = plan
        self.table = table
        self.rest = rest  # the CRC-32 of border..size
        self._kept_at = kept_at

    def kept(self) -> Piece:
        """Where in the journal stands what is kept."""
        length = self.plan.final - self.plan.first
        return self.fd, self._kept_at, self._kept_at + length

    def read(self, start: int, end: int) -> bytes:
        """What the spool will hold between two offsets; from final on, what it holds."""
        return read_all(self.fd, start - self.plan.first + self._kept_at, end - start)

    def become(self, other: Journal) -> None:
        """Be another journal from now on, which has been written in place of this one."""
        self.close()
        self.fd, self.plan, self.table, self.rest = other.fd, other.plan, other.table, other.rest
        self._kept_at = other._kept_at

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.fd)


def write(
    directory: str,
    plan: Plan,
    spool: int,
    kept: Iterable[Piece],
    refresh: Callable[[], None] = do_nothing,
) -> Journal:
    """Write a journal, and have it on the disk; a journal that is there is replaced. `refresh` is
    called for each chunk.

    Raises OSError; then it may have its name, or not, and the spool has not changed.
    """
    # What was delivered may not be on the disk yet. After a power cut the spool must not be
    # shorter than the plan knows it.
    os.fsync(spool)
    under_way = f"{directory}/{UNDER_WAY}"
    fd = statefile.create(under_way)
    try:
        path = os.fsencode(plan.path)
        header = _HEADER.pack(MAGIC, plan.inode, plan.first, plan.final, plan.size, len(path))
        out = _Sum(fd)
        out.write(header + path)
        kept_at = out.octets
        for piece in (*kept, (spool, plan.final, plan.border)):
            for block in blocks(*piece, refresh=refresh):
                out.write(block)
        table = digests(spool, plan.first, plan.final, refresh)
        out.write(table.tobytes())
        rest = digest(spool, plan.border, plan.size, refresh)
        out.write(struct.pack("<I", rest))
        out.write(struct.pack("<I", out.sum))
        os.fsync(fd)
        os.rename(under_way, f"{directory}/{NAME}")
        sync_directory(directory)
    except BaseException:
        os.close(fd)
        raise
    return Journal(fd, plan, kept_at, table, rest)


def read(
    directory: str, spool_size: int, refresh: Callable[[], None] = do_nothing
) -> Journal | None:
    """The journal of a mailbox whose spool is so long; None if there is none.

    Its header is believed only as far as the spool bears it out: it decides how much is read.
    Raises `Invalid` and OSError.
    """
    fd = _open(directory)
    if fd < 0:
        return None
    try:
        return _parse(fd, spool_size, refresh)
    except BaseException:
        os.close(fd)
        raise


def plan(directory: str) -> Plan | None:
    """What the journal of a mailbox says it is for, whatever its checksum; None if there is none.
    Raises `Invalid` and OSError."""
    fd = _open(directory)
    if fd < 0:
        return None
    try:
        return _Layout(fd).plan
    finally:
        os.close(fd)


def _open(directory: str) -> int:
    """Open the journal; -1: there is none. Raises `Invalid` and OSError."""
    try:
        return statefile.open_regular(f"{directory}/{NAME}")
    except FileNotFoundError:
        return -1
    except statefile.NotRegular:
        raise Invalid("it is not a regular file") from None


class _Layout:
    """Where in a journal everything stands, by its header. Raises `Invalid` and OSError."""

    def __init__(self, fd: int) -> None:
        self.length = os.fstat(fd).st_size
        if self.length < _HEADER.size + _TRAILER.size:
            raise Invalid("it is too short")
        header = read_all(fd, 0, _HEADER.size)
        magic, inode, first, final, size, path_length = _HEADER.unpack(header)
        if magic != MAGIC or not first <= final < size or path_length > MAX_PATH:
            raise Invalid("it is of no known form")
        self.plan = Plan("", inode, first, final, size)
        self.kept_at = _HEADER.size + path_length
        self.table_at = self.kept_at + self.plan.border - first
        self.count = -(-final // BLOCK) - first // BLOCK if first < final else 0
        if self.length != self.table_at + 4 * self.count + _TRAILER.size:
            raise Invalid("it has the wrong length")
        path = read_all(fd, _HEADER.size, path_length)
        if b"\0" in path:
            raise Invalid("it is of no known form")
        self.plan.path = os.fsdecode(path)


def _parse(fd: int, spool_size: int, refresh: Callable[[], None]) -> Journal:
    layout = _Layout(fd)
    if layout.plan.final > spool_size:
        raise Unfit("the spool is shorter than it shall be")
    rest, found = _TRAILER.unpack(read_all(fd, layout.length - _TRAILER.size, _TRAILER.size))
    if digest(fd, 0, layout.length - 4, refresh) != found:
        raise Invalid("its checksum is wrong")
    table = array("I", read_all(fd, layout.table_at, 4 * layout.count))
    return Journal(fd, layout.plan, layout.kept_at, table, rest)


def remove(directory: str) -> None:
    """The journal is done with. Raises OSError."""
    os.unlink(f"{directory}/{NAME}")
    sync_directory(directory)


def discard(directory: str) -> None:
    """Remove what was left of a journal that was never complete. What cannot be removed does no
    harm before a journal is to be written."""
    statefile.remove(f"{directory}/{UNDER_WAY}")


def withdraw(directory: str) -> bool:
    """Have no journal, complete or not, of which nothing was carried out. False: there may be one,
    now or after a power cut."""
    discard(directory)
    is_void = False
    try:
        fd = statefile.open_regular(f"{directory}/{NAME}", os.O_WRONLY)
        try:
            # If the name cannot be got rid of, it is one of nothing.
            os.ftruncate(fd, 0)
            os.fsync(fd)
            is_void = True
        finally:
            os.close(fd)
    except (FileNotFoundError, statefile.NotRegular):
        return True  # what is no file is put aside by the next one to open the spool
    except OSError:
        pass
    try:
        remove(directory)
    except OSError:
        return is_void
    return True


def borders(first: int, final: int) -> Iterator[tuple[int, int]]:
    """The blocks of the table: offsets in the spool."""
    position = first
    while position < final:
        end = min(final, (position // BLOCK + 1) * BLOCK)
        yield position, end
        position = end


def digests(
    fd: int, first: int, final: int, refresh: Callable[[], None] = do_nothing
) -> array[int]:
    """The table for a spool as it is."""
    table = array("I")
    position = first
    while position < final:
        # Chunks end at borders of blocks.
        end = min(final, (position // CHUNK + 1) * CHUNK)
        view = memoryview(read_all(fd, position, end - position))
        table.extend([crc32(view[s - position : e - position]) for s, e in borders(position, end)])
        position = end
        refresh()
    return table


def digest(fd: int, start: int, end: int, refresh: Callable[[], None] = do_nothing) -> int:
    """The CRC-32 of a part of a file."""
    found = 0
    for block in blocks(fd, start, end, refresh=refresh):
        found = crc32(block, found)
    return found


def blocks(
    fd: int, start: int, end: int, *, refresh: Callable[[], None] = do_nothing
) -> Iterator[bytes]:
    """A part of a file. Raises OSError where it is not all there."""
    while start < end:
        block = read_all(fd, start, min(CHUNK, end - start))
        yield block
        refresh()
        start += len(block)


def read_all(fd: int, position: int, length: int) -> bytes:
    """Exactly these octets of a file. Raises OSError."""
    block = os.pread(fd, length, position)
    while len(block) < length:
        more = os.pread(fd, length - len(block), position + len(block))
        if not more:
            raise OSError(0, "unexpected end of file")
        block += more
    return block


def write_all(fd: int, octets: bytes, position: int) -> None:
    """Write all of it at an offset. Raises OSError."""
    view = memoryview(octets)
    while view:
        count = os.pwrite(fd, view, position)
        view = view[count:]
        position += count


class _Sum:
    """A file that is written from its start on, and the CRC-32 of that."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.octets = 0
        self.sum = 0

    def write(self, octets: bytes) -> None:
        write_all(self._fd, octets, self.octets)
        self.octets += len(octets)
        self.sum = crc32(octets, self.sum)
