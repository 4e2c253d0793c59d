"""The listening sockets: those of `listen-address`, or those that systemd has passed."""

from __future__ import annotations

import errno
import os

from tpop3d.config.addresses import IMMEDIATE, NONE, PLAIN, Tls, Unresolved
from tpop3d.config.directive import found
from tpop3d.system import logs, socket
from tpop3d.system.io import name_of
from tpop3d.system.refusal import PERMANENT, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tpop3d.settings import Config

    Listening = dict[socket.socket, Tls]  # listening sockets, each with the TLS of its clients
    Place = tuple[str, int, str]  # see Address

BACKLOG = 128  # connections that the kernel keeps until they are accepted
HINTS = {
    errno.EACCES: " (it takes root, with CAP_NET_BIND_SERVICE)",
    errno.EADDRINUSE: " by another server, or by a socket of systemd's: see ss -ltnp",
}


class Sockets:
    """The sockets of `listen-address`, kept by place, so that a reload binds only what is new."""

    def __init__(self) -> None:
        self._bound: dict[Place, list[socket.socket]] = {}

    def tls_of(self, config: Config) -> list[Tls]:
        """The TLS of each socket that `bind` would return."""
        return [address.tls or PLAIN for address in config.listen_address]

    def bind(self, config: Config) -> Listening | Refusal:
        """Listen on all addresses of a configuration, and on no others.

        Sockets that are bound already stay as they are. If one address cannot be bound, everything
        is as before. The caller closes the sockets that are wanted no more.
        """
        addresses = config.listen_address
        if not addresses:
            why = "nothing to listen on: give listen-address in the configuration"
            return Refusal(why, PERMANENT)
        wanted: dict[Place, Tls] = {}
        for address in addresses:
            wanted.setdefault(address.place, address.tls or PLAIN)
        refused = self._bind(list(wanted))
        if refused is not None:
            return refused
        for address in addresses:
            # For logins: no nameserver need answer for them.
            names = [one.getsockname() for one in self._bound[address.place]]
            address.numeric = frozenset(str(name[0]) for name in names)
            address.bound = frozenset(name[1] for name in names)
        return {one: wanted[place] for place, sockets in self._bound.items() for one in sockets}

    def _bind(self, wanted: list[Place]) -> Refusal | None:
        """Have sockets for these places and for no others."""
        new: dict[Place, list[socket.socket]] = {}
        leaving = [one for place, old in self._bound.items() if place not in wanted for one in old]
        # One that leaves may have the port of one that comes (0.0.0.0 and 127.0.0.1).
        _share(leaving, True)
        for place in wanted:
            made = self._bound.get(place) or _listen(*place[:2], share=bool(leaving))
            if isinstance(made, Refusal):
                _share(leaving, False)
                for other in new.keys() - self._bound.keys():
                    for one in new[other]:
                        one.close()
                return made
            new[place] = made
        self._bound = new
        return None

    def look_up(self, config: Config) -> None:
        """Look up the hosts that `bind` would look up."""
        wanted = {address.place for address in config.listen_address}
        for host, port, _ in wanted.difference(self._bound):
            try:
                _addresses_of(host, port)
            except (OSError, UnicodeError):
                continue  # the answer is known now, too


class PassedSockets:
    """Listening sockets from systemd. They stay the same; a reload may change their TLS.

    `immediate` are the descriptors on which TLS begins with the first octet.
    """

    def __init__(self, sockets: list[socket.socket], immediate: set[int]) -> None:
        self._sockets = sockets
        self._immediate = immediate
        # The addresses of each host that was looked up, None if nobody could tell.
        self._hosts: dict[str, frozenset[str] | None] = {}

    def tls_of(self, config: Config) -> list[Tls]:
        """The TLS of each socket that `bind` would return."""
        default = config.tls
        immediate = Tls(IMMEDIATE, default.pairs)
        return [immediate if one.fileno() in self._immediate else default for one in self._sockets]

    def bind(self, config: Config) -> Listening | Refusal:
        """Give each socket the TLS that the configuration says."""
        _look_up_domains(config, self._hosts)
        tls = config.tls
        if (self._immediate or tls.mode == IMMEDIATE) and not tls.pairs:
            why = "a socket from systemd wants TLS, and there is no tls-certificate"
            return Refusal(why, PERMANENT)
        return dict(zip(self._sockets, self.tls_of(config), strict=True))

    def look_up(self, config: Config) -> None:
        """Look up the hosts that `bind` would look up."""
        _look_up_domains(config, dict(self._hosts), is_trial=True)


def _look_up_domains(
    config: Config, known: dict[str, frozenset[str] | None], *, is_trial: bool = False
) -> None:
    """Find the addresses of each host that has a domain for append-domain, once for all logins.

    `known` are the answers from before a reload; new answers are added. A host that nobody can
    look up now is looked up again when a login needs it.
    """
    for address in config.listen_address if config.append_domain else ():
        address.numeric = known.get(address.host)
        try:
            if address.domain:
                address.look_up()
        except Unresolved as error:
            if not is_trial:
                logs.warning(str(error))
        known[address.host] = address.numeric


def _share(sockets: list[socket.socket], on: bool) -> None:
    """Let other sockets of ours bind what these are bound to (socket(7), SO_REUSEPORT), or not."""
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, on)


def _addresses_of(host: str, port: int) -> list[Any]:
    """The addresses of a host to listen on, as getaddrinfo(3) gives them."""

    def ask() -> list[Any]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)

    return found("address", f"{host} {port}", ask)


def _listen(host: str, port: int, share: bool) -> list[socket.socket] | Refusal:
    """Make a listening socket for every address of a host."""
    made = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(_addresses_of(host, port)):
            one = socket.socket(family, kind, protocol)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # [::] and 0.0.0.0 are two addresses here, as they are two lines to configure.
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _share([one], share)
            one.bind(address)
            one.listen(BACKLOG)
            _share([one], False)  # not with the next one of ours
    except (OSError, UnicodeError) as error:
        for one in made:
            one.close()
        shown = f"[{host}]" if ":" in host else host
        why = error.strerror if isinstance(error, OSError) else "no name of a host"
        hint = HINTS.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        return Refusal(f"cannot listen on {shown}:{port}: {why}{hint}")
    return made


def warn_of_no_tls(listening: Listening, config: Config) -> None:
    """Log a warning for each socket where clients cannot log in because it has no TLS."""
    for one, tls in listening.items():
        host = name_of(one, "getsockname")[0]
        if tls.mode == NONE and not config.takes_plaintext(host):
            who = "only clients on this host" if config.takes_plaintext("unix") else "nobody"
            logs.warning(
                f"{_shown(one, tls)} has no TLS, and plaintext-logins is {config.plaintext_logins}:"
                f" {who} can log in there; give tls-certificate"
            )


def shown(listening: Listening) -> str:
    """The addresses of listening sockets, for people."""
    return ", ".join(_shown(*one) for one in listening.items())


def _shown(one: socket.socket, tls: Tls) -> str:
    address = one.getsockname()
    ending = " (TLS)" if tls.mode == IMMEDIATE else ""
    if not isinstance(address, tuple):
        return f"unix:{os.fsdecode(address)}{ending}"
    host, port = address[:2]
    return f"[{host}]:{port}{ending}" if ":" in host else f"{host}:{port}{ending}"
