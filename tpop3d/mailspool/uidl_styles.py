"""Styles of unique-ids: the ids of other servers, for sites that move here.

A style is a function from the header of a message to its id, or to None if it has no usable one;
such a message gets tpop3d's own. A header begins with the `From ` line and ends with the LF of its
last line; a longer one is cut at 64 KiB.
"""

from __future__ import annotations

import os
import struct

from tpop3d.mailspool import statefile
from tpop3d.mailspool.light import md5

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol

    from tpop3d.mailspool.ids import Ids
    from tpop3d.mailspool.scan import Listing

    class Given(Protocol):
        """The part of `idfile.Given` that is dovecot's: 0 if it is not known."""

        validity: int
        last: int

    class Style(Protocol):
        is_by_history: bool  # is an id made of more than its message?
        has_refused: bool  # was the number in the last message refused?

        def __call__(self, header: bytes) -> bytes | None: ...

        def pass_by(self, header: bytes) -> None: ...

        def pass_number(self, unique_id: bytes) -> None: ...


STYLES = TPOP3D, POPA3D, DOVECOT, X_UIDL = ("tpop3d", "popa3d", "dovecot", "x-uidl")
FIRST_READ = 8192  # octets: nearly all headers
HEADER = 1 << 16  # octets of a header that are read at most
MAX_ID = 70  # octets (RFC 1939 section 7)
IN_IDS = bytes(range(0x21, 0x7F))
NUMBERED = 16  # the length of dovecot's ids; ids of other styles beside them have another
OLD_NAME = "uidvalidity"  # a file that earlier versions kept in the state directory
MAX_OLD = 64  # octets of that file

_WORDS = struct.Struct("<2I")
_MONTHS = b"jan feb mar apr may jun jul aug sep oct nov dec".split()
_FOLDED = frozenset((b" ", b"\t"))
_INITIALS = frozenset((b"R", b"r", b"D", b"d", b"M", b"m", b"X"))  # popa3d knows no x-


class Plain:
    """A style whose ids are made of one message each, by the function `made`."""

    is_by_history = has_refused = False

    def __init__(self, made: Callable[[bytes], bytes | None]) -> None:
        self._made = made

    def __call__(self, header: bytes) -> bytes | None:
        return self._made(header)

    def pass_by(self, header: bytes) -> None:
        """Skip a message that has its id already; later ids do not depend on it."""

    def pass_number(self, unique_id: bytes) -> None:
        """Skip a message that has its id already; later ids do not depend on it."""


def style_for(name: str, fd: int, listing: Listing, known: Ids, given: Given) -> Style | None:
    """The style with this name, for the messages behind those whose ids are `known`; None if it is
    tpop3d's own. Raises OSError."""
    if name == POPA3D:
        return Plain(popa3d)
    if name == X_UIDL:
        return Plain(x_uidl)
    if name != DOVECOT:
        return None
    # The header of the first message in the file, even if we hide that message.
    first = os.pread(fd, HEADER, 0).lstrip(b"\r\n")
    dovecot = Dovecot(_cut(first[first.find(b"\n") :]), given)
    for index in range(len(known) - 1, -1, -1):
        if len(known[index]) == NUMBERED:
            dovecot.pass_number(known[index])
            break
        dovecot.pass_by(header(fd, listing, index))
        if dovecot.is_closed:
            break
    return dovecot


def header(fd: int, listing: Listing, index: int) -> bytes:
    """Read the header of a message, `From ` line included. Raises OSError."""
    start = listing.starts[index]
    length = min(HEADER, listing.ends[index] - start)
    octets = os.pread(fd, min(FIRST_READ, length), start)
    end = octets.find(b"\n\n")
    if end < 0 and length > FIRST_READ:
        octets = os.pread(fd, length, start)
        end = octets.find(b"\n\n")
    return octets if end < 0 else octets[: end + 1]


def popa3d(header: bytes) -> bytes | None:
    """popa3d's id: half the MD5 of the header lines that no mail program changes.

    Only LF LF ends a header there. popa3d gives all messages without such lines the same id, and
    once a client has seen one of them, it would miss the later ones: here they have none.
    """
    lines = []
    fixed = received = False
    for line in header.split(b"\n"):
        first = line[:1]
        if first not in _FOLDED:
            fixed = False
            if first in _INITIALS:
                name = line[: line.find(b":") + 1].lower()
                if name == b"received:":
                    fixed = not received
                    received = True
                elif name in (b"date:", b"message-id:"):
                    fixed = not received
                else:
                    fixed = name in (b"delivered-to:", b"x-delivery-id:")
        if fixed:
            lines.append(line)
    if not lines:
        return None
    if not fixed:
        lines.append(b"")  # the last line has an end
    digest = md5(b"\n".join(lines), usedforsecurity=False).digest()
    return b"%08x%08x" % _WORDS.unpack_from(digest)


