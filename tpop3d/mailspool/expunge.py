"""Removing messages from a spool in place.

The spool keeps its inode and its name, because other programs hold both. What is kept moves
towards the front, then the end is cut off. Whoever calls has the spool locks.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOVE_BLOCK = 1 << 20  # octets moved at a time


class Unfinished(Exception):
    """Writing failed when part of the mail had moved already. Nothing that was kept is lost.

    The spool now holds what is kept in 0..`written` and `read`..its end; the octets between are
    left over from what was moved or deleted.
    """

    def __init__(self, error: OSError, written: int, read: int) -> None:
        super().__init__(error, written, read)
        self.error = error
        self.written = written
        self.read = read


def kept_ranges(
    starts: Sequence[int], end: int, deleted: Sequence[int], size: int
) -> list[tuple[int, int]]:
    """What stays, from the first deleted message on: ranges of offsets, in order, not touching.

    `end` is where the last message ends; what comes after it, up to `size`, was delivered later.
    """
    ranges: list[tuple[int, int]] = []
    count = len(starts)
    index = deleted.index(1)
    while index < count:
        if deleted[index]:
            index += 1
            continue
        first = index
        while index < count and not deleted[index]:
            index += 1
        ranges.append((starts[first], starts[index] if index < count else end))
    if size > end:
        if ranges and ranges[-1][1] == end:
            ranges[-1] = (ranges[-1][0], size)
        else:
            ranges.append((end, size))
    return ranges


def expunge(fd: int, first: int, ranges: list[tuple[int, int]]) -> None:
    """Move `ranges` together, to `first` and on, and cut the spool after them.

    Raises OSError when nothing was changed, and `Unfinished` when something was. It is not
    interrupted by signals that only set a flag. Without ranges it is a truncate, which needs no
    space on the disk.
    """
    final = first + sum(end - start for start, end in ranges)
    if final > first:
        # A write that cannot succeed (quota, file size limit, read-only) fails here, on an octet
        # that is written as it was, before anything has moved.
        os.pwrite(fd, os.pread(fd, 1, final - 1), final - 1)
    written = first
    for start, end in ranges:
        position = start
        while position < end:
            try:
                block = os.pread(fd, min(MOVE_BLOCK, end - position), position)
                if not block:
                    raise OSError(0, "unexpected end of file")
                view = memoryview(block)
                while view:
                    count = os.pwrite(fd, view, written)
                    view = view[count:]
                    written += count
                    position += count
            except OSError as error:
                if written == first:
                    raise
                raise Unfinished(error, written, position) from error
    try:
        if final > first:
            os.fsync(fd)
        os.ftruncate(fd, final)
        os.fsync(fd)
    except OSError as error:
        raise Unfinished(error, final, os.fstat(fd).st_size) from error
