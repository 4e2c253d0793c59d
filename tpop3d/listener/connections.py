"""What becomes of a connection that the listener has accepted, from gatekeeper to session.

A waiting gatekeeper gets it, and the listener keeps a duplicate. For a login request it forks a
process on the duplicate, which asks the auth switch and, if the answer is yes, becomes the session.
The listener reads nothing from any client, and keeps no password.

A connection's monitor knows its state, and `privsep.lifecycle` which states may follow. This module
does what the state wants.
"""

from __future__ import annotations

from time import monotonic

from tpop3d.config.addresses import IMMEDIATE
from tpop3d.listener.connection import NEVER, Connection, Gatekeeper
from tpop3d.listener.gatekeepers import Gatekeepers
from tpop3d.listener.limits import Limits, Seldom
from tpop3d.listener.logins import Logins, tell_to_end
from tpop3d.listener.relays import Relays
from tpop3d.privsep import channel as channels
from tpop3d.privsep import lifecycle
from tpop3d.privsep.channel import Order, ReceivedLogin
from tpop3d.privsep.monitor import GRACE, Monitor, log_violation
from tpop3d.session.wire import SIGNAL
from tpop3d.system import logs
from tpop3d.system.io import Violation
from tpop3d.tls.relay_channel import Failed, Secured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from tpop3d.config.addresses import Tls
    from tpop3d.listener.event_loop import Loop
    from tpop3d.listener.limits import LimitRules
    from tpop3d.listener.logins import LoginRules
    from tpop3d.privsep.channel import Message
    from tpop3d.privsep.monitor import MonitorRules
    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.keyholder import Keyholder

    class ConnectionRules(LimitRules, LoginRules, MonitorRules, Protocol):
        """What connections go by, up to their ends: directives, by their names."""

        gatekeeper_connections: int


SWEEP = 0.5  # seconds between two looks for those whose time is over


