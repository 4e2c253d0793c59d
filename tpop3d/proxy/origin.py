"""Connections that a balancer makes for clients: its header is read, and believed.

Whoever reads it has all privileges, so nothing of what the client sends is read with it.
"""

from __future__ import annotations

import os
import stat
from time import monotonic

from tpop3d.config.addresses import is_local
from tpop3d.proxy import header
from tpop3d.proxy.header import Header
from tpop3d.system import logs, socket
from tpop3d.system.io import name_of, ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.settings import Config

    Origin = tuple[str, tuple[str, int]]  # the client; the address and port that it connected to

SECONDS = 10.0  # to send a header in, unless `login-seconds` is less
MISSING = "proxy header missing"
WRONG = "proxy header wrong"


class HeaderRefused:
    """Why a connection is not served: `what` happened, and the reason."""

    __slots__ = ("reason", "what")

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason

    @property
    def is_news(self) -> bool:
        """A balancer that looks whether somebody listens, and goes, is none."""
        return (self.what, self.reason) != (MISSING, "eof")

    def log(self, balancer: str) -> None:
        """Say so in the log."""
        line = logs.event(self.what, rip=balancer, reason=self.reason)
        (logs.notice if self.is_news else logs.debug)(line)


class Reading:
    """The header of one connection, as far as it has come."""

    __slots__ = ("_connection", "_octets")

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._octets = b""

    def read(self) -> Header | HeaderRefused | None:
        """Read what is there, but nothing behind the header; None while it is not whole."""
        while True:
            found = header.parse(self._octets)
            if isinstance(found, str):
                return HeaderRefused(WRONG, found)
            if isinstance(found, Header):
                return found
            try:
                received = self._connection.recv(found, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError:
                received = b""  # reset
            if not received:
                return self.give_up("eof")
            self._octets += received

    def give_up(self, reason: str) -> HeaderRefused:
        """There will be nothing more of it."""
        return HeaderRefused(WRONG if self._octets else MISSING, reason)


def origin(header: Header, peer: str, local: tuple[str, int]) -> Origin:
    """Who the client of a connection is that a balancer has made from `peer`, to `local`."""
    if not header.client:
        return peer, local
    # A loopback address is one of the balancer's host, which may be another one than this.
    is_here = not is_local(header.client) or is_local(peer)
    return header.client if is_here else peer, header.local


def seconds_for_header(config: Config) -> float:
    """How long a balancer may take to send a header."""
    return min(SECONDS, config.login_seconds)


def is_from_balancer(config: Config, fd: int) -> bool:
    """Does the connection on a descriptor begin with a header? Of what is no socket, or has no IP
    address, none does."""
    if config.proxy_protocol_from is None or not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    connection = socket.socket(fileno=os.dup(fd))
    try:
        return name_of(connection, "getpeername")[0] in config.proxy_protocol_from
    finally:
        connection.close()


def await_origin(config: Config, fd: int) -> Origin | None:
    """Wait for the header of the connection on a descriptor, and say whose it is; None where there
    is no good one, which is logged."""
    connection = socket.socket(fileno=os.dup(fd))
    try:
        peer, local = name_of(connection, "getpeername")[0], name_of(connection, "getsockname")
        found = _await_header(connection, seconds_for_header(config))
    finally:
        connection.close()
    if isinstance(found, HeaderRefused):
        found.log(peer)
        return None
    return origin(found, peer, local)


def _await_header(connection: socket.socket, seconds: float) -> Header | HeaderRefused:
    reading = Reading(connection)
    deadline = monotonic() + seconds
    while (left := deadline - monotonic()) > 0:
        ready(left, connection.fileno())
        if (found := reading.read()) is not None:
            return found
    return reading.give_up("timeout")
