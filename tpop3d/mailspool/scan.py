"""Finds the messages of an mbox, and their sizes, in one pass.

A message starts at a line that begins with `From `, at the start of the file or behind an empty
line, and runs to the next such line. Its content follows its `From ` line, and does not include
the separator from the next message. Content-Length is ignored.

The separator depends on the deliverer. Nearly all write an empty line behind a message; some write
it in front (dma, FreeBSD's default), and none behind. A message must have the same size and the
same id with and without neighbours, so the spool tells which of two rules holds:

- Tidy: the one empty line behind a message is its separator. Further ones are its content.
- Separators lead: the spool begins with an empty line, or its last line is complete and not empty.
  Then every empty line at the end of a message is a separator, since a neighbour that has come or
  gone may have left it there. If some message has several of them, the rule is remembered
  (idfile.py), since the neighbour that told it may go, too.

An id is made as if exactly one empty line stood behind the message (`_covered`).

The `From ` line is not sent to the client, with one exception: a line with text behind a lone CR,
or with more than 512 octets, is no envelope and may be anything, so it is sent as the start of the
content. A client must not delete what it was not shown.

The pass reads blocks into one reused buffer, and works on them with `find` and `replace` alone:
any work for each line costs a hundred times as much.
"""

from __future__ import annotations

import os
from binascii import crc32

from tpop3d.mailspool.failures import Truncated
from tpop3d.mailspool.light import array, md5

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLUMNS = ("starts", "bodies", "ends", "octets", "prints")  # the arrays of a `Listing`
BLOCK = 1 << 18  # octets; fits the processor's cache
OVERLAP = 8  # octets kept before each block: "\n\r\nFrom" may be cut anywhere
HEAD = 512  # octets that a unique-id and a fingerprint cover, and that a From_ line has at most
DIGEST = 16  # octets of an MD5
INTERNAL_SUBJECT = b"DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA"
INTERNAL_HEADERS = 8192  # octets in which the header of such a message must end


class Listing:
    """The offsets and sizes of messages. Offsets are octets from the start of the spool.

    Message n starts at `starts[n]` with its `From ` line, and runs to `starts[n + 1]`, or to `end`.
    Its content is `bodies[n]`..`ends[n]`, and has `octets[n]` octets when it is sent. `prints[n]`
    is a fingerprint of its first octets. `digests` are the MD5s that ids are made of, if the scan
    was to make them. `hides_first`: does a mail program's own record stand in front of them?
    `separators_lead`: see above. `has_surplus`: do several separators stand behind some message?
    """

    __slots__ = (
        "bodies", "digests", "end", "ends", "has_surplus", "hides_first", "octets", "prints",
        "separators_lead", "starts",
    )  # fmt: skip

    def __init__(self, end: int, separators_lead: bool = False) -> None:
        self.starts = array("Q")
        self.bodies = array("Q")
        self.ends = array("Q")
        self.octets = array("Q")
        self.prints = array("I")
        self.digests = bytearray()
        self.end = end
        self.hides_first = False
        self.separators_lead = separators_lead
        self.has_surplus = False

    def __len__(self) -> int:
        return len(self.starts)

    def next_start(self, index: int) -> int:
        """The offset at which the message after `index` starts, or the end of the last one."""
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.end

    def head(self, index: int) -> int:
        """The number of octets that the fingerprint covers. It does not cover the separator, which
        may be delivered later than the message, as the end of the last line may."""
        return min(HEAD, self.ends[index] - self.starts[index])

    def drop_first(self) -> None:
        """Hide the first message: it then belongs to the octets in front of the first message."""
        for name in COLUMNS:
            del getattr(self, name)[0]
        del self.digests[:DIGEST]
        self.hides_first = True

    def remove(self, deleted: Sequence[int], end: int) -> None:
        """Remove the messages whose entry in `deleted` is 1: the others have moved together.
        `end` is where the last message ended."""
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


def do_separators_lead(fd: int, end: int) -> bool:
    """Do deliverers write the empty line in front of a message in this spool, which ends at `end`?

    A last line without its end tells nothing: somebody may be writing it. Raises OSError.
    """
    if os.pread(fd, min(2, end), 0).startswith((b"\n", b"\r\n")):
        return True
    last = os.pread(fd, min(3, end), max(0, end - 3))
    return last.endswith(b"\n") and not last.endswith((b"\n\n", b"\n\r\n"))


def do_nothing() -> None:
    """Refresh nothing: no dotlock is held."""


def scan(
    fd: int,
    start: int,
    end: int,
    with_digests: bool = False,
    separators_lead: bool | None = None,
    refresh: Callable[[], None] = do_nothing,
) -> Listing:
    """List the messages between two offsets; `start` is the start of the file or of a message.

    `separators_lead` is None if the spool is to tell; for a part of a spool it must be given.
    `refresh` is called for each block. Raises `Truncated`, `NotAnMbox` and OSError.
    """
    if separators_lead is None:
        separators_lead = do_separators_lead(fd, end)
    listing = Listing(end, separators_lead)
    scanner = _Scanner(fd, listing, with_digests)
    buffer = bytearray(OVERLAP + min(BLOCK, end - start))
    buffer[:OVERLAP] = b"\n" * OVERLAP
    target = memoryview(buffer)[OVERLAP:]
    position = start
    while position < end:
        got = os.preadv(fd, [target[: min(BLOCK, end - position)]], position)
        if not got:
            raise Truncated
        scanner.scan(buffer, OVERLAP + got, position - OVERLAP)
        buffer[:OVERLAP] = buffer[got : got + OVERLAP]
        position += got
        refresh()
    scanner.finish(buffer[:OVERLAP])
    _refuse_garbage(fd, start, listing.starts[0] if len(listing) else end)
    return listing


