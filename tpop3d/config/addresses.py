"""`listen-address`: where the listener listens, for which domain, and with which TLS."""

from __future__ import annotations

import os

from tpop3d.config.directive import found

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Certificate files, each with the file of its private key. Clients that name no host, or one
    # that no certificate has, get the first.
    Pairs = tuple[tuple[str, str], ...]

POP3_PORT = 110
POP3S_PORT = 995
# How a connection comes to TLS.
NONE = "none"
STLS = "stls"
IMMEDIATE = "immediate"
MODES = (NONE, STLS, IMMEDIATE)
HOST_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
CREDENTIALS = "$CREDENTIALS_DIRECTORY"  # where systemd puts what LoadCredential= names


class Tls:
    """The TLS of an address or a door: its mode and its certificates."""

    __slots__ = ("mode", "pairs")

    def __init__(self, mode: str, pairs: Pairs = ()) -> None:
        self.mode = mode
        self.pairs = pairs

    def is_like(self, other: Tls) -> bool:
        """Are mode and certificates the same?"""
        return (self.mode, self.pairs) == (other.mode, other.pairs)


PLAIN = Tls(NONE)


class Unresolved(Exception):
    """Nobody could tell the addresses of a host name, for example because no nameserver answers."""


class Address:
    """One `listen-address`: host, port, the domain of logins made there ("": none), and its TLS.

    `tls` is None, and the port may still change, until `settle` is called. `numeric` are the
    addresses of the host, None until somebody has looked them up; a process that stays does so
    once. Port 0 is any free one: `bound` are then the ports that were found.
    """

    __slots__ = ("bound", "domain", "has_port", "host", "numeric", "port", "tls")

    def __init__(self, host: str, port: int | None, domain: str, tls: Tls | None) -> None:
        self.host = host
        self.has_port = port is not None
        self.port = _default_port(tls) if port is None else port
        self.domain = domain
        self.tls = tls
        self.numeric: frozenset[str] | None = None
        self.bound: frozenset[int] = frozenset()

    @property
    def place(self) -> tuple[str, int, str]:
        """What only one socket can be bound to. With port 0 each mode and domain is a place of its
        own."""
        mode = self.tls.mode if self.tls is not None else NONE
        return self.host, self.port, "" if self.port else f"{mode} {self.domain}"

    def is_port(self, number: int) -> bool:
        """Is this its port?"""
        return number in self.bound if not self.port else number == self.port

    def settle(self, default: Tls) -> None:
        """Take from the TLS of the configuration what the address itself does not say."""
        own = self.tls or Tls(default.mode)
        self.tls = PLAIN if own.mode == NONE else Tls(own.mode, own.pairs + default.pairs)
        if not self.has_port:
            self.port = _default_port(self.tls)

    def is_at(self, numeric: str) -> bool:
        """Is a numeric address one of this host? "0.0.0.0" and "::" stand for all. Raises
        `Unresolved`."""
        if self.host in (numeric, "0.0.0.0", "::"):
            return True
        self.look_up()
        return self.numeric is not None and numeric in self.numeric

    def look_up(self) -> None:
        """Find `numeric` if it is not known yet. Raises `Unresolved`."""
        from tpop3d.system import socket

        if self.numeric is not None:
            return

        def ask() -> list[str]:
            known = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
            return [str(address[0]) for *_, address in known]

        try:
            numeric = found("host", self.host, ask)
        except socket.gaierror as error:
            # Some C libraries have an error of its own for a name that exists and has no address.
            no_data = getattr(socket, "EAI_NODATA", socket.EAI_NONAME)
            if error.errno not in (socket.EAI_NONAME, no_data):
                raise Unresolved(f"listen-address: {self.host}: {error.strerror}") from None
            numeric = []
        self.numeric = frozenset(numeric)


def addresses(text: str) -> list[Address]:
    """Parse `host[:port][(domain)][;tls=mode[,certificate[,key]]]`, several separated by spaces. An
    IPv6 address stands in brackets."""
    return [_address(word) for word in text.split()]


