"""The form of a configuration file, and how it is read without its secrets.

Lines `key: value`; `#` starts a comment; a trailing backslash continues the line, unless it is
part of a comment.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Of a key, what it is: one of OPEN, DOUBTFUL, SECRET.
    Secrecy = Callable[[str], int]
    # Number of a line, its key, what is odd about the value.
    Oddity = tuple[int, str, str]

MAX_KEY = 80  # octets of a key
MAX_FILE = 1 << 18  # octets of a configuration file
BACKSLASH, COLON, ASTERISK, CR = b"\\:*\r"
BLANKS = b" \t\r"
TEXT_BLANKS = " \t\r"  # and no others: what is blank must be so for both
SPARED = b" \t\r\n\\"
KEY = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
QUOTES = b"\"'"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors begin a file with it
OPEN, DOUBTFUL, SECRET = range(3)
INCOMPLETE = "\n"  # at the end of a line that is continued, and nothing follows
# What may be meant as a part of a secret, and is none; or the other way round.
IS_CUT = "ends before its #, with which a comment begins"
IS_SHIFTED = "has more than one blank before it, and they are no part of it"
IS_STRIPPED = "has blanks behind it, and they are no part of it"
IS_QUOTED = "has quotes around it, and they are a part of it"
IS_CONTINUED = "ends with a backslash, so that the next line is a part of it"


def content_without_secrets(file: str, secrecy: Secrecy) -> tuple[str, bool, list[Oddity]]:
    """The text of a file, without comments, and with asterisks for the value of each secret key;
    whether there was one in a file that every user can read; and what is odd about any.

    A text cannot be wiped from memory, but a buffer can: secrets are overwritten in it before
    anything becomes a text, so no process that serves a session has ever had them. What follows
    a malformed or a doubtful key may be a secret, too, and so may a line that was not meant to
    continue the one before. Raises OSError; ValueError where the file is too large.
    """
    buffer = bytearray(MAX_FILE + 1)
    length = 0
    with open(file, "rb", buffering=0) as opened:
        is_open_to_all = bool(os.fstat(opened.fileno()).st_mode & 0o004)
        while got := opened.readinto(memoryview(buffer)[length:]):
            length += got
    if length > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE} octets")
    if buffer.startswith(BYTE_ORDER_MARK):
        buffer[: len(BYTE_ORDER_MARK)] = b"   "
    # By the end of its line, where a comment begins, and whether a blank follows its #.
    comments: dict[int, tuple[int, bool]] = {}
    comment = buffer.find(b"#", 0, length)
    while comment >= 0:
        end = _end_of_line(buffer, comment, length)
        comments[end] = comment, comment + 1 == end or buffer[comment + 1] in BLANKS
        buffer[comment:end] = b" " * (end - comment)
        comment = buffer.find(b"#", end, length)
    start = 0
    is_exposed = is_tabular = False
    oddities: list[Oddity] = []
    while start < length:
        end = _end_of_line(buffer, start, length)
        key, after = read_key(buffer, start, end)
        malformed = after == end or buffer[after] != COLON
        secret = DOUBTFUL if malformed else secrecy(key)
        value = after if malformed else after + 1
        why = _oddity(buffer, value, end, comments)
        # Of a value that is none, whoever sees it sees that; quotes and blanks do not matter there.
        is_telling = why == IS_CUT and _first(buffer, value, end) < end
        if why and (secret == SECRET or (secret == OPEN and is_telling)):
            oddities.append((buffer.count(b"\n", 0, start) + 1, key, why))
        is_tabular |= value + 1 < _first(buffer, value, end) < end and not secret
        while end < length and _is_continued(buffer, start, end):
            start, end = end + 1, _end_of_line(buffer, end + 1, length)
            # Not looked at where it may be a secret itself: a key is copied.
            if secret != SECRET and COLON in buffer[start : min(end, start + MAX_KEY)]:
                secret = max(secret, secrecy(read_key(buffer, start, end)[0]))
        if secret and _wipe(buffer, value, end) and secret == SECRET:
            is_exposed |= is_open_to_all
        start = end + 1
    if is_tabular:  # other values have several blanks before them, too
        oddities = [one for one in oddities if one[2] != IS_SHIFTED]
    return os.fsdecode(bytes(buffer[:length])), is_exposed, oddities


def read_key(line: bytes | bytearray, start: int, end: int) -> tuple[str, int]:
    """The key of a line, and where what follows it stands: a colon, or something is wrong."""
    position = start
    while position < end and line[position] in BLANKS:
        position += 1
    key = ""
    while position < end and line[position] in KEY:
        key += chr(line[position])
        position += 1
    while position < end and line[position] in BLANKS:
        position += 1
    return key, position


def _oddity(buffer: bytearray, start: int, end: int, comments: dict[int, tuple[int, bool]]) -> str:
    """What is odd about a value, "" for nothing. It may be a secret: no octet of it is copied."""
    comment, is_apart = comments.get(end, (end, True))
    first, last = _first(buffer, start, comment), comment - 1
    while last > first and buffer[last] in BLANKS:
        last -= 1
    if first == comment:  # there is nothing but the comment, if that is one
        return "" if is_apart else IS_CUT
    if _is_continued(buffer, start, end):
        return IS_CONTINUED if last > first else ""
    if comment < end and last == comment - 1:
        return IS_CUT
    if first < last and buffer[first] in QUOTES and buffer[first] == buffer[last]:
        return IS_QUOTED
    if comment == end and last + 1 < end - (buffer[end - 1] == CR):
        return IS_STRIPPED
    return IS_SHIFTED if first > start + 1 else ""


def _first(buffer: bytearray, start: int, end: int) -> int:
    """Where the first octet is that is no blank."""
    while start < end and buffer[start] in BLANKS:
        start += 1
    return start


def _end_of_line(buffer: bytearray, start: int, length: int) -> int:
    found = buffer.find(b"\n", start, length)
    return length if found < 0 else found


def _is_continued(buffer: bytearray, start: int, end: int) -> bool:
    last = end - 2 if end > start and buffer[end - 1] == CR else end - 1
    return last >= start and buffer[last] == BACKSLASH


def _wipe(buffer: bytearray, start: int, end: int) -> bool:
    """Overwrite everything but what the form of the file is made of. Was there anything?"""
    positions = [one for one in range(start, end) if buffer[one] not in SPARED]
    for position in positions:
        buffer[position] = ASTERISK
    return bool(positions)


def logical_lines(content: str) -> list[tuple[int, str]]:
    """The lines that say something, each with the number of its first physical line."""
    lines: list[tuple[int, str]] = []
    pending = ""
    first = 0
    for number, physical in enumerate(content.removesuffix("\n").split("\n"), 1):
        first = first or number
        line, comment, _ = physical.rstrip("\r").partition("#")
        if line.endswith("\\") and not comment:
            pending += line[:-1]
            continue
        if whole := (pending + line).strip(TEXT_BLANKS):
            lines.append((first, whole))
        pending, first = "", 0
    if pending:
        lines.append((first, pending.strip(TEXT_BLANKS) + INCOMPLETE))
    return lines
