"""Connections that a balancer makes for clients: its header is read, and believed.

The process that reads it has all privileges, so it reads nothing behind the header.
"""

from __future__ import annotations

import os
import stat
from time import monotonic

from tpop3d.config.addresses import is_local
from tpop3d.proxy import header
from tpop3d.proxy.header import WRONG, Header
from tpop3d.system import logs, socket
from tpop3d.system.io import name_of, ready
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config.networks import Networks

    Origin = tuple[str, tuple[str, int]]  # the client; the address and port that it connected to

SECONDS = 10.0  # to send a header in, unless `login-seconds` is less
MISSING = "proxy header missing"  # a kind of refusal, as header.WRONG is


class Reading:
    """The header of one connection, as far as it has come."""

    __slots__ = ("_connection", "_octets")

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._octets = b""

    def read(self) -> Header | Refusal | None:
        """Read what is there, but nothing behind the header; None while it is not whole."""
        while True:
            found = header.parse(self._octets)
            if not isinstance(found, int):
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

    def give_up(self, reason: str) -> Refusal:
        """Say what is wrong when no more of the header will come."""
        return Refusal(reason, WRONG if self._octets else MISSING)


def is_news(refused: Refusal) -> bool:
    """False for a health check: the balancer connected, sent nothing, and hung up."""
    return (refused.kind, refused.reason) != (MISSING, "eof")


def log(refused: Refusal, balancer: str) -> None:
    """Log a refused header."""
    line = logs.event(refused.kind, rip=balancer, reason=refused.reason)
    (logs.notice if is_news(refused) else logs.debug)(line)


def origin(header: Header, peer: str, local: tuple[str, int]) -> Origin:
    """The client of a connection that a balancer has made from `peer` to `local`."""
    if not header.client:
        return peer, local
    # A loopback address is the balancer's host, which may be another host than this.
    is_here = not is_local(header.client) or is_local(peer)
    return header.client if is_here else peer, header.local


def seconds_for_header(login_seconds: int) -> float:
    """How long a balancer may take to send a header."""
    return min(SECONDS, login_seconds)


def is_from_balancer(balancers: Networks, fd: int) -> bool:
    """Does the connection on a descriptor begin with a header? False for a pipe, and for a socket
    without an IP address."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    connection = socket.socket(fileno=os.dup(fd))
    try:
        return name_of(connection, "getpeername")[0] in balancers
    finally:
        connection.close()


def await_origin(fd: int, seconds: float) -> Origin | None:
    """Wait so many seconds for the header of the connection on a descriptor; returns whose the
    connection is. None, and a line in the log, where no good header comes."""
    connection = socket.socket(fileno=os.dup(fd))
    try:
        peer, local = name_of(connection, "getpeername")[0], name_of(connection, "getsockname")
        found = _await_header(connection, seconds)
    finally:
        connection.close()
    if isinstance(found, Refusal):
        log(found, peer)
        return None
    return origin(found, peer, local)


def _await_header(connection: socket.socket, seconds: float) -> Header | Refusal:
    reading = Reading(connection)
    deadline = monotonic() + seconds
    while (left := deadline - monotonic()) > 0:
        ready(left, connection.fileno())
        if (found := reading.read()) is not None:
            return found
    return reading.give_up("timeout")
