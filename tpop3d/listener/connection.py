"""What the listener remembers of a connection, and of the gatekeeper that it was given to."""

from __future__ import annotations

import _socket
import os

from tpop3d.config.addresses import IMMEDIATE
from tpop3d.doors.inetd import say
from tpop3d.pop3.replies import INTERNAL_ERROR, TOO_MANY_CONNECTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config.addresses import Tls
    from tpop3d.listener.relays import Relay
    from tpop3d.privsep.channel import Channel
    from tpop3d.privsep.monitor import Monitor

# In place of a child's pid: no child runs, and yet the gatekeeper may not go on.
HELD_BACK = -1  # its refusal waits until it may be given
DIED = -3  # an attempt has died; perhaps it had let somebody in
LEAVING = -4  # it leaves the connection to TLS
UNHEARD = -2  # the session is over, and the gatekeeper's word of the admission has not come yet


class Served:
    """A connection that is being served: by a gatekeeper, by an attempt's child, by a session."""

    __slots__ = ("asked", "child", "fd", "gatekeeper", "monitor", "relay",
                 "released_by", "source")  # fmt: skip

    def __init__(self, fd: int, monitor: Monitor, source: str) -> None:
        self.fd = fd  # -1 once the session alone has it
        self.monitor = monitor
        self.source = source
        self.gatekeeper: Gatekeeper | None = None
        self.relay: Relay | None = None
        self.released_by: Gatekeeper | None = None  # who has said that somebody was let in
        self.child = 0  # pid of an attempt, which becomes the session; or one of the above
        self.asked = 0.0  # moment of monotonic() at which the latest attempt came

    def let_go(self) -> None:
        """The session alone has the connection from now on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def apologize(self) -> None:
        """Tell the client, if it can be told at once, that this is not its fault."""
        if self.fd >= 0 and self.child != LEAVING:  # what comes next there is TLS
            say(self.fd, INTERNAL_ERROR)

    def hang_up(self) -> None:
        """End the connection, also for a process that keeps a duplicate of it."""
        if self.fd < 0:
            return
        connection = _socket.socket(fileno=self.fd)
        self.fd = -1
        try:
            connection.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass  # it was the client who ended it
        connection.close()


class Gatekeeper:
    """One gatekeeper process, and the connection that it serves, if any."""

    __slots__ = ("channel", "connections", "generation", "is_dropped", "pid", "served")

    def __init__(self, pid: int, channel: Channel, generation: int) -> None:
        self.pid = pid
        self.channel = channel
        self.generation = generation  # of the configuration that it was forked with
        self.connections = 0
        self.is_dropped = False
        self.served: Served | None = None


def turn_away(connection: _socket.socket, tls: Tls) -> None:
    """One line, if it can be sent at once, and the end; where TLS is spoken, only the end."""
    try:
        if tls.mode != IMMEDIATE:
            connection.send(TOO_MANY_CONNECTIONS, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
    except OSError:
        pass  # gone
    connection.close()
