"""The language of a configuration file: lines become values, and errors get their places.

A line is `key: value`; `#` starts a comment; a backslash at the end continues the line, unless it
is part of a comment. A secret is read only by the process that needs it.
"""

from __future__ import annotations

import os

from tpop3d.config import Unanswered
from tpop3d.config.directive import Passing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from tpop3d.config.directive import Directive

    # Tells of a key whether its value is OPEN, DOUBTFUL or SECRET.
    Secrecy = Callable[[str], int]
    # The number of a line, its key, and what is odd about its value.
    Oddity = tuple[int, str, str]

MAX_KEY = 80  # octets of a key
MAX_FILE = 1 << 18  # octets of a configuration file
BACKSLASH, COLON, ASTERISK, CR = b"\\:*\r"
BLANKS = b" \t\r"
TEXT_BLANKS = " \t\r"  # and no others: octets and text must agree about what is blank
SPARED = b" \t\r\n\\"
KEY = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
QUOTES = b"\"'"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors begin a file with it
OPEN, DOUBTFUL, SECRET = range(3)
INCOMPLETE = "\n"  # at the end of a line that is continued, and nothing follows
# Something looks like a part of a secret and is not; or it is a part, and does not look like one.
IS_CUT = "ends before its #, with which a comment begins"
IS_SHIFTED = "has more than one blank before it, and they are no part of it"
IS_STRIPPED = "has blanks behind it, and they are no part of it"
IS_QUOTED = "has quotes around it, and they are a part of it"
IS_CONTINUED = "ends with a backslash, so that the next line is a part of it"
MASK = "********"  # what is shown for a secret


class Secret:
    """The secret value of a directive. It is read from the file when it is needed, and kept
    nowhere."""

    __slots__ = ("_file", "_key")

    def __init__(self, file: str, key: str) -> None:
        self._file = file
        self._key = key

    def read(self) -> str:
        """The value as it stands in the file now. Raises OSError, and KeyError if it is gone.

        From here on it is in this process's memory.
        """
        with open(self._file, "rb") as file:
            content = os.fsdecode(file.read())
        return Reader(content, self._file).lines[self._key][1]