class Connections:
    """All connections that are served, and the gatekeepers that serve them."""

    def __init__(self, rules: ConnectionRules, sandbox: Sandbox, loop: Loop) -> None:
        self.limits = Limits(rules)
        self.all: set[Connection] = set()
        self._seldom = Seldom()
        self._rules = rules
        self._gatekeepers = Gatekeepers(
            sandbox,
            rules.gatekeeper_connections,
            loop,
            self._room,
            self._on_message,
            self.log_throttled,
        )
        self._loop = loop
        self._relays = Relays(loop, self._secured, self._relay_over)
        self._logins = Logins(rules, self._gatekeepers, loop, self._finish, self.log_throttled)
        self._is_full = False  # for good: there will be no further connections
        self._is_sweeping = False

    def change(self, rules: ConnectionRules, sandbox: Sandbox, keyholder: Keyholder | None) -> None:
        """Go by other rules from now on; clients that are being served are served on."""
        self._rules = rules
        self._logins.change(rules)
        self.limits.change(rules)
        self.use_keys(keyholder)
        self._gatekeepers.renew(sandbox, rules.gatekeeper_connections)
        self.fill()

    def use_keys(self, keyholder: Keyholder | None) -> None:
        """Take relays from this keyholder from now on."""
        self._relays.use(keyholder)

    def log_throttled(self, trouble: str) -> None:
        """Log trouble that may last: once in a while."""
        if self._seldom.may(trouble):
            logs.error(trouble)

    # Gatekeepers that wait

    def fill(self) -> None:
        """Have gatekeepers wait, as many as could get a connection."""
        self._gatekeepers.fill()

    def _room(self) -> int:
        """How many further connections there could be."""
        return 0 if self._is_full else self._rules.max_children - len(self.all)

    def stop_filling(self) -> None:
        """Have no more gatekeepers and relays wait: there will be no further connections."""
        self._is_full = True
        self._relays.is_stopping = True
        self._gatekeepers.drop_spares()

    def are_over(self) -> bool:
        """Is no client served any more, and has each of them what was sent?"""
        return not self.all and not self._relays.linger_on()

    def drop_all(self) -> None:
        """End all gatekeepers, and relays, and whatever else still runs."""
        self._logins.stop()
        self._relays.close()
        self._gatekeepers.drop_all()

    # The life of a connection

    def serve(self, fd: int, peer: str, local: tuple[str, int], tls: Tls) -> bool:
        """Give a connection to a gatekeeper, or first to a relay. False: there is none, and the
        caller keeps `fd`."""
        connection = Connection(fd, Monitor(self._rules, peer, local, tls), peer)
        if tls.mode != IMMEDIATE:
            is_given = self._give(connection)
        elif not (is_given := self._relays.give(connection)):
            self.log_throttled("tls: no process to speak it with")
        if is_given:
            self.limits.add(peer)
            self.all.add(connection)
            if not self._is_sweeping:
                self._is_sweeping = True
                self._loop.call_later(SWEEP, self._sweep)
        return is_given

    def _give(self, connection: Connection, greets: bool = True) -> bool:
        """Give a connection to a gatekeeper. False: there is none."""
        monitor = connection.monitor
        assert connection.fd is not None
        fds = connection.fd, connection.fd
        order = Order(fds, monitor.policy, monitor.seconds_left, greets)
        while True:
            one = self._gatekeepers.take()
            if one is None:
                return False
            try:
                one.channel.give_order(order)
                break
            except OSError:
                self._gatekeepers.drop(one)  # it has died while it waited, or does not read
        one.connection, connection.gatekeeper = connection, one
        return True

    def _secured(self, connection: Connection, secured: Secured) -> None:
        """Take note that a relay has made the handshake."""
        monitor = connection.monitor
        if monitor.state != lifecycle.HANDSHAKE:
            return
        monitor.secure(secured)
        if not self._give(connection, greets=monitor.tls.mode == IMMEDIATE):
            monitor.note(lifecycle.GONE)
            self._finish(connection)

    def _relay_over(self, connection: Connection, why: Failed) -> None:
        """A connection has no relay any more. Its gatekeeper or session finds it closed."""
        monitor = connection.monitor
        if monitor.state != lifecycle.HANDSHAKE:
            return
        if why.reason != SIGNAL:  # then it is we who end it
            monitor.log_failed_tls(why)
        monitor.note(lifecycle.FAILED, SIGNAL if why.reason == SIGNAL else "")
        self._finish(connection)

    def _sweep(self) -> None:
        """End connections whose time to log in is over: their gatekeepers should have reported that
        long ago.

        There is not a timer for each: thousands would wait for connections that are long over.
        """
        now = monotonic()
        self._relays.expire(now)
        for connection in [one for one in self.all if one.deadline <= now]:
            self._expire(connection)
        is_awaited = any(one.deadline < NEVER for one in self.all)
        self._is_sweeping = is_awaited or self._relays.linger_on()
        if self._is_sweeping:
            self._loop.call_later(SWEEP, self._sweep)

    def _expire(self, connection: Connection) -> None:
        connection.deadline = monotonic() + GRACE
        if connection.monitor.state == lifecycle.HANDSHAKE:
            self._relays.kill(connection)
            self._relay_over(connection, Failed("the relay does not answer", is_ours=True))
            return
        try:
            connection.monitor.note(lifecycle.LATE)
        except Violation as violation:
            assert connection.gatekeeper is not None
            self._evict(connection.gatekeeper, violation)

    def _finish(self, connection: Connection) -> None:
        """Let go of a connection that is over."""
        self.all.discard(connection)
        self.limits.remove(connection.source)
        connection.hang_up()
        if how := connection.monitor.end:
            connection.monitor.summary.log_end(how)
        self._relays.linger(connection, self._rules.max_children)
        self.fill()

    # What gatekeepers say

    def _on_message(self, one: Gatekeeper) -> None:
        """Receive a gatekeeper's message."""
        try:
            try:
                message = one.channel.receive()
            except BlockingIOError:
                # What was ready had the same number, and is closed: a dead gatekeeper's channel.
                return
            except OSError as error:
                self.log_throttled(f"gatekeeper: {error.strerror}")
                self._gatekeepers.kill(one)
                return
            if message is None:
                # It is dead, most likely, and will be reaped.
                self._loop.remove_reader(one.channel.fileno())
                self._gatekeepers.kill(one)
                return
            try:
                if one.connection is None:
                    raise Violation("a message without a connection")
                self._act_on(one, one.connection, message)
            finally:
                if isinstance(message, ReceivedLogin):
                    message.wipe()
        except Violation as violation:
            self._evict(one, violation)

    def _act_on(self, one: Gatekeeper, connection: Connection, message: Message) -> None:
        """Take a gatekeeper's message, and do what its connection's new state wants."""
        state = connection.monitor.receive(message)
        if state == lifecycle.DECIDING and isinstance(message, ReceivedLogin):
            self._logins.begin(one, connection, message)
        elif state == lifecycle.TLS_WANTED:
            can_give = self._relays.can_give(connection)
            connection.monitor.note(lifecycle.GRANTED if can_give else lifecycle.NO_RELAY)
            one.channel.give_verdict(channels.BEGIN_TLS if can_give else channels.NO_TLS)
        elif state:
            # It has no part in the connection any more.
            connection.gatekeeper = None
            self._gatekeepers.give_back(one)
            if state == lifecycle.SERVING:
                connection.admitted_by = one
                connection.deadline = NEVER
                connection.leave_to_session()
            elif state == lifecycle.HANDSHAKE and not self._relays.give(connection):
                connection.monitor.note(lifecycle.FAILED)
                self._finish(connection)
            elif state == lifecycle.OVER:
                self._finish(connection)

    def _evict(self, one: Gatekeeper, what: object) -> None:
        """End a gatekeeper that is in somebody else's hands, and its connection with it."""
        connection = one.connection
        log_violation(connection.monitor.summary.client if connection else "", one.pid, what)
        if connection is not None:
            connection.hang_up()
            tell_to_end(connection)
        self._gatekeepers.drop(one)

    # The dead

    def reap(self, pid: int, status: int) -> None:
        """Take note of a process that has ended."""
        if self._logins.reap(pid, status):
            return
        one = self._gatekeepers.reap(pid, status)
        if one is not None and one.connection is not None:
            self._lose_gatekeeper(one.connection, is_dropped=one.is_dropped)

    def _lose_gatekeeper(self, connection: Connection, is_dropped: bool) -> None:
        """Take note that a gatekeeper has died with a connection."""
        connection.gatekeeper = None
        has_login_process = connection.monitor.state == lifecycle.DECIDING
        if not is_dropped and not has_login_process:
            connection.apologize()
        state = connection.monitor.note(lifecycle.GONE)
        if state == lifecycle.ORPHANED:
            connection.leave_to_session()  # it is one already, or ends with nobody to answer to
        elif state == lifecycle.ALONE:
            connection.hang_up()  # the rest when the time is over
        else:
            self._finish(connection)

    # The end

    def end_all(self) -> None:
        """Tell all connections to end. This is called again until none is left."""
        self._relays.hurry()
        for connection in list(self.all):
            tell_to_end(connection)
            if connection.gatekeeper is not None:
                self._gatekeepers.drop(connection.gatekeeper)
            elif connection.monitor.state == lifecycle.HANDSHAKE:
                self._relays.kill(connection)
                self._relay_over(connection, Failed(SIGNAL))
