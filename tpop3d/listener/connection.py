"""What the listener remembers of a connection, and of the gatekeeper that has it."""

from __future__ import annotations

import os
from time import monotonic

from tpop3d.config.addresses import IMMEDIATE
from tpop3d.pop3.replies import INTERNAL_ERROR, TOO_MANY_CONNECTIONS
from tpop3d.privsep.lifecycle import IN_POP3
from tpop3d.privsep.monitor import GRACE
from tpop3d.system import socket
from tpop3d.system.io import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config.addresses import Tls
    from tpop3d.privsep.channel import Channel
    from tpop3d.privsep.monitor import Monitor
    from tpop3d.tls.keyholder import Keyholder

NEVER = float("inf")


class Connection:
    """A connection, and which processes have it. Its monitor knows its state (`lifecycle`)."""

    __slots__ = ("admitted_by", "asked", "deadline", "fd", "gatekeeper", "login_process", "monitor",
                 "relay", "source")  # fmt: skip

    def __init__(self, fd: int, monitor: Monitor, source: str) -> None:
        self.fd: int | None = fd  # None once the session alone has it
        self.monitor = monitor
        self.source = source
        self.gatekeeper: Gatekeeper | None = None
        self.relay: Relay | None = None
        self.admitted_by: Gatekeeper | None = None  # who has reported a login
        self.login_process = 0  # its pid: it decides, and is the session then
        self.asked = 0.0  # moment of monotonic() at which the latest login request came
        # When somebody must be logged in, or a gatekeeper must have said how it ended.
        self.deadline = monotonic() + monitor.seconds_left + GRACE

    def put_off(self) -> None:
        """Give the gatekeeper some time more: another process has used what is over."""
        self.deadline = max(self.deadline, monotonic() + GRACE)

    def leave_to_session(self) -> None:
        """Close the listener's duplicate: the session alone has the connection from now on."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def apologize(self) -> None:
        """Tell the client, if it can be told at once, that this is not its fault."""
        if self.fd is not None and self.monitor.state in IN_POP3:
            say(self.fd, INTERNAL_ERROR.line)

    def hang_up(self) -> None:
        """End the connection, also for a process that keeps a duplicate of it."""
        if self.fd is None:
            return
        connection = socket.socket(fileno=self.fd)
        self.fd = None
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was the client who ended it
        connection.close()


class Gatekeeper:
    """One gatekeeper process, and the connection that it serves, if any."""

    __slots__ = ("channel", "connection", "generation", "is_dropped", "pid", "served")

    def __init__(self, pid: int, channel: Channel, generation: int) -> None:
        self.pid = pid
        self.channel = channel
        self.generation = generation  # of the configuration that it was forked with
        self.served = 0  # connections
        self.is_dropped = False
        self.connection: Connection | None = None


class Relay:
    """A relay that the keyholder has forked."""

    __slots__ = ("channel", "connection", "has_failed", "is_ready", "keyholder", "number")

    def __init__(self, keyholder: Keyholder) -> None:
        self.keyholder = keyholder
        self.number, self.channel = keyholder.start_relay()
        self.has_failed = False
        self.is_ready = False
        self.connection: Connection | None = None


def turn_away(connection: socket.socket, tls: Tls) -> None:
    """Close a connection; before that send one line, if it goes at once and no TLS is spoken."""
    try:
        if tls.mode != IMMEDIATE:
            connection.send(TOO_MANY_CONNECTIONS, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass  # gone
    connection.close()
