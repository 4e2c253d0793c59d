"""What is odd about a mailspool: sessions refuse it, or show it otherwise than its owner
expects."""

from __future__ import annotations

import os
import re
from bisect import bisect_right

from tpop3d.commands.inspection import display
from tpop3d.mailspool.failures import Truncated
from tpop3d.mailspool.ids import DIGITS, Ids
from tpop3d.mailspool.scan import BLOCK
from tpop3d.mailspool.uidl import SUFFIX_DIGITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.mailspool.scan import Listing

# Kinds of problems.
GARBAGE = "garbage"
CHANGED = "changed"
HIDDEN = "hidden"
DUPLICATE = "duplicate"
CRLF = "crlf"
GLUED = "glued"
DOUBTFUL = "doubtful"
FROM_LINE = "from-line"
NUL = "nul"
NO_LINE_END = "no-line-end"
NO_EMPTY_LINE = "no-empty-line"

MOST = 1000  # problems of a kind that are kept; more are only counted
EXCERPT = 60  # characters
LONGEST = 512  # octets: the maximum of a From_ line
_LOOKED_AT = LONGEST + 80  # octets: a From_ line, and the name of a header field
_MARK = b"\nFrom "
_OVERLAP = len(_MARK) + 1  # octets: a mark less one, and the two before it
# A time as ctime(3) writes it, with additions of others (RFC 4155), or as in a Date field.
_TIME = re.compile(rb"From .*\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b.*\b\d?\d:\d\d")
# The name of a field, an old program's ">From ", or the end of a header without fields.
_HEADER = re.compile(rb"[!-9;-~]+[ \t]*:|>From |\r?\n|\Z")


class Problem:
    """Something odd: its kind, a text, and where it is.

    `offset` and `message` are None if it is about no octet or message. `count`: how many problems
    of its kind it stands for.
    """

    __slots__ = ("count", "kind", "message", "offset", "text")

    def __init__(
        self, kind: str, text: str, offset: int | None, message: int | None, count: int = 1
    ) -> None:
        self.count = count
        self.kind = kind
        self.text = text
        self.offset = offset
        self.message = message


