"""The redo journal: it says what an expunge makes of a spool, and is written before that begins.

An expunge moves the kept octets towards the front of the spool, and then cuts off its end:

             0        first               final                size
    before   | kept   | deleted and kept octets, mixed         |
    after    | kept   | kept octets       |

What is in front of `first` never changes. The journal holds the kept octets themselves, so they
can be written again from the beginning, however far a crash has let us come. These are the steps,
with the session lock and the spool locks held, and what a crash behind each of them leaves in the
state directory. A crash within a step leaves that, or what the row above says.

    step                                        a crash leaves           and the next session
    ------------------------------------------  -----------------------  ------------------------
    1  write ids.next; fsync it and its name    ids.next                 removes it
    2  fsync the spool; write journal.new,      ids.next, journal.new    removes both: the spool
       and fsync it                                                      is as it was
    3  rename it to journal; fsync its name     ids.next, journal        does steps 4 to 7
    4  write the kept octets; fsync the spool   ids.next, journal        does steps 4 to 7
    5  cut the spool at final; fsync it         ids.next, journal        does steps 6 and 7
    6  rename ids.next to ids; fsync its name   journal                  does step 7
    7  unlink the journal; fsync that           nothing                  finds nothing

The rename of step 3 decides: before it the expunge has not happened, behind it the expunge will be
finished. ids.next is there only if unique-ids must be remembered (idfile.py). If a file cannot be
written in steps 1 to 3 (a full disk), the files are removed again, and nothing is expunged; but if
no kept octets have to move, the spool is cut without a journal.

A deliverer may append to the spool before the next session comes, for the fcntl lock has died with
its process. Then the new mail must move, too: before the cut, a journal that includes it is written
in place of the first, and step 4 begins again.

The journal belongs to the mailbox's user. Its digests tell the finder whether the spool is as it
was, as it shall be, or between (recovery.py). Its form:

    header   the fields of `Plan`, and the spool's path
    kept     the kept octets: final - first
    near     the octets of the spool from final to the end of its block, as they were
    table    the CRC-32 of each block of the spool in first..final, as it was; blocks end where
             offsets in the spool are multiples of BLOCK
    trailer  the CRC-32 of the spool from the end of `near` to size, and the CRC-32 of all that
             stands before it in the journal
"""

from __future__ import annotations

import os
import struct
from binascii import crc32

from tpop3d.mailspool import statefile
from tpop3d.mailspool.light import array
from tpop3d.mailspool.scan import do_nothing
from tpop3d.system.io import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    # A part of a file: its descriptor, and two offsets.
    Piece = tuple[int, int, int]

NAME = "journal"
UNDER_WAY = "journal.new"
MAGIC = b"tpop3dJ1"
BLOCK = 4096  # octets; a page: if the system writes anything as a whole, it is this
CHUNK = 1 << 20  # octets copied at a time; a multiple of BLOCK
MAX_PATH = 1 << 16
_HEADER = struct.Struct("<8s4QI")  # magic, inode, first, final, size, length of the path
_TRAILER = struct.Struct("<II")


