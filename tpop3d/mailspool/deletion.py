"""Computes which octets of a spool an expunge keeps, and checks the messages that it removes.

`deleted` has an entry for each message of a listing: 1 if the message is to be removed.
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
    """The ranges of offsets to keep behind the first deleted message, in order; none touch.

    `end` is the end of the last message. Octets from there to `size` were delivered later.
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
    """The index of the last message that stays. There must be one."""
    return len(deleted) - 1 - deleted[::-1].index(0)


def surplus(fd: int, listing: Listing, deleted: Sequence[int]) -> int:
    """The size of the empty lines in front of the last messages that are removed with these.

    Raises OSError. Where separators lead, one was written in front of each message, perhaps behind
    another one. One of them stays: without it, the message that is delivered next might become a
    part of the last one. The result is 0 if separators do not lead, or the last message stays.
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
    """The index of the first message to be removed that is no longer what it was, or -1.

    Somebody may have made further messages within it. Messages whose entry in `seen` is 1 are not
    compared. `end` is where the last message ends now. `scan_part` lists the messages between two
    offsets; this raises what `scan_part` raises.
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
            # The last line may have got its end meanwhile.
            has_grown = known == count - 1 and end != listing.end
            if there.octets[at] != listing.octets[known] and not has_grown:
                return known
        if len(there) > index - first:
            return index - 1
    return -1
