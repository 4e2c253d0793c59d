"""Directives: how the value of one is read, and what the values come to."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.auth.templates import Mailbox

POP3_PORT = 110
MAX_ID = 2**32 - 2  # of users and groups; 2**32 - 1 means "leave it as it is" to the kernel


class Directive:
    """How a value is read: `parse` returns it, or raises ValueError with a text for people.

    `default` is written as it would be in the file; None: there is none, and the value is None.
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


class Address:
    """One `listen-address`: host, port and the domain of logins made there ("": none)."""

    __slots__ = ("domain", "host", "port")

    def __init__(self, host: str, port: int, domain: str) -> None:
        self.host = host
        self.port = port
        self.domain = domain

    def is_at(self, numeric: str) -> bool:
        """Is a numeric address one of the host's? "0.0.0.0" and "::" stand for all."""
        import _socket

        if self.host in (numeric, "0.0.0.0", "::"):
            return True
        try:
            found = _socket.getaddrinfo(self.host, None, type=_socket.SOCK_STREAM)
        except OSError:
            return False
        return any(address[0] == numeric for *_, address in found)


def boolean(text: str) -> bool:
    """yes/true, no/false."""
    if text.lower() in ("yes", "true"):
        return True
    if text.lower() in ("no", "false"):
        return False
    raise ValueError(f"must be yes or no, not {text!r}")


def names(text: str) -> list[str]:
    """Words, each of them once."""
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


def per_source(text: str) -> int | None:
    """A whole number from 0; or "half", of max-children, which is None."""
    return None if text == "half" else from_zero(text)


def absolute_path(text: str) -> str:
    """A path from the root."""
    if not text.startswith("/"):
        raise ValueError(f"must be an absolute path, not {text!r}")
    return text.rstrip("/") or "/"


def separators(text: str) -> str:
    """Characters that split a name; none of them may be part of most names."""
    if not text or not text.isascii() or any(c.isalnum() or c.isspace() for c in text):
        raise ValueError(f"must be punctuation characters, not {text!r}")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}, not {text!r}")
        return text.lower()

    return parse


def mailbox(text: str) -> Mailbox:
    """Mailbox templates."""
    from tpop3d.auth.templates import Mailbox

    return Mailbox(text)


def user_id(text: str) -> Principal:
    """A system user, by name or number."""
    import pwd

    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        raise ValueError(f"there is no user {text!r} on this system") from None
    return Principal(entry.pw_name, entry.pw_uid, entry.pw_gid, os.fsencode(entry.pw_dir))


def group_id(text: str) -> Principal:
    """A system group, by name, or a number that need not have one."""
    import grp

    try:
        gid = int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {text!r} on this system") from None
    if not 0 < gid <= MAX_ID:
        raise ValueError(f"{text!r} is no group for mail")
    return Principal(text, -1, gid, b"")


def addresses(text: str) -> list[Address]:
    """`host[:port][(domain)]`, separated by spaces; an IPv6 address stands in brackets."""
    return [_address(word) for word in text.split()]


def _address(word: str) -> Address:
    place, semicolon, _ = word.partition(";")
    if semicolon:
        raise ValueError(f"{word}: this version knows no TLS")
    place, parenthesis, domain = place.partition("(")
    if parenthesis and (not domain.endswith(")") or len(domain) < 2):
        raise ValueError(f"{word}: the domain must stand in parentheses")
    host, port = host_and_port(place)
    return Address(host, _port(port, word), domain[:-1])


def host_and_port(place: str) -> tuple[str, str]:
    """The parts of `host[:port]`, the port "" without one. An IPv6 address stands in brackets."""
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{place}: must be [address] or [address]:port")
        port = port[1:]
    else:
        host, _, port = place.partition(":")
        if ":" in port:
            raise ValueError(f"{place}: an IPv6 address must stand in brackets")
    if not host:
        raise ValueError(f"{place}: has no host")
    if place.endswith(":") and not port:
        raise ValueError(f"{place}: has no port")
    return host, port


def _port(text: str, word: str) -> int:
    if not text:
        return POP3_PORT
    if text.isdecimal() and text.isascii() and len(text) <= 5 and 0 < int(text) < 65536:
        return int(text)
    try:
        import _socket

        return _socket.getservbyname("pop3" if text == "pop-3" else text, "tcp")
    except OSError:
        raise ValueError(f"{word}: there is no port {text!r}") from None
