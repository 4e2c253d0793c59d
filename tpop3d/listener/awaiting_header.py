"""The listener's connections that wait for a balancer's header."""

from __future__ import annotations

from time import monotonic

from tpop3d.listener.connection import turn_away
from tpop3d.listener.limits import NOBODY, Seldom, source_of
from tpop3d.proxy.origin import Reading, is_news, log, origin, seconds_for_header
from tpop3d.system import logs
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from tpop3d.config.addresses import Tls
    from tpop3d.config.networks import Networks
    from tpop3d.listener.event_loop import Loop
    from tpop3d.listener.limits import Limits
    from tpop3d.proxy.header import Header
    from tpop3d.system import socket

    Serve = Callable[[socket.socket, str, tuple[str, int], Tls], None]

    class HeaderRules(Protocol):
        """Whose headers are believed, and how long they are awaited: directives, by their names."""

        login_seconds: int
        proxy_protocol_from: Networks | None


class Waiting:
    """A connection that waits: where it comes from, where it was made to, and until when it may
    wait."""

    __slots__ = ("connection", "deadline", "local", "peer", "reading", "tls")

    def __init__(
        self, connection: socket.socket, peer: str, local: tuple[str, int], tls: Tls
    ) -> None:
        self.connection = connection
        self.peer = peer
        self.local = local
        self.tls = tls
        self.reading = Reading(connection)
        self.deadline = 0.0  # a moment of monotonic()


class AwaitingHeader:
    """All connections that wait. Each counts for `max-children`, and for no source yet: the header
    tells the source. Then `serve` is called with the client's addresses."""

    def __init__(self, rules: HeaderRules, loop: Loop, limits: Limits, serve: Serve) -> None:
        self._rules = rules
        self._loop = loop
        self._limits = limits
        self._serve = serve
        self._seldom = Seldom()
        self._waiting: set[Waiting] = set()
        self._alarm = 0.0  # the earliest moment at which `_expire` is called; 0: it is not

    def change(self, rules: HeaderRules) -> None:
        """Go by other rules from now on; connections that wait go on waiting."""
        self._rules = rules

    def is_from_balancer(self, peer: str) -> bool:
        """Does a connection from this address begin with a header?"""
        networks = self._rules.proxy_protocol_from
        return networks is not None and peer in networks

    def add(self, connection: socket.socket, peer: str, local: tuple[str, int], tls: Tls) -> None:
        """Have a connection wait, unless its header is there already."""
        one = Waiting(connection, peer, local, tls)
        found = one.reading.read()
        if found is not None:
            self._settle(one, found)
            return
        if refused := self._limits.refuse(NOBODY):
            if line := self._limits.line(peer, refused):
                logs.warning(line)
            turn_away(connection, tls)
            return
        self._limits.add(NOBODY)
        self._waiting.add(one)
        one.deadline = monotonic() + seconds_for_header(self._rules.login_seconds)
        self._loop.add_reader(connection.fileno(), lambda: self._read(one))
        self._call_expire(one.deadline)

    def drop_all(self) -> None:
        """Close all connections that wait."""
        for one in list(self._waiting):
            self._forget(one)
            one.connection.close()

    def _read(self, one: Waiting) -> None:
        """Read more of a header."""
        found = one.reading.read()
        if found is not None:
            self._forget(one)
            self._settle(one, found)

    def _settle(self, one: Waiting, found: Header | Refusal) -> None:
        """Serve a connection whose header has come, or close one whose header is refused."""
        if isinstance(found, Refusal):
            key = f"{source_of(one.peer)} {found.kind}"
            if not is_news(found) or self._seldom.may(key):
                log(found, one.peer)
            one.connection.close()
        else:
            self._serve(one.connection, *origin(found, one.peer, one.local), one.tls)

    def _forget(self, one: Waiting) -> None:
        """Let a connection wait no more."""
        self._waiting.discard(one)
        self._limits.remove(NOBODY)
        self._loop.remove_reader(one.connection.fileno())

    def _call_expire(self, moment: float) -> None:
        """Have `_expire` called at a moment, if not before."""
        if not self._alarm or moment < self._alarm:
            self._alarm = moment
            self._loop.call_later(moment - monotonic(), self._expire)

    def _expire(self) -> None:
        """Close connections whose time is over."""
        now = monotonic()
        if self._alarm <= now:
            self._alarm = 0.0
        for one in [one for one in self._waiting if one.deadline <= now]:
            self._forget(one)
            self._settle(one, one.reading.give_up("timeout"))
        if self._waiting:
            self._call_expire(min(one.deadline for one in self._waiting))
