"""Opens, reads and writes the files of a mailbox's state directory, whatever lies there.

The directory belongs to the mailbox's user, who can put anything there under any name: a FIFO, a
link, a sparse file of terabytes. We follow no link, wait for no FIFO, and take none of them for a
file of ours.
"""

from __future__ import annotations

import errno
import os
import stat

from tpop3d.system.refusal import PERMANENT, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    Octets = bytes | bytearray | memoryview | array[int]

UNDER_WAY = ".new"  # the suffix of a file that is being written
# The files that a session leaves if it is killed while it writes.
LEFT = tuple([name + UNDER_WAY for name in ("journal", "index", "ids", "uidvalidity")])
NO_FILES = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)  # a link, a directory, ...
# O_NONBLOCK: opening a FIFO must not wait for its other end.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotRegular(OSError):
    """The name belongs to something other than a regular file."""

    def __init__(self) -> None:
        super().__init__(errno.EISDIR, "not a regular file")


def open_regular(path: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a regular file; returns its descriptor. `mode` counts if `flags` has O_CREAT.

    Raises `NotRegular` and other OSErrors.
    """
    try:
        fd = os.open(path, flags | _SAFELY, mode)
    except OSError as error:
        if error.errno in NO_FILES:
            raise NotRegular from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotRegular
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(path: str, limit: int) -> bytes | None:
    """Read a whole file; returns None if it is missing, not regular, unreadable, or longer than
    `limit` octets."""
    try:
        fd = open_regular(path)
    except OSError:
        return None
    try:
        length = os.fstat(fd).st_size
        return read_part(fd, 0, length) if length <= limit else None
    except OSError:
        return None
    finally:
        os.close(fd)


def read_part(fd: int, position: int, length: int) -> bytes:
    """Read `length` octets at `position`, or fewer if the file ends before. Raises OSError."""
    octets = os.pread(fd, length, position)
    if len(octets) == length or not octets:
        return octets
    parts = [octets]  # one call reads 2 GiB at most
    got = len(octets)
    while got < length and (octets := os.pread(fd, length - got, position + got)):
        parts.append(octets)
        got += len(octets)
    return b"".join(parts)


def create(path: str) -> int:
    """Create a new file in place of the one with this name; returns its descriptor, for reading and
    writing. Raises OSError, also if a directory with files is in the way."""
    remove(path)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600)
    except FileExistsError as error:
        raise OSError(error.errno, f"{path} is in the way, and cannot be removed") from None


def replace(path: str, parts: Iterable[Octets], durable: bool = False) -> None:
    """Write a file and give it its name in one step. If OSError is raised, the old file is there.

    `durable`: the octets are on the disk before the file has its name. The name itself may reach
    the disk later: a caller that needs it there syncs the directory.
    """
    under_way = path + UNDER_WAY
    fd = create(under_way)
    try:
        try:
            for part in parts:
                write_all(fd, part)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(under_way, path)
    except BaseException:
        remove(under_way)
        raise


def remove(path: str) -> bool:
    """Remove a file, or an empty directory in its place. Returns False if it is still there, and
    True also if it was missing."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        try:
            os.rmdir(path)
        except OSError:
            return False
    except OSError:
        return not os.path.lexists(path)
    return True


def write_all(fd: int, octets: Octets) -> None:
    """Write all octets at the descriptor's position. Raises OSError."""
    rest = memoryview(octets).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def remove_left(directory: str) -> Refusal | None:
    """Remove what is left of files that were being written. The caller has the session lock: nobody
    is writing."""
    for name in LEFT:
        if not remove(f"{directory}/{name}"):
            return Refusal(f"{directory}/{name} cannot be removed", PERMANENT)
    return None
