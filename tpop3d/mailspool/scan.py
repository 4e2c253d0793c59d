"""Finding the messages of an mbox, and their sizes, in one pass.

A message starts at a line `From ` at the start of the file or after an empty line, and runs to
the next. Its content is what follows the `From ` line, without the empty line that separates it
from the next message (or that ends the file). Content-Length is not believed.

The pass reads blocks into one reused buffer and works on them with `find` and `replace` alone:
anything done once a line costs a hundred times as much.
"""

from __future__ import annotations

import os
from binascii import crc32

from tpop3d.mailspool.arrays import array
from tpop3d.mailspool.md5 import md5
from tpop3d.mailspool.refusal import Truncated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = ("starts", "bodies", "ends", "octets", "prints")  # of a `Listing`
BLOCK = 1 << 18  # octets; fits the processor's cache
OVERLAP = 8  # octets kept before each block: "\n\r\nFrom" may be cut anywhere
HEAD = 512  # octets that a unique-id and a fingerprint cover
DIGEST = 16  # octets of an MD5
INTERNAL_SUBJECT = b"DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA"
INTERNAL_HEADERS = 8192  # octets in which the header of such a message must end


class Listing:
    """Where the messages are. All offsets are octets from the start of the spool.

    Message n starts at `starts[n]` with its `From ` line; its content is
    `bodies[n]`..`ends[n]`, and `octets[n]` long when sent; it runs to `starts[n + 1]`, or to `end`.
    `prints[n]` is a fingerprint of its first octets. `digests` are their MD5s, if they were asked
    for. `hides_first`: a mail program's own record stands before them.
    """

    __slots__ = ("bodies", "digests", "end", "ends", "hides_first", "octets", "prints", "starts")

    def __init__(self, end: int) -> None:
        self.starts = array("Q")
        self.bodies = array("Q")
        self.ends = array("Q")
        self.octets = array("Q")
        self.prints = array("I")
        self.digests = bytearray()
        self.end = end
        self.hides_first = False

    def __len__(self) -> int:
        return len(self.starts)

    def next_start(self, index: int) -> int:
        """Where the message after `index` starts, or the end."""
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.end

    def head(self, index: int) -> int:
        """How many octets the fingerprint covers. The separator is not among them: it may come
        later than the message."""
        return min(HEAD, self.ends[index] - self.starts[index])

    def drop_first(self) -> None:
        """Hide the first message: it is then like anything else that stands before the rest."""
        for name in COLUMNS:
            del getattr(self, name)[0]
        del self.digests[:DIGEST]
        self.hides_first = True

    def remove(self, deleted: Sequence[int], end: int) -> None:
        """Messages whose entry in `deleted` is 1 are gone, and the others have moved together. The
        last of them ended at `end`."""
        first = deleted.index(1)
        starts = self.starts[first:]
        starts.append(end)
        bodies, ends = self.bodies[first:], self.ends[first:]
        octets, prints = self.octets[first:], self.prints[first:]
        for name in COLUMNS:
            del getattr(self, name)[first:]
        self.digests.clear()
        gone = 0
        for index, mark in enumerate(deleted[first:]):
            if mark:
                gone += starts[index + 1] - starts[index]
                continue
            self.starts.append(starts[index] - gone)
            self.bodies.append(bodies[index] - gone)
            self.ends.append(ends[index] - gone)
            self.octets.append(octets[index])
            self.prints.append(prints[index])
        self.end = end - gone