def _address(word: str) -> Address:
    place, semicolon, settings = word.partition(";")
    tls = _tls(settings, word) if semicolon else None
    place, parenthesis, domain = place.partition("(")
    if parenthesis and (not domain.endswith(")") or len(domain) < 2):
        raise ValueError(f"{word}: the domain must stand in parentheses")
    if place.startswith(":"):
        raise ValueError(f"{word}: has no host; all of this one's are 0.0.0.0{place} [::]{place}")
    host, port = host_and_port(place)
    if why := _no_host(host, place.startswith("[")):
        raise ValueError(f"{word}: {why}")
    if not place.startswith("[") and not _is_encodable(host):
        raise ValueError(f"{word}: {host!r} is no name of a host")
    return Address(host, _port(port, word) if port else None, domain[:-1], tls)


def _no_host(host: str, is_bracketed: bool) -> str:
    """Say why this is neither an address nor the name of a host; "" if it may be one."""
    from tpop3d.system import socket

    if "/" in host:
        return "must be an address or a host, and no path"
    if "*" in host:
        return "no address has an asterisk; all of this host's are 0.0.0.0 and [::]"
    if "," in host:
        return "addresses are separated by blanks"
    if is_bracketed or not host.strip("0123456789."):
        if host.isdecimal():
            return f"must be an address or a host, and no port alone: 0.0.0.0:{host} [::]:{host}"
        family = socket.AF_INET6 if is_bracketed else socket.AF_INET
        try:
            socket.inet_pton(family, host.partition("%")[0])  # with its zone (RFC 4007)
        except (OSError, ValueError):
            return f"{host} is no address of IPv{6 if is_bracketed else 4}"
        return ""
    try:
        socket.if_nametoindex(host)
    except (OSError, ValueError):
        return ""
    return f"{host} is a network interface; give its address"


def _is_encodable(host: str) -> bool:
    """Can a nameserver be asked for this name (RFC 3490, RFC 1035 section 2.3.4, RFC 952)?"""
    if host.isascii():
        if host.strip(HOST_NAME):
            return False
        return all(0 < len(label) < 64 for label in host.removesuffix(".").split("."))
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _tls(settings: str, word: str) -> Tls:
    key, _, value = settings.partition("=")
    mode, comma, files = value.partition(",")
    if key != "tls" or mode not in MODES:
        modes = ", ".join(f"tls={one}" for one in MODES)
        raise ValueError(f"{word}: after the semicolon must stand one of {modes}")
    if not comma:
        return Tls(mode)
    certificate, comma, private_key = files.partition(",")
    if mode == NONE:
        raise ValueError(f"{word}: tls=none has no certificate")
    if "," in private_key or (comma and not private_key):
        raise ValueError(f"{word}: must be tls={mode},certificate or tls={mode},certificate,key")
    certificate = file_or_credential(certificate)
    return Tls(mode, ((certificate, file_or_credential(private_key) if comma else certificate),))


def file_or_credential(text: str) -> str:
    """Check the path of a file, or of a credential, which `located` finds."""
    if not text.startswith(("/", CREDENTIALS + "/")):
        raise ValueError(f"must be an absolute path, or {CREDENTIALS}/NAME, not {text!r}")
    return text


def files_of_tls(text: str) -> list[str]:
    """Check several such paths, separated by spaces."""
    return [file_or_credential(word) for word in text.split()]


def located(path: str) -> str:
    """Return the path without its variable. Raises ValueError if systemd has not set that."""
    if not path.startswith(CREDENTIALS):
        return path
    directory = os.environ.get(CREDENTIALS[1:])
    if directory is None:
        raise ValueError(f"{path}: systemd has set no {CREDENTIALS}; see LoadCredential=")
    return directory + path[len(CREDENTIALS) :]


def host_and_port(place: str) -> tuple[str, str]:
    """Split `host[:port]`; the port is "" if there is none. An IPv6 address stands in brackets."""
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


def is_local(client: str) -> bool:
    """Is a client on this host, as far as its address says? A Unix socket and a pipe are local,
    too."""
    return client in ("unix", "pipe", "::1") or client.startswith("127.")


def _default_port(tls: Tls | None) -> int:
    return POP3S_PORT if tls is not None and tls.mode == IMMEDIATE else POP3_PORT


def _port(text: str, word: str) -> int:
    if text.isdecimal() and text.isascii() and len(text) <= 5 and int(text) < 65536:
        return int(text)  # 0: any free one
    try:
        from tpop3d.system import socket

        name = "pop3" if text == "pop-3" else text
        return found("service", name, lambda: socket.getservbyname(name, "tcp"))
    except OSError:
        raise ValueError(f"{word}: there is no port {text!r}") from None