class _Many:
    """Problems of one kind. There may be as many as there are lines, so only the first are kept."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: list[Problem] = []
        self._further = 0

    def add(self, text: str, offset: int, message: int | None) -> None:
        if len(self._found) < MOST:
            self._found.append(Problem(self._kind, text, offset, message))
        else:
            self._further += 1

    def all(self) -> list[Problem]:
        if not self._further:
            return self._found
        text = f"there are {self._further} further problems of this kind: {self._kind}"
        return [*self._found, Problem(self._kind, text, None, None, self._further)]


def find(fd: int, listing: Listing, ids: Ids) -> list[Problem]:
    """Find all that is odd about a mailspool with messages. Raises `Truncated` and OSError."""
    return [
        *_hidden(listing),
        *_duplicates(listing, ids),
        *_from_lines(fd, listing),
        *_within(fd, listing),
        *_at_the_end(fd, listing),
    ]


def garbage(fd: int, offset: int, size: int) -> Problem:
    """Describe what stands at `offset`, where the first message should begin."""
    first = _first_message(fd, offset, size)
    behind = "no message follows" if first < 0 else f"the first message begins at {first}"
    stands = os.pread(fd, 2 * EXCERPT, offset).partition(b"\n")[0]
    shown = display.readable(stands, EXCERPT)
    text = f"something else than a From_ line stands at offset {offset} ({shown}), and {behind}"
    return Problem(GARBAGE, text, offset, None)


def _first_message(fd: int, position: int, size: int) -> int:
    """Return the offset of the first From_ line after an empty line, or -1."""
    before = b""
    while position < size:
        block = os.pread(fd, min(BLOCK, size - position), position)
        if not block:
            raise Truncated
        window = before + block
        for mark in (b"\n\nFrom ", b"\n\r\nFrom "):
            if (found := window.find(mark)) >= 0:
                return position - len(before) + found + len(mark) - len(b"From ")
        before = window[-8:]
        position += len(block)
    return -1


def _hidden(listing: Listing) -> list[Problem]:
    if not listing.hides_first:
        return []
    end = listing.starts[0] if len(listing) else listing.end
    text = f"a mail program's own record stands before offset {end}; it is not shown"
    return [Problem(HIDDEN, text, 0, None)]


def _duplicates(listing: Listing, ids: Ids) -> list[Problem]:
    found = _Many(DUPLICATE)
    first_with = {unique_id: number for number, unique_id in enumerate(ids, 1)}
    for number, unique_id in enumerate(ids, 1):
        base = _base(unique_id, first_with)
        if base:
            twin = first_with.get(base)
            whose = f"message {twin}" if twin else "a message that is gone"
            text = f"message {number} has the unique-id of {whose}, and a suffix"
            found.add(text, listing.starts[number - 1], number)
    return found.all()


def _base(unique_id: bytes, others: dict[bytes, int]) -> bytes:
    """Return the id that another message had first; b"" if this id has no suffix.

    In ids that qpopper wrote into messages a hyphen means nothing.
    """
    base, hyphen, suffix = unique_id.partition(b"-")
    if hyphen and len(base) <= DIGITS and not base.strip(b"0123456789abcdef"):
        return base
    base, hyphen, suffix = unique_id.rpartition(b"-")
    is_suffix = len(suffix) == SUFFIX_DIGITS and not suffix.strip(b"0123456789abcdef")
    return base if hyphen and is_suffix and base in others else b""


def _from_lines(fd: int, listing: Listing) -> list[Problem]:
    """Check the lines that begin messages: some are odd, and some may be text."""
    odd, doubtful = _Many(FROM_LINE), _Many(DOUBTFUL)
    for number, start in enumerate(listing.starts, 1):
        octets = os.pread(fd, _LOOKED_AT, start)
        line, newline, behind = octets.partition(b"\n")
        whose = f"the From_ line of message {number}"
        if len(line) > LONGEST:
            odd.add(f"{whose} has more than {LONGEST} octets", start, number)
        elif b"\r" in line.removesuffix(b"\r" if newline else b""):
            odd.add(f"{whose} holds a CR, which ends no line", start, number)
        elif not _TIME.match(line):
            doubtful.add(f"message {number} may be text: there is no time in it", start, number)
        elif not _HEADER.match(behind):
            doubtful.add(f"message {number} may be text: it has no header", start, number)
    return [*odd.all(), *doubtful.all()]


def _within(fd: int, listing: Listing) -> list[Problem]:
    """Check what is between: NULs, and From_ lines that begin no message, because no empty line is
    before them."""
    glued = _Many(GLUED)
    nuls = first = last = 0
    position, before = 0, b"\n"  # as if the file began after a line
    while position < listing.end:
        block = os.pread(fd, min(BLOCK, listing.end - position), position)
        if not block:
            raise Truncated
        if (found := block.find(0)) >= 0:
            first = first if nuls else position + found
            last = position + block.rfind(0)
            nuls += block.count(0)
        window = before + block
        base = position - len(before)
        # With less than that before it, nothing has been searched yet.
        hit = window.find(_MARK, 2 if len(before) == _OVERLAP else 0)
        while hit >= 0:
            line_before = window[max(0, hit - 2) : hit]
            if line_before and not line_before.endswith((b"\n", b"\n\r")):
                _look_at(fd, listing, base + hit + 1, glued)
            hit = window.find(_MARK, hit + len(_MARK))
        before = window[-_OVERLAP:]
        position += len(block)
    problems = glued.all()
    if nuls:
        number = _number_at(listing, first)
        where = f"in message {number}" if number else "before the first message"
        text = f"a NUL stands at offset {first}, {where}"
        if nuls > 1:
            text = f"{nuls} NULs stand at offsets from {first} to {last}, the first {where}"
        problems.append(Problem(NUL, text, first, number))
    return problems


def _look_at(fd: int, listing: Listing, offset: int, glued: _Many) -> None:
    """Add the line at this offset if it is a From_ line: with a time, and a header behind it, it is
    hardly text."""
    line, _, behind = os.pread(fd, _LOOKED_AT, offset).partition(b"\n")
    if _TIME.match(line) and behind.strip() and _HEADER.match(behind):
        number = _number_at(listing, offset)
        text = f"a message is glued to message {number}: its From_ line, at offset {offset}, has no"
        glued.add(f"{text} empty line before it", offset, number)


def _number_at(listing: Listing, offset: int) -> int | None:
    """Return the number of the message that has this octet."""
    return bisect_right(listing.starts, offset) or None


def _at_the_end(fd: int, listing: Listing) -> list[Problem]:
    if not listing.end or not len(listing):
        return []
    last = os.pread(fd, 3, max(0, listing.end - 3))
    if not last.endswith(b"\n"):
        text = "the last line has no line end; what is delivered next may become a part of it"
        return [Problem(NO_LINE_END, text, listing.end, len(listing))]
    if not last.endswith((b"\n\n", b"\n\r\n")):
        text = "there is no empty line at the end; a message that is delivered without one before"
        text += " it becomes a part of the last"
        return [Problem(NO_EMPTY_LINE, text, listing.end, len(listing))]
    return []