class _Scanner:
    """Measures one message after the other, across the borders of blocks."""

    def __init__(self, fd: int, listing: Listing, with_digests: bool) -> None:
        self._fd = fd
        self._listing = listing
        self._with_digests = with_digests
        self._start = -1  # the start of the current message; -1 before the first
        self._body = -1  # the start of its content; -1 before the end of its From_ line was seen
        self._newlines = 0  # LFs of the content so far, those of the separator included
        self._pairs = 0  # how many of them have a CR in front

    def scan(self, window: bytearray, stop: int, base: int) -> None:
        """Measure `window[OVERLAP:stop]`; `base` is the offset of `window[0]` in the spool."""
        has_cr = window.find(b"\r", OVERLAP - 1, stop) >= 0
        done = OVERLAP
        # An earlier hit would have been whole in the previous block.
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
        """Write down the last message; `last` are the last octets of the spool."""
        if self._start >= 0:
            if self._body < 0:
                self._body = self._listing.end  # its From_ line has no end
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
        # This is three times as fast as `count`, which looks at each octet for itself.
        self._newlines += stop - start - len(window[start:stop].replace(b"\n", b""))
        if has_cr:
            # It begins one octet earlier: the LF of a pair may be the first octet of this part.
            self._pairs += window.count(b"\r\n", start - 1, stop)

    def _close(self, window: bytes | bytearray, base: int, stop: int, last: bytearray) -> None:
        """Write down the current message, which runs to `stop` and ends with the octets `last`."""
        listing = self._listing
        start, body = self._start, self._body
        newlines, pairs = self._newlines, self._pairs
        if start >= base:
            head = window[start - base : start - base + min(HEAD, stop - start)]
        else:
            head = os.pread(self._fd, min(HEAD, stop - start), start)
        is_ended = last[-1] == 10
        cr = head.find(b"\r", 0, body - start)
        has_end = is_ended or body < stop  # the From_ line
        if body - start > HEAD or 0 <= cr < body - start - 1 - has_end:
            # It is no From_ line, so it is sent.
            newlines += has_end
            pairs += has_end and os.pread(self._fd, 2, body - 2) == b"\r\n"
            body = start
        end = stop
        if is_ended and stop > body:
            if listing.separators_lead:
                end, lines, those_with_cr = self._strip(body, stop)
                newlines -= lines
                pairs -= those_with_cr
                listing.has_surplus |= lines > 1
            elif last[-2] == 10:
                end -= 1
                newlines -= 1
            elif last[-2] == 13 and last[-3] == 10:
                end -= 2
                newlines -= 1
                pairs -= 1
        octets = end - body + newlines - pairs
        if end > body and not is_ended:
            octets += 2  # RETR ends the last line
        listing.starts.append(start)
        listing.bodies.append(body)
        listing.ends.append(end)
        listing.octets.append(octets)
        own = head[: end - start] if end - start < HEAD else head
        listing.prints.append(crc32(own))
        if self._with_digests:
            # Nearly always exactly one empty line follows, and the head is what an id is made of.
            if end - start < HEAD and (stop - end != 1 or cr >= 0):
                head = _covered(own, not is_ended)
            listing.digests += md5(head, usedforsecurity=False).digest()

    def _strip(self, body: int, stop: int) -> tuple[int, int, int]:
        """Strip the empty lines from the end of `body`..`stop`; returns where the content ends, the
        number of these lines, and the number of those that have a CR."""
        lines = those_with_cr = 0
        end = stop
        while end > body:
            # The octet in front of one or two octets tells whether they are a whole line.
            at = max(body - 1, end - 3)
            tail = os.pread(self._fd, end - at, at)
            if tail.endswith(b"\n\n"):
                end -= 1
            elif tail.endswith(b"\n\r\n"):
                end -= 2
                those_with_cr += 1
            else:
                break
            lines += 1
        return end, lines, those_with_cr


def _covered(head: bytes | bytearray, is_open: bool) -> bytes | bytearray:
    """The octets that an id is made of: a short message and one empty line, cut at `HEAD` octets.

    `head` is the whole message. `is_open`: does its last line lack its end? Lines that are added
    end as the From_ line does.
    """
    newline = line_end(head)
    return (head + (newline if is_open else b"") + newline)[:HEAD]


def line_end(head: bytes | bytearray) -> bytes:
    """The line end of a message, as its first line has it."""
    return b"\r\n" if head[: head.find(b"\n") + 1].endswith(b"\r\n") else b"\n"


def digest_of(fd: int, listing: Listing, index: int) -> bytes:
    """The MD5 that the id of a message is made of. Raises OSError."""
    length = listing.ends[index] - listing.starts[index]
    head: bytes | bytearray = os.pread(fd, min(HEAD, length), listing.starts[index])
    if length < HEAD:
        head = _covered(head, not head.endswith(b"\n"))
    return md5(head, usedforsecurity=False).digest()


def _refuse_garbage(fd: int, start: int, first: int) -> None:
    """Raise `NotAnMbox` if anything but empty lines stands in front of the first message.

    `echo > spool` leaves one empty line. Raises `Truncated` and OSError, too.
    """
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
    """Is the first message a mail program's own record (c-client of UW IMAP writes one)? Raises
    OSError."""
    if not len(listing):
        return False
    length = min(INTERNAL_HEADERS, listing.ends[0] - listing.bodies[0])
    headers = os.pread(fd, length, listing.bodies[0]).replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    fields = headers.split(b"\n")
    return b"Subject: " + INTERNAL_SUBJECT in fields and any(
        field.startswith(b"X-IMAP:") for field in fields
    )
