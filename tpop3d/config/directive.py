"""Directives: how their values are read, and the types that the values have."""

from __future__ import annotations

import os

from tpop3d.config import Unanswered
from tpop3d.config.templates import NO_HOME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, TypeVar

    from tpop3d.config.networks import Networks
    from tpop3d.config.templates import Mailbox

    Answer = TypeVar("Answer")

    class Answers(Protocol):
        def answer(self, what: str, name: str, ask: Callable[[], Answer]) -> Answer: ...


UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # of sizes
MAX_SIZE = 1 << 50
LEAST_MEMORY = 64 << 20  # octets; a process has nearly 16 MiB before it serves anybody
MAX_ID = 2**32 - 2  # of users and groups; 2**32 - 1 means "leave it as it is" to the kernel
MAX_DIGITS = 10  # of one


class Directive:
    """How a value is read: `parse` returns it, or raises ValueError with a text for people.

    `default` is written as in the file. Without one (None) the value is None.
    """

    __slots__ = ("default", "parse", "secret")

    def __init__(
        self, parse: Callable[[str], object], default: str | None = None, *, secret: bool = False
    ) -> None:
        self.parse = parse
        self.default = default
        self.secret = secret


class Principal:
    """A system user or group that a directive names. `home` and `gid` are the user's."""

    __slots__ = ("gid", "home", "name", "uid")

    def __init__(self, name: str, uid: int, gid: int, home: bytes) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home


def boolean(text: str) -> bool:
    """yes/true, no/false."""
    if text.lower() in ("yes", "true"):
        return True
    if text.lower() in ("no", "false"):
        return False
    raise ValueError(f"must be yes or no, not {text!r}")


def names(text: str) -> list[str]:
    """Words, none of them twice."""
    words = text.split()
    if len(set(words)) < len(words):
        raise ValueError(f"must name each one once, not {text!r}")
    return words


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not text.isascii() or int(text[:10]) == 0 or len(text) > 9:
        raise ValueError(f"must be a number from 1, not {text!r}")
    return int(text)


def from_zero(text: str) -> int:
    """A whole number from 0."""
    return 0 if text == "0" else positive(text)


def size(text: str) -> int:
    """A number of octets from 1, or of KiB, MiB or GiB, with K, M or G behind it."""
    digits = text.rstrip("KkMmGg")
    unit = UNITS.get(text[len(digits) :].upper(), 0)
    octets = int(digits[:20]) * unit if digits.isdecimal() and digits.isascii() else 0
    if not 1 <= octets <= MAX_SIZE:
        raise ValueError(f"must be a size like 512M (K, M, G, or octets), not {text!r}")
    return octets


def size_text(octets: int) -> str:
    """Write a size in the largest unit of which it is a multiple."""
    unit, factor = [one for one in UNITS.items() if octets % one[1] == 0][-1]
    return f"{octets // factor}{unit}"


def memory(text: str) -> int:
    """A size that is enough for a process to serve a client."""
    octets = size(text)
    if octets < LEAST_MEMORY:
        raise ValueError(f"must be at least {size_text(LEAST_MEMORY)}, not {text!r}")
    return octets


def per_source(text: str) -> int | None:
    """A whole number from 0, or "half" of max-children, which is None."""
    return None if text == "half" else from_zero(text)


def absolute_path(text: str) -> str:
    """A path from the root."""
    if not text.startswith("/"):
        raise ValueError(f"must be an absolute path, not {text!r}")
    return text.rstrip("/") or "/"


def separators(text: str) -> str:
    """Characters that split a name; letters and digits cannot."""
    if not text or not text.isascii() or any(c.isalnum() or c.isspace() for c in text):
        raise ValueError(f"must be punctuation characters, not {text!r}")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """Return what parses one of these words."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}, not {text!r}")
        return text.lower()

    return parse


def mailbox(text: str) -> Mailbox:
    """One or more mailbox templates."""
    from tpop3d.config.templates import Mailbox

    return Mailbox(text)


def networks(text: str) -> Networks | None:
    """Networks of IP addresses; None if there are none."""
    if not text:
        return None
    from tpop3d.config.networks import Networks

    return Networks(text)


class Passing(str):
    """A problem that may pass without anybody changing the file."""

    __slots__ = ()


# The answers to look-ups by name, which may take long, if another process has got them already.
answers: Answers | None = None


def found(what: str, name: str, ask: Callable[[], Answer]) -> Answer:
    """Look something up by name: call `ask`, or take the answer that another process of ours has
    got.

    The answer is made of plain values. Raises what `ask` raises, of ValueError and OSError.
    """
    return ask() if answers is None else answers.answer(what, name, ask)


def user_id(text: str) -> Principal:
    """Parse the name or number of a system user.

    A number needs no entry in the user database: such a user has no home directory, and the group
    of the same number, or our group if it is our own number.
    """
    return Principal(*found("user", text, lambda: _user(text)))


def _user(text: str) -> tuple[str, int, int, bytes]:
    import pwd

    uid = _id(text)

    def ask() -> pwd.struct_passwd:
        return pwd.getpwnam(text) if uid is None else pwd.getpwuid(uid)

    try:
        entry = ask()
    except KeyError:
        try:
            _refuse_absent("user", "passwd", text if uid is None else uid)
        except Unanswered:
            raise
        except ValueError:
            if uid is None:
                raise
            return text, uid, os.getegid() if uid == os.geteuid() else uid, NO_HOME
        entry = ask()
    return entry.pw_name, entry.pw_uid, entry.pw_gid, os.fsencode(entry.pw_dir)


def group_id(text: str) -> Principal:
    """Parse the name or number of a system group. A number needs no entry in the group database."""
    gid = _id(text)
    if gid is None:
        gid = found("group", text, lambda: _group(text))
    if gid == 0:
        raise ValueError(f"{text!r} is root's group, and none for mail")
    return Principal(text, -1, gid, b"")


def _id(text: str) -> int | None:
    """Parse a number of a user or group; returns None for a name. Raises ValueError if it is too
    large."""
    if not text.isdecimal() or not text.isascii():
        return None
    if len(text) > MAX_DIGITS or int(text) > MAX_ID:
        raise ValueError(f"{text[:20]!r} is more than any user or group has")
    return int(text)


def _group(text: str) -> int:
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        _refuse_absent("group", "group", text)
    return grp.getgrnam(text).gr_gid


def _refuse_absent(what: str, database: str, key: str | int) -> None:
    """Raise why a user or group was not found. Return if it is there now, so that it is read
    again."""
    from tpop3d.config import nsswitch

    try:
        if not nsswitch.is_absent(database, key):
            return
    except Unanswered as error:
        raise Unanswered(f"{what} {str(key)!r} cannot be looked up: {error}") from None
    raise ValueError(f"there is no {what} {str(key)!r} on this system")
