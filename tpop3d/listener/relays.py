"""The listener's relays: those that wait, and those that have a connection."""

from __future__ import annotations

import os
from time import monotonic

from tpop3d.listener.connection import Connection, Relay
from tpop3d.privsep.monitor import GRACE, log_violation
from tpop3d.system import logs, socket
from tpop3d.system.io import LINGER_TIMES, Violation
from tpop3d.system.refusal import PERMANENT, Refusal
from tpop3d.tls import keyholder as keyholders
from tpop3d.tls.relay_channel import Failed, Ready, RelayOrder, Secured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.listener.event_loop import Loop
    from tpop3d.tls.keyholder import Keyholder, Recipe

SPARES = 2  # relays that wait, so that a handshake needs no fork
LOOK = 5.0  # seconds between two looks at the files
MAX_HURRIED = 5  # times that those that linger are hurried, until they are ended
RETRY_AGE = 3600.0  # until the next try where keys that are old could not be replaced
RETRY = 1.0  # seconds until the next try where a keyholder has died


class Relays:
    """All relays. `secured` is called when a connection has TLS, `over` when it has no relay any
    more, with the reason if it never had TLS."""

    def __init__(
        self,
        loop: Loop,
        secured: Callable[[Connection, Secured], None],
        over: Callable[[Connection, Failed], None],
    ) -> None:
        self._loop = loop
        self._secured = secured
        self._over = over
        self.is_stopping = False
        self._generation = 0  # of keyholders that were wanted
        self._keyholder: Keyholder | None = None
        self._looks = False
        self._spares: list[Relay] = []
        # Those whose session is over, and whose client has not taken all; and how long they may
        # go on, the first to end first.
        self._lingering: dict[Relay, float] = {}
        self._hurried = 0

    # The keyholder

    def use(self, keyholder: Keyholder | None) -> None:
        """Take relays from this keyholder from now on. Relays that serve a connection go on."""
        self._generation += 1
        self.close()
        self._keyholder = keyholder
        if keyholder is None:
            return
        for warning in keyholder.warnings:
            logs.warning(f"tls: {warning}")
        self._loop.add_reader(keyholder.fileno(), self._lose_keyholder)
        self._fill()
        if not self._looks:
            self._looks = True
            self._loop.call_later(LOOK, self._look)

    def close(self) -> None:
        """Let the keyholder end, and the relays that wait."""
        for relay in self._spares:
            self._forget(relay)
        self._spares = []
        if self._keyholder is not None:
            self._loop.remove_reader(self._keyholder.fileno())
            self._keyholder.retire()
        self._keyholder = None

    def _lose_keyholder(self) -> None:
        lost = self._keyholder
        self.close()
        logs.error("the process that has the private keys has died")
        if lost is not None:
            generation = self._generation
            self._loop.call_later(RETRY, lambda: self._replace(lost.recipe, generation))

    def _replace(self, recipe: Recipe, generation: int) -> None:
        if generation != self._generation or self.is_stopping:
            return
        made = keyholders.start(recipe)
        if isinstance(made, Refusal):
            logs.error(f"tls: {made.reason}")
            self._loop.call_later(LOOK, lambda: self._replace(recipe, generation))
        else:
            self.use(made)

    def _look(self) -> None:
        """Have keys read anew when a file has changed, and from time to time for the tickets. Keys
        that cannot be used are logged, and change nothing."""
        keyholder = self._keyholder
        self._looks = keyholder is not None
        if keyholder is None:
            return
        self._loop.call_later(LOOK, self._look)
        files = keyholder.recipe.files()
        is_changed = files != keyholder.files
        if not is_changed and monotonic() - keyholder.started < keyholders.MAX_AGE:
            return
        made = keyholders.start(keyholder.recipe)
        if isinstance(made, Refusal):
            logs.error(f"tls: {made.reason}; what was read before is kept")
            if made.kind == PERMANENT:
                keyholder.files = files
            keyholder.started = max(keyholder.started, monotonic() - keyholders.MAX_AGE + RETRY_AGE)
            return
        if is_changed:
            logs.notice("tls: the certificates are read again")
        self.use(made)

    # Relays

    def _fill(self) -> None:
        """Have relays wait."""
        while self._keyholder is not None and len(self._spares) < SPARES:
            try:
                relay = Relay(self._keyholder)
            except OSError:
                return  # it has died, as we shall hear, or has too much to do
            self._spares.append(relay)
            self._loop.add_reader(relay.channel.fileno(), self._reader_of(relay))

    def _reader_of(self, relay: Relay) -> Callable[[], None]:
        return lambda: self._on_message(relay)

    def give(self, connection: Connection) -> bool:
        """Give a connection to a relay; its `fd` leads to the relay then, and speaks in the clear.
        False: there is no relay."""
        keyholder, pairs = self._keyholder, connection.monitor.tls.pairs
        if keyholder is None or pairs not in keyholder.recipe.identities:
            return False
        self._fill()
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return False
        index = keyholder.recipe.identities.index(pairs)
        assert connection.fd is not None
        fds = connection.fd, connection.fd, theirs.fileno()
        monitor = connection.monitor
        order = RelayOrder(fds, index, monitor.seconds_left, monitor.patience)
        try:
            while self._spares:
                relay = self._spares.pop(0)
                try:
                    relay.channel.give_order(order)
                except OSError:
                    self._forget(relay)  # it has died while it waited
                    continue
                os.close(connection.fd)
                connection.fd, connection.relay = ours.detach(), relay
                relay.connection = connection
                return True
        finally:
            theirs.close()
            self._fill()
        ours.close()
        return False

    def can_give(self, connection: Connection) -> bool:
        """Is there a keyholder with a connection's certificates?"""
        keyholder = self._keyholder
        return keyholder is not None and connection.monitor.tls.pairs in keyholder.recipe.identities

    def linger(self, connection: Connection, most: int) -> None:
        """A connection is over, but its relay, if any, may have octets to send. The relay takes no
        place of `max-children` meanwhile, as octets in the kernel take none. `most` may linger."""
        if connection.relay is None:
            return
        seconds = LINGER_TIMES * connection.monitor.patience + GRACE
        self._lingering[connection.relay] = monotonic() + seconds
        while len(self._lingering) > most:
            self._give_up(next(iter(self._lingering)))

    def linger_on(self) -> bool:
        """Has any relay octets to send still, so that `expire` must be called?"""
        return bool(self._lingering)

    def expire(self, now: float) -> None:
        """End relays whose clients do not take the last octets."""
        for relay in [one for one, deadline in self._lingering.items() if deadline <= now]:
            self._give_up(relay)

    def hurry(self) -> None:
        """The listener is to end; it waits a little for relays that linger."""
        self._hurried += 1
        if self._hurried > MAX_HURRIED:
            for relay in list(self._lingering):
                self._give_up(relay)

    def _give_up(self, relay: Relay) -> None:
        if relay.connection is not None:
            self.kill(relay.connection)

    def kill(self, connection: Connection) -> None:
        """End a connection's relay, whatever it is doing."""
        if connection.relay is not None:
            connection.relay.keyholder.kill(connection.relay.number)
        self._part(connection)

    def _part(self, connection: Connection) -> None:
        if connection.relay is not None:
            self._forget(connection.relay)
            connection.relay = None

    def _forget(self, relay: Relay) -> None:
        self._lingering.pop(relay, None)
        self._loop.remove_reader(relay.channel.fileno())
        relay.channel.close()
        relay.keyholder.release()

    def _on_message(self, relay: Relay) -> None:
        """A relay has said something."""
        connection = relay.connection
        try:
            message = relay.channel.receive()
            if isinstance(message, Ready):
                if relay.is_ready:
                    raise Violation("ready again")
                relay.is_ready = True  # it has been taken for that before
                return
            if connection is None:
                # It has died while it waited.
                if isinstance(message, Failed):
                    logs.error(f"relay: {message.reason}")
                self._forget(relay)
                self._spares = [one for one in self._spares if one is not relay]
                self._loop.call_later(RETRY, self._fill)
            elif message is None:
                self._part(connection)
                self._over(connection, Failed("the relay has died", is_ours=True))
            else:
                self._on_tls(relay, connection, message)
        except BlockingIOError:
            return
        except Violation as violation:
            if connection is None:
                self._forget(relay)
                self._spares = [one for one in self._spares if one is not relay]
            else:
                log_violation(connection.monitor.summary.client, relay.number, violation, "relay")
                self.kill(connection)
                self._over(connection, Failed(str(violation), is_ours=True))

    def _on_tls(self, relay: Relay, connection: Connection, message: Secured | Failed) -> None:
        """TLS has begun on a connection, or has failed. Raises `Violation`."""
        if isinstance(message, Failed):
            if relay.has_failed:
                raise Violation("TLS fails again")
            relay.has_failed = True
            if not connection.monitor.summary.tls:
                self._part(connection)
                self._over(connection, message)
            else:
                connection.monitor.log_failed_tls(message)
        elif connection.monitor.summary.tls:
            raise Violation("TLS begins again")
        else:
            self._secured(connection, message)