def x_uidl(header: bytes) -> bytes | None:
    """qpopper's id, which it wrote into the message, above all other fields, as X-UIDL."""
    for value in _values(_cut(header), b"x-uidl:"):
        if 1 <= len(value) <= MAX_ID and not value.translate(None, IN_IDS):
            return value
    return None


class Dovecot:
    """dovecot's ids by its default pop3_uidl_format: a number, and the validity of the spool.

    dovecot writes the number into each message as X-UID. It writes the validity and the last number
    into the first message as X-IMAPbase, or as X-IMAP into a record of c-client's. Numbers grow,
    and a message behind one without a number has none. A number that breaks these rules is refused,
    since X-UID may have come with the mail. A message whose `From ` line has no time is to dovecot
    text of the message before; the messages behind it keep their numbers.

    A remembered validity, by which ids were given, goes before the validity in another message that
    has become the first since.
    """

    is_by_history = True

    def __init__(self, first: bytes, given: Given) -> None:
        self._validity, self._last = _base(first) or (0, 0)
        if given.validity and given.validity != self._validity:
            self._validity, self._last = given.validity, given.last
        self._last = max(self._last, given.last)
        self._previous = 0
        self.has_refused = False

    def __call__(self, header: bytes) -> bytes | None:
        self.has_refused = False
        for value in _values(_cut(header), b"x-uid:"):
            uid = _number(value)
            if self._previous < uid <= self._last:
                self._previous = uid
                self.has_refused = False
                return b"%08x%08x" % (uid, self._validity)
            self.has_refused = True
        self.pass_by(header)
        return None

    def pass_by(self, header: bytes) -> None:
        """Skip a message without a number: those behind it have none either."""
        if _has_time(header[: header.find(b"\n")]):
            self._last = 0

    @property
    def is_closed(self) -> bool:
        """Are there no further messages with numbers?"""
        return not self._last

    def pass_number(self, unique_id: bytes) -> None:
        """Skip a message that has the number in this id."""
        self._previous = int(unique_id[:8], 16)


def _has_time(line: bytes) -> bool:
    """Does a `From ` line have a time as dovecot requires it: a month, hours and minutes?"""
    words = line.lower().split()
    return any(word[:3] in _MONTHS for word in words) and any(
        b":" in word and word.replace(b":", b"").isdigit() for word in words
    )


def note_validity(given: Given, ids: Iterable[bytes], is_first_gone: bool) -> None:
    """Remember the validity and the last number of dovecot's `ids`. They are lost with the first
    message, and cannot be made again."""
    numbered = [one for one in ids if len(one) == NUMBERED]
    if not numbered:
        given.validity = given.last = 0
    elif is_first_gone or given.validity:
        given.validity = int(numbered[-1][8:], 16)
        given.last = int(numbered[-1][:8], 16)


def old_validity(state: str) -> tuple[int, int]:
    """The validity and the last number in the file of an earlier version; (0, 0) without one."""
    return _pair(statefile.read(f"{state}/{OLD_NAME}", MAX_OLD) or b"") or (0, 0)


def forget_old(state: str) -> None:
    """Remove the file of an earlier version, which is no longer true."""
    statefile.remove(f"{state}/{OLD_NAME}")


def _base(header: bytes) -> tuple[int, int] | None:
    """The validity and the last number in the header of the first message, or None."""
    for name in (b"x-imapbase:", b"x-imap:"):
        for value in _values(header, name):
            if pair := _pair(value):
                return pair
    return None


def _pair(text: bytes) -> tuple[int, int] | None:
    words = text.split(None, 2)
    if len(words) < 2 or not _number(words[0]):
        return None
    return _number(words[0]), _number(words[1])


def _number(text: bytes) -> int:
    """Parse a number of 32 bits; 0 if the text is not one."""
    if not text.isdigit() or len(text) > 10 or int(text) >= 1 << 32:
        return 0
    return int(text)


def _cut(header: bytes) -> bytes:
    """Cut a header at its first empty line, also if that ends with CRLF."""
    for end in (b"\n\n", b"\n\r\n"):
        if (stop := header.find(end)) >= 0:
            header = header[: stop + 1]
    return header


def _values(header: bytes, name: bytes) -> Iterator[bytes]:
    """Yield the values of a header field, the first line of each."""
    lower = header.lower()
    field = b"\n" + name
    at = lower.find(field)
    while at >= 0:
        start = at + len(field)
        end = header.find(b"\n", start)
        if end < 0:
            return  # cut off
        yield header[start:end].strip(b" \t\r")
        at = lower.find(field, end)
