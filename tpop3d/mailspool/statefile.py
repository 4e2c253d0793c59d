"""Files of a mailbox's state directory: opened, read and written whatever lies there.

The directory is its user's, who can put anything there under any name: a FIFO, a link, a sparse
file of terabytes. None of it is followed, waited for, or taken for a file of ours.
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

UNDER_WAY = ".new"  # behind the name of a file that is being written
# What is left of those where somebody was killed.
LEFT = tuple([name + UNDER_WAY for name in ("journal", "index", "ids", "uidvalidity")])
NO_FILES = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)  # of a link, a directory, ...
# O_NONBLOCK: opening a FIFO must not wait for its other end.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotRegular(OSError):
    """Something other than a regular file has the name."""

    def __init__(self) -> None:
        super().__init__(errno.EISDIR, "not a regular file")


def open_regular(path: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a regular file; returns its descriptor. `mode` is for `flags` with O_CREAT.

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
    """The octets of a file; None where there is none, or it cannot be read, or is not regular, or
    longer than `limit` octets."""
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
    """So many octets of a file, or those that are there. Raises OSError."""
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
    """Make a new file, in place of what has its name; returns its descriptor, for reading and
    writing. Raises OSError, also where a directory is in the way."""
    remove(path)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600)
    except FileExistsError as error:
        raise OSError(error.errno, f"{path} is in the way, and cannot be removed") from None


def replace(path: str, parts: Iterable[Octets], durable: bool = False) -> None:
    """Have a file of these octets, all of them or, where OSError is raised, the one before.

    `durable`: its octets are on the disk before it has its name. The name may come to the disk
    later: that is for whoever needs it there to see to.
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
    """Remove a file, if it is there, or an empty directory in its place. False: it is still
    there."""
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
    """Write all of it where the descriptor is. Raises OSError."""
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
