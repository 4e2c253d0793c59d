"""Command lines: from octets to a keyword and its argument.

RFC 1939 section 3 and RFC 2449 section 4. This module knows no states and no commands.
"""

from __future__ import annotations

MAX_COMMAND = 255  # octets, line end included (RFC 2449 section 4)
MAX_RESPONSE = 12288  # octets of a SASL response line; RFC 4954 section 4 names this figure
MAX_DIGITS = 10  # digits of a message number or a line count

# `LineBuffer.next_line` returns this for a line over its limit. No line contains an LF, so the
# value cannot be a line.
OVERLONG = b"\n"
BEGINNING = 32  # octets kept of an overlong line

# HTTP methods (RFC 9110 section 9, RFC 5789, RFC 4918 section 9). PRI begins the preface of HTTP/2.
HTTP_METHODS = (
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH",
    b"PROPFIND", b"PROPPATCH", b"MKCOL", b"COPY", b"MOVE", b"LOCK", b"UNLOCK", b"PRI",
)  # fmt: skip


class LineBuffer:
    """Holds received octets until they are read as lines."""

    __slots__ = ("_discarding", "_octets", "_searched", "beginning")

    def __init__(self, octets: bytes = b"") -> None:
        self.beginning = b""  # the first octets of the latest overlong line
        self._octets = bytearray(octets)
        self._searched = 0
        self._discarding = False

    def feed(self, octets: bytes) -> None:
        """Append octets from the client."""
        self._octets += octets

    def next_line(self, limit: int) -> bytes | None:
        """Take the next line off the buffer.

        Returns the line without its end (CRLF, or a bare LF), `OVERLONG` once for a line of more
        than `limit` octets (line end included), or None when no line is complete.
        An overlong line is discarded as it arrives, so it takes no memory.
        """
        end = self._octets.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._octets)
            if self._searched >= limit and not self._discarding:
                self._discarding = True
                self.beginning = bytes(self._octets[:BEGINNING])
            if self._discarding:
                self._octets.clear()
                self._searched = 0
            return None
        line = bytes(self._octets[: end + 1])
        del self._octets[: end + 1]
        self._searched = 0
        if self._discarding or len(line) > limit:
            if not self._discarding:
                self.beginning = line[:BEGINNING]
            self._discarding = False
            return OVERLONG
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]

    def has_line(self) -> bool:
        """Is another line complete? Then replies may be gathered (RFC 2449 section 6.6)."""
        return self._octets.find(b"\n", self._searched) >= 0

    def rest(self) -> bytes:
        """All octets not yet read as lines, for the process that takes the connection over."""
        return bytes(self._octets)


class Command:
    """A keyword in upper case, and the text behind the first space (None: there is no space)."""

    __slots__ = ("argument", "keyword")

    def __init__(self, keyword: bytes, argument: bytes | None) -> None:
        self.keyword = keyword
        self.argument = argument

    def words(self) -> list[bytes]:
        """The arguments, separated by single spaces; a space behind the keyword alone is none."""
        return self.argument.split(b" ") if self.argument else []


def is_malformed(line: bytes) -> bool:
    """Does the line contain a NUL or a CR? No command or response may."""
    return b"\0" in line or b"\r" in line


def is_http(line: bytes) -> bool:
    """Does a line, or the beginning of one, look like an HTTP request?

    It begins with an HTTP method, or its second word is a path and " HTTP/" stands behind that.
    """
    word, _, rest = line.partition(b" ")
    return word in HTTP_METHODS or (rest.startswith(b"/") and b" HTTP/" in rest)


def parse(line: bytes) -> Command:
    """Split a line from `LineBuffer.next_line` at its first space."""
    keyword, space, argument = line.partition(b" ")
    return Command(keyword.upper(), argument if space else None)


def number(word: bytes) -> int | None:
    """Parse a decimal number; returns None if `word` is not one.

    A number has no sign and at most `MAX_DIGITS` digits. Leading zeros are accepted: RFC 1939 does
    not mention them, clients send them, and every other server accepts them.
    """
    return int(word) if word.isdigit() and len(word) <= MAX_DIGITS else None