class Reader:
    """A file while it is read: its lines, and the errors and warnings so far."""

    def __init__(
        self, content: str, file: str, is_known: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._file = file
        self._is_known = is_known  # is this the name of a directive?
        self.lines: dict[str, tuple[int, str]] = {}  # key: line number and value, until taken
        self.numbers: dict[str, int] = {}  # key: line number, for good
        self.errors: list[tuple[int, str, str]] = []  # line number or 0, key, what is wrong
        self.warnings: list[tuple[int, str, str]] = []
        self.effective: list[tuple[str, str, bool]] = []
        # Numbers of lines behind one that lacks its value: each may be that value, and so a secret.
        self.doubtful: set[int] = set()
        is_open = False
        for number, line in logical_lines(content):
            if is_open:
                self.doubtful.add(number)
            is_open = self._add(number, line)

    def _add(self, number: int, line: str) -> bool:
        """Add a line. Does it lack its value, or seem to go on in the next line?"""
        octets = os.fsencode(line)
        key, after = read_key(octets, 0, len(octets))
        value = line.partition(":")[2].strip()
        if not key or octets[after : after + 1] != b":":
            # Only a known directive is quoted: the rest of the line may be a password.
            self.errors.append((number, key if self._is_known(key) else "", "must be 'key: value'"))
            return True
        if line.endswith(INCOMPLETE):
            self.errors.append((number, key, "is continued, and nothing follows"))
        elif key in self.lines:
            before = self.lines[key][0]
            shown = key if self.doubtful.isdisjoint((before, number)) or self._is_known(key) else ""
            self.errors.append((number, shown, f"given before, in line {before}"))
        else:
            self.lines[key] = number, value
            self.numbers[key] = number
        return not value or value.endswith("\\")

    def warn_of_secrets(self, oddities: list[Oddity]) -> None:
        """Warn about secrets that may be meant otherwise, and name the directive that takes any
        secret."""
        for number, key, why in oddities:
            file = f"{key}-file"
            self.warnings.append(
                (number, key, f"{why}; {file} takes any" if self._is_known(file) else why)
            )

    def values_of(self, directives: Mapping[str, Directive], prefix: str = "") -> dict[str, Any]:
        """Take the value of each directive out of the lines; otherwise its default, or None without
        one."""
        values: dict[str, Any] = {}
        for name, directive in directives.items():
            key = prefix + name
            number, text = self.lines.pop(key, (0, directive.default))
            values[name] = None
            if text is None:
                continue
            if directive.secret:
                self.effective.append((key, MASK, number == 0))
                values[name] = Secret(self._file, key) if text else None
                continue
            try:
                values[name] = directive.parse(text)
            except ValueError as error:
                from tpop3d.config import legacy

                meaning = legacy.meaning(key, text)
                if isinstance(error, Unanswered):
                    self.errors.append((number, key, Passing(error)))
                elif meaning is None:
                    self.errors.append((number, key, str(error)))
                    if directive.default is not None:
                        values[name] = directive.parse(directive.default)
                else:
                    text, why = meaning
                    values[name] = directive.parse(text)
                    self.warnings.append((number, key, why))
            self.effective.append((key, text, number == 0))
        return values

    def placed(self, why: str, otherwise: str) -> tuple[int, str, str]:
        """Give a message of a driver the line of the directive that it begins with, if the file has
        that."""
        key, colon, rest = why.partition(": ")
        if colon and key in self.numbers:
            return self.numbers[key], key, rest
        return self.numbers.get(otherwise, 0), otherwise, why

    def respell(self, misspelled: Mapping[str, str], prefix: str) -> None:
        """Take directives by old or wrong names, with a warning."""
        for wrong, right in misspelled.items():
            if (prefix + wrong) not in self.lines:
                continue
            number, text = self.lines.pop(prefix + wrong)
            if (prefix + right) in self.lines:
                self.errors.append((number, prefix + wrong, f"is {prefix + right}, given as well"))
                continue
            self.lines[prefix + right] = number, text
            self.warnings.append((number, prefix + wrong, f"is taken for {prefix + right}"))

    def told(self, found: list[tuple[int, str, str]]) -> list[str]:
        """Write errors or warnings for people, in the order of the file. A key of "" is not
        shown."""
        lines = []
        for number, key, why in sorted(found):
            place = f"{self._file}:{number}" if number else self._file
            line = f"{place}: {key}: {why}" if key else f"{place}: {why}"
            lines.append(Passing(line) if isinstance(why, Passing) else line)
        return lines


def content_without_secrets(file: str, secrecy: Secrecy) -> tuple[str, bool, list[Oddity]]:
    """Read a file as text, without comments, and with asterisks for the value of each secret key.

    Returns the text, whether every user can read a secret in it, and what is odd about secret
    values.

    A text cannot be wiped from memory, but a buffer can. So secrets are overwritten in the buffer
    before anything becomes a text, and no process that serves a session ever has them. The rest of
    a line with a malformed or doubtful key may be a secret, too, and so may a line that was not
    meant to continue the one before. Raises OSError, and ValueError if the file is too large.
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
    comments = _blank_comments(buffer, length)
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
        # An open value is shown, so people see its quotes and blanks, but not what a # cuts off.
        is_telling = why == IS_CUT and _first(buffer, value, end) < end
        if why and (secret == SECRET or (secret == OPEN and is_telling)):
            oddities.append((buffer.count(b"\n", 0, start) + 1, key, why))
        is_tabular |= value + 1 < _first(buffer, value, end) < end and not secret
        while end < length and _is_continued(buffer, start, end):
            start, end = end + 1, _end_of_line(buffer, end + 1, length)
            # A key is copied to be looked at, so not from a line that may be a secret itself.
            if secret != SECRET and COLON in buffer[start : min(end, start + MAX_KEY)]:
                secret = max(secret, secrecy(read_key(buffer, start, end)[0]))
        if secret and _wipe(buffer, value, end) and secret == SECRET:
            is_exposed |= is_open_to_all
        start = end + 1
    if is_tabular:  # other values have several blanks before them, too
        oddities = [one for one in oddities if one[2] != IS_SHIFTED]
    return os.fsdecode(bytes(buffer[:length])), is_exposed, oddities


def _blank_comments(buffer: bytearray, length: int) -> dict[int, tuple[int, bool]]:
    """Overwrite comments with blanks; returns, by the end of its line, where each began, and
    whether a blank followed its #."""
    comments: dict[int, tuple[int, bool]] = {}
    comment = buffer.find(b"#", 0, length)
    while comment >= 0:
        end = _end_of_line(buffer, comment, length)
        comments[end] = comment, comment + 1 == end or buffer[comment + 1] in BLANKS
        buffer[comment:end] = b" " * (end - comment)
        comment = buffer.find(b"#", end, length)
    return comments


def read_key(line: bytes | bytearray, start: int, end: int) -> tuple[str, int]:
    """Read the key of a line; returns it and the position behind it. Unless a colon stands there,
    the line is wrong."""
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
    """Say what is odd about a value, "" if nothing is. It may be a secret, so no octet of it is
    copied."""
    comment, is_apart = comments.get(end, (end, True))
    first, last = _first(buffer, start, comment), comment - 1
    while last > first and buffer[last] in BLANKS:
        last -= 1
    if first == comment:  # there is nothing but the comment, or what a # without a blank cuts off
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
    """Return the position of the first octet that is not blank."""
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
    """Overwrite all but blanks, line ends and backslashes. Was there anything to overwrite?"""
    positions = [one for one in range(start, end) if buffer[one] not in SPARED]
    for position in positions:
        buffer[position] = ASTERISK
    return bool(positions)


def logical_lines(content: str) -> list[tuple[int, str]]:
    """Return the lines that are not empty, each with the number of its first physical line."""
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
