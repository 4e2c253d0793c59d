"""`$(variable)` in the configuration: mailbox paths and the names of password files."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VARIABLES = ("user", "local_part", "domain", "home")
# How other programs write variables (Dovecot, shells).
FOREIGN = (
    ("%u", "$(user)"), ("%n", "$(local_part)"), ("%d", "$(domain)"), ("%h", "$(home)"),
    ("%{", "$(user)"), ("${", "$(user)"),
)  # fmt: skip
NO_HOME = b"/nonexistent"  # stands for no home directory (Debian Policy 9.2.3)
NO_HOMES = (NO_HOME, b"/dev/null")  # the second is an old habit

MAX_NAME = 255  # octets of a name that a client gives


def is_plain(name: bytes) -> bool:
    """May this name be part of a path, and be looked up among the users of the system?"""
    return 0 < len(name) <= MAX_NAME and name[0:1] != b"." and not name.strip(_PLAIN)


_PLAIN = bytes(c for c in range(1, 256) if c not in b"/\r\n")


class Template:
    """A text with variables: `$(user)`, or one character of it, `$(user[0])` (-1: the last).

    Raises ValueError with a text for the administrator if it is wrong.
    """

    __slots__ = ("parts", "text")

    def __init__(self, text: str, variables: Sequence[str] = VARIABLES) -> None:
        self.text = text
        # Each part is literal text, a variable, and its index or None. The last has no variable.
        self.parts: list[tuple[str, str, int | None]] = []
        for foreign, ours in FOREIGN:
            if foreign in text:
                raise ValueError(f"{text!r}: {foreign} is not known here; write {ours}")
        literal, opening, rest = text.partition("$(")
        while opening:
            inside, closing, rest = rest.partition(")")
            if not closing:
                raise ValueError(f"{text!r} has no ')' after '$('")
            name, index = _split_index(inside)
            if name not in variables:
                raise ValueError(
                    f"unknown variable $({inside}); there are "
                    + ", ".join(f"$({variable})" for variable in variables)
                )
            self.parts.append((literal, name, index))
            literal, opening, rest = rest.partition("$(")
        self.parts.append((literal, "", None))

    def __str__(self) -> str:
        return self.text

    def required(self, values: Mapping[str, bytes]) -> str:
        """Return the directory that is there even if there is no mail yet.

        It is the path up to its first variable, or the home directory if the path begins with that.
        It is "" for a user without a home directory.
        """
        literal, name, index = self.parts[0]
        if name != "home" or index is not None:
            return os.path.dirname(literal) or "/"
        if literal:
            return literal.rstrip("/") or "/"  # a home directory begins with a slash
        home = values.get(name, b"")
        if home.rstrip(b"/") in NO_HOMES:
            return ""
        return os.fsdecode(home).rstrip("/") or "/"

    def expand(self, values: Mapping[str, bytes]) -> str | None:
        """Return the path for these values, or None if they cannot be part of a path.

        Names come from the network: an empty one, or one with a slash or a leading dot, reaches no
        file. `home` comes from the system, and may be any path.
        """
        result = b""
        for literal, name, index in self.parts:
            result += os.fsencode(literal)
            if not name:
                break
            value = values.get(name, b"")
            if name != "home" and not is_plain(value):
                return None
            if index is not None:
                if not -len(value) <= index < len(value):
                    return None
                value = value[index : index + 1 or None]
            result += value
        # Pieces of plain names may make "..": "." and the last character of "a.".
        if b"\0" in result or any(part in (b".", b"..") for part in result.split(b"/")):
            return None
        return os.fsdecode(result)


def _split_index(inside: str) -> tuple[str, int | None]:
    """Split a variable with an index: `user[0]` gives ("user", 0)."""
    name, bracket, index = inside.partition("[")
    if not bracket:
        return name, None
    try:
        if not index.endswith("]"):
            raise ValueError
        return name, int(index[:-1])
    except ValueError:
        raise ValueError(f"$({inside}): the index must be a number, as in $(user[0])") from None


class Mailbox:
    """One or more `[bsd:]path` templates, tried in order."""

    __slots__ = ("templates", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.templates = [Template(_path_of(word)) for word in text.split()]
        if not self.templates:
            raise ValueError("needs at least one path")

    def __str__(self) -> str:
        return self.text

    def paths(self, values: Mapping[str, bytes]) -> list[str]:
        """Return the paths for these values; none if no template takes them."""
        return self.places(values)[0]

    def places(self, values: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
        """Return the paths for these values, and the directory that must be there for each, or
        ""."""
        paths, required = [], []
        for template in self.templates:
            if (path := template.expand(values)) is not None:
                directory = template.required(values)
                if directory and not path.startswith(directory.rstrip("/") + "/"):
                    directory = os.path.dirname(path)  # $(home) is the mailbox, or a part of a name
                paths.append(path)
                required.append(directory)
        return paths, required


def _path_of(word: str) -> str:
    kind, colon, path = word.partition(":")
    if not colon or "/" in kind or "$" in kind:
        kind, path = "bsd", word
    if kind != "bsd":
        raise ValueError(f"{kind!r} is no kind of mailbox that is known here; there is bsd")
    if not path.startswith(("/", "$(home)")):
        hint = "; write $(home) for ~" if path.startswith("~") else ""
        raise ValueError(f"{path!r} is no absolute path{hint}")
    return path