class Plan:
    """What an expunge does: of the `size` octets of the spool, the kept octets behind `first` move
    to first..final, and the spool is cut at `final`. `inode` is the spool's number."""

    __slots__ = ("final", "first", "inode", "path", "size")

    def __init__(self, path: str, inode: int, first: int, final: int, size: int) -> None:
        self.path = path
        self.inode = inode
        self.first = first
        self.final = final
        self.size = size

    @property
    def border(self) -> int:
        """The end of the block of `final`. If a power cut undoes the cut of the spool, there may be
        zeros from `final` to here."""
        return min(self.size, -(-self.final // BLOCK) * BLOCK)


class Invalid(Exception):
    """The file with the journal's name is no journal: it is damaged, or of another version."""


class Unfit(Invalid):
    """The journal cannot be one of this spool."""


class Journal:
    """A complete journal, open: the plan, and the data to carry it out."""

    def __init__(self, fd: int, plan: Plan, kept_at: int, table: array[int], rest: int) -> None:
        self.fd = fd
        self.plan = plan
        self.table = table
        self.rest = rest  # the CRC-32 of border..size
        self._kept_at = kept_at

    def kept(self) -> Piece:
        """The part of the journal with the kept octets."""
        length = self.plan.final - self.plan.first
        return self.fd, self._kept_at, self._kept_at + length

    def read(self, start: int, end: int) -> bytes:
        """The octets of the spool between two offsets: as they shall be up to `final`, and as they
        were from there to `border`. Raises OSError."""
        return read_all(self.fd, start - self.plan.first + self._kept_at, end - start)

    def become(self, other: Journal) -> None:
        """Become the journal that has been written in place of this one."""
        self.close()
        self.fd, self.plan, self.table, self.rest = other.fd, other.plan, other.table, other.rest
        self._kept_at = other._kept_at

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def write(
    directory: str,
    plan: Plan,
    spool: int,
    kept: Iterable[Piece],
    refresh: Callable[[], None] = do_nothing,
) -> Journal:
    """Write a journal to the disk, in place of one that is there. `kept` are the parts that make
    up the kept octets. `refresh` is called for each chunk.

    Raises OSError; then the journal may have its name or not, and the spool has not changed.
    """
    # Delivered mail may not be on the disk yet. After a power cut the spool must not be shorter
    # than the plan says.
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
    """Read the journal of a mailbox whose spool has `spool_size` octets; None if there is none.

    The header decides how much is read, so it must fit that size. Raises `Invalid` and OSError.
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
    """Read the plan of a mailbox's journal, without a look at the checksum; None if there is no
    journal. Raises `Invalid` and OSError."""
    fd = _open(directory)
    if fd < 0:
        return None
    try:
        return _Layout(fd).plan
    finally:
        os.close(fd)


def _open(directory: str) -> int:
    """Open the journal; returns -1 if there is none. Raises `Invalid` and OSError."""
    try:
        return statefile.open_regular(f"{directory}/{NAME}")
    except FileNotFoundError:
        return -1
    except statefile.NotRegular:
        raise Invalid("it is not a regular file") from None


class _Layout:
    """The plan and the offsets in a journal, by its header. Raises `Invalid` and OSError."""

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
    """Remove a journal that has been carried out. Raises OSError."""
    os.unlink(f"{directory}/{NAME}")
    sync_directory(directory)


def discard(directory: str) -> None:
    """Remove a journal that was never complete. If it cannot be removed, it does no harm before
    the next journal is to be written."""
    statefile.remove(f"{directory}/{UNDER_WAY}")


def withdraw(directory: str) -> bool:
    """Remove a journal, complete or not, of which nothing was carried out.

    Returns False if there may still be one, now or after a power cut.
    """
    discard(directory)
    is_void = False
    try:
        fd = statefile.open_regular(f"{directory}/{NAME}", os.O_WRONLY)
        try:
            # If the name cannot be removed, an empty file is no journal.
            os.ftruncate(fd, 0)
            os.fsync(fd)
            is_void = True
        finally:
            os.close(fd)
    except (FileNotFoundError, statefile.NotRegular):
        return True  # the next session puts aside what is no regular file
    except OSError:
        pass
    try:
        remove(directory)
    except OSError:
        return is_void
    return True


def borders(first: int, final: int) -> Iterator[tuple[int, int]]:
    """Yield the blocks of the table, each as two offsets in the spool."""
    position = first
    while position < final:
        end = min(final, (position // BLOCK + 1) * BLOCK)
        yield position, end
        position = end


def digests(
    fd: int, first: int, final: int, refresh: Callable[[], None] = do_nothing
) -> array[int]:
    """Make the table of a spool as it is now. Raises OSError."""
    table = array("I")
    position = first
    while position < final:
        # Chunks end where blocks end.
        end = min(final, (position // CHUNK + 1) * CHUNK)
        view = memoryview(read_all(fd, position, end - position))
        table.extend([crc32(view[s - position : e - position]) for s, e in borders(position, end)])
        position = end
        refresh()
    return table


def digest(fd: int, start: int, end: int, refresh: Callable[[], None] = do_nothing) -> int:
    """The CRC-32 of a part of a file. Raises OSError."""
    found = 0
    for block in blocks(fd, start, end, refresh=refresh):
        found = crc32(block, found)
    return found


def blocks(
    fd: int, start: int, end: int, *, refresh: Callable[[], None] = do_nothing
) -> Iterator[bytes]:
    """Yield a part of a file in chunks. Raises OSError, also if the file ends before."""
    while start < end:
        block = read_all(fd, start, min(CHUNK, end - start))
        yield block
        refresh()
        start += len(block)


def read_all(fd: int, position: int, length: int) -> bytes:
    """Read exactly `length` octets of a file. Raises OSError, also if it ends before."""
    block = os.pread(fd, length, position)
    while len(block) < length:
        more = os.pread(fd, length - len(block), position + len(block))
        if not more:
            raise OSError(0, "unexpected end of file")
        block += more
    return block


def write_all(fd: int, octets: bytes, position: int) -> None:
    """Write all octets at an offset. Raises OSError."""
    view = memoryview(octets)
    while view:
        count = os.pwrite(fd, view, position)
        view = view[count:]
        position += count


class _Sum:
    """Writes a file from its start, and computes the CRC-32 of what it has written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.octets = 0
        self.sum = 0

    def write(self, octets: bytes) -> None:
        write_all(self._fd, octets, self.octets)
        self.octets += len(octets)
        self.sum = crc32(octets, self.sum)