class NotAnMbox(Exception):
    """Something other than empty lines stands before the first message; at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def scan(fd: int, start: int, end: int, with_digests: bool = False) -> Listing:
    """List the messages between two offsets; `start` is the start of the file or of a message.

    Raises `Truncated`, `NotAnMbox`, and OSError.
    """
    listing = Listing(end)
    scanner = _Scanner(fd, listing, with_digests)
    buffer = bytearray(OVERLAP + min(BLOCK, end - start))
    buffer[:OVERLAP] = b"\n" * OVERLAP
    target = memoryview(buffer)[OVERLAP:]
    position = start
    while position < end:
        got = os.preadv(fd, [target[: min(BLOCK, end - position)]], position)
        if not got:
            raise Truncated
        scanner.take(buffer, OVERLAP + got, position - OVERLAP)
        buffer[:OVERLAP] = buffer[got : got + OVERLAP]
        position += got
    scanner.finish(buffer[:OVERLAP])
    _refuse_garbage(fd, start, listing.starts[0] if len(listing) else end)
    return listing


class _Scanner:
    """The message that is being measured, across blocks."""

    def __init__(self, fd: int, listing: Listing, with_digests: bool) -> None:
        self._fd = fd
        self._listing = listing
        self._with_digests = with_digests
        self._start = -1  # of the current message; -1 before the first
        self._body = -1  # -1 until the end of its From_ line was seen
        self._newlines = 0  # LFs of the content so far, the separator's included
        self._pairs = 0  # those of them that a CR precedes

    def take(self, window: bytearray, stop: int, base: int) -> None:
        """Work on `window[OVERLAP:stop]`; `base` is the offset of `window[0]`."""
        has_cr = window.find(b"\r", OVERLAP - 1, stop) >= 0
        done = OVERLAP
        # From here: an earlier hit was whole in the block before.
        hit = window.find(b"From ", OVERLAP - 4, stop)
        while hit >= 0:
            if window[hit - 1] == 10 and (
                window[hit - 2] == 10 or (window[hit - 2] == 13 and window[hit - 3] == 10)
            ):
                self._count(window, done, hit, base, has_cr)
                done = max(hit, OVERLAP)
                if self._start >= 0:
                    self._close(window, base, base + hit, window[hit - 3 : hit])
                self._start = base + hit
                self._body = -1
                self._newlines = self._pairs = 0
            hit = window.find(b"From ", hit + 5, stop)
        self._count(window, done, stop, base, has_cr)

    def finish(self, last: bytearray) -> None:
        """Close the last message; `last` is the end of the spool."""
        if self._start >= 0:
            if self._body < 0:
                self._body = self._listing.end
            self._close(b"", self._listing.end, self._listing.end, last[-3:])

    def _count(self, window: bytearray, start: int, stop: int, base: int, has_cr: bool) -> None:
        """Count the line ends of the current message in a part of the window."""
        if self._body < 0:
            newline = window.find(b"\n", start, stop)
            if self._start < 0 or newline < 0:
                return
            start = newline + 1
            self._body = base + start
        if stop <= start:
            return
        # Thrice as fast as `count`, which looks at each octet for itself.
        self._newlines += stop - start - len(window[start:stop].replace(b"\n", b""))
        if has_cr:
            # From one octet before: the LF of a pair may be the first of this part.
            self._pairs += window.count(b"\r\n", start - 1, stop)

    def _close(self, window: bytes | bytearray, base: int, stop: int, last: bytearray) -> None:
        """Write down the current message, which runs to `stop` and ends with `last`."""
        listing = self._listing
        start, body = self._start, self._body
        end = stop
        newlines, pairs = self._newlines, self._pairs
        ended = stop > body and last[-1] == 10
        if ended and last[-2] == 10:
            end -= 1
            newlines -= 1
        elif ended and last[-2] == 13 and last[-3] == 10:
            end -= 2
            newlines -= 1
            pairs -= 1
        octets = end - body + newlines - pairs
        if end > body and not ended:
            octets += 2  # RETR ends the last line
        listing.starts.append(start)
        listing.bodies.append(body)
        listing.ends.append(end)
        listing.octets.append(octets)
        if start >= base:
            head = window[start - base : start - base + min(HEAD, stop - start)]
        else:
            head = os.pread(self._fd, min(HEAD, stop - start), start)
        listing.prints.append(crc32(head[: end - start] if end - start < HEAD else head))
        if self._with_digests:
            listing.digests += md5(head, usedforsecurity=False).digest()


def _refuse_garbage(fd: int, start: int, first: int) -> None:
    """Nothing but empty lines may stand before the first message (`echo > spool` leaves one)."""
    position = start
    while position < first:
        block = os.pread(fd, min(BLOCK, first - position), position)
        if not block:
            raise Truncated
        blank = len(block) - len(block.lstrip(b"\r\n"))
        if blank < len(block):
            raise NotAnMbox(position + blank)
        position += len(block)


def is_internal(fd: int, listing: Listing) -> bool:
    """Is the first message a mail program's own record (UW IMAP's c-client writes one)?"""
    if not len(listing):
        return False
    length = min(INTERNAL_HEADERS, listing.ends[0] - listing.bodies[0])
    headers = os.pread(fd, length, listing.bodies[0]).replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    fields = headers.split(b"\n")
    return b"Subject: " + INTERNAL_SUBJECT in fields and any(
        field.startswith(b"X-IMAP:") for field in fields
    )
