"""Which octets of a spool go when messages are removed, and whether they are still what they were.

`deleted` has an entry for each message of a listing: 1 for those that are to go.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tpop3d.mailspool.scan import Listing


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


def last_kept(deleted: Sequence[int]) -> int:
    """The last message that stays; there is one."""
    return len(deleted) - 1 - deleted[::-1].index(0)


def surplus(fd: int, listing: Listing, deleted: Sequence[int]) -> int:
    """How many octets of empty lines go with the last messages, from before them. Raises OSError.

    Where separators lead, one was written for each of them, perhaps behind another one. A single
    one stays: without it, what is delivered next might become a part of what is there.
    """
    if not (listing.separators_lead and deleted[-1] and 0 in deleted):
        return 0
    last = last_kept(deleted)
    end = listing.ends[last]
    line = 2 if os.pread(fd, 2, end) == b"\r\n" else 1
    return listing.starts[last + 1] - end - line


def first_other(
    listing: Listing,
    deleted: Sequence[int],
    seen: Sequence[int],
    end: int,
    scan_part: Callable[[int, int], Listing],
) -> int:
    """The first message to go that is not what it was, or -1: somebody may have made further
    messages within it. Those whose entry in `seen` is 1 are not looked at.

    `end` is where the last one ends now. `scan_part` lists the messages between two offsets; what
    it raises is raised.
    """
    index, count = 0, len(listing)
    while index < count:
        if seen[index] or not deleted[index]:
            index += 1
            continue
        first = index
        while index < count and deleted[index]:
            index += 1
        stop = listing.starts[index] if index < count else end
        there = scan_part(listing.starts[first], stop)
        for known in range(first, index):
            at = known - first
            if at == len(there) or there.starts[at] != listing.starts[known]:
                return known
            # The last one may have got its line's end meanwhile.
            has_grown = known == count - 1 and end != listing.end
            if there.octets[at] != listing.octets[known] and not has_grown:
                return known
        if len(there) > index - first:
            return index - 1
    return -1
