"""What becomes of a connection that the listener has accepted, from gatekeeper to session.

A waiting gatekeeper gets it, and a duplicate is kept here. For a login attempt a child is forked on
the duplicate, which asks the auth switch and, if the answer is yes, becomes the session. This is
the monitor of all gatekeepers: it reads nothing from any client, and keeps no password.
"""

from __future__ import annotations

from time import monotonic

from tpop3d.config.addresses import IMMEDIATE
from tpop3d.listener import logins
from tpop3d.listener.connection import DIED, HELD_BACK, LEAVING, UNHEARD, Gatekeeper, Served
from tpop3d.listener.gatekeepers import Pool
from tpop3d.listener.limits import Limits, Seldom
from tpop3d.listener.logins import Attempts
from tpop3d.listener.relays import Relays
from tpop3d.privsep import channel as channels
from tpop3d.privsep.channel import Asked, Ending, Line, Order, TlsWanted, Violation
from tpop3d.privsep.monitor import GRACE, Monitor, log_violation
from tpop3d.session.wire import ERROR, SIGNAL
from tpop3d.system import logs
from tpop3d.tls.relay_channel import Failed, Secured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config.addresses import Tls
    from tpop3d.listener.event_loop import Loop
    from tpop3d.settings import Config
    from tpop3d.system.privileges import Cell
    from tpop3d.tls.keyholder import Keeper


class Connections:
    """All connections that are served, and the gatekeepers that serve them."""

    def __init__(self, config: Config, cell: Cell, loop: Loop) -> None:
        self.limits = Limits(config)
        self.served: set[Served] = set()
        self._seldom = Seldom()
        self._config = config
        self._pool = Pool(
            cell, config.gatekeeper_connections, loop, self._room, self._hear, self.complain
        )
        self._loop = loop
        self._relays = Relays(loop, self._secured, self._relay_over)
        # Those before login, and when a gatekeeper must have said how they ended. Not timers:
        # thousands would wait for connections that are long over.
        self._waiting: dict[Served, float] = {}
        self._attempts = Attempts(
            config, self._pool, loop, self._waiting, self._finish, self.complain
        )
        self._is_full = False  # for good: there will be no further connections

    def change(self, config: Config, cell: Cell, keeper: Keeper | None) -> None:
        """Go by another configuration from now on; who is being served is served on."""
        self._config = config
        self._attempts.change(config)
        self.limits.change(config)
        self.use_keys(keeper)
        self._pool.renew(cell, config.gatekeeper_connections)
        self.fill()

    def use_keys(self, keeper: Keeper | None) -> None:
        """Take relays from this keeper from now on."""
        self._relays.change(keeper)

    def complain(self, trouble: str) -> None:
        """Log what may last, once in a while."""
        if self._seldom.may(trouble):
            logs.error(trouble)

    # Gatekeepers that wait

    def fill(self) -> None:
        """Have gatekeepers wait, as many as could get a connection."""
        self._pool.fill()

    def _room(self) -> int:
        """How many further connections there could be."""
        return 0 if self._is_full else self._config.max_children - len(self.served)

    def stop_filling(self) -> None:
        """There will be no further connections."""
        self._is_full = True
        self._relays.is_stopping = True
        self._pool.drop_spares()

    def are_over(self) -> bool:
        """Is nobody served any more, and has everybody what was sent?"""
        return not self.served and not self._relays.deadlines()

    def drop_all(self) -> None:
        """End all gatekeepers, and relays, and whatever else still runs."""
        self._attempts.stop()
        self._relays.dismiss()
        self._pool.drop_all()

    # The life of a connection

    def serve(self, fd: int, peer: str, local: tuple[str, int], tls: Tls) -> bool:
        """Give a connection to a gatekeeper, or first to a relay. False: there is none, and `fd` is
        the caller's."""
        served = Served(fd, Monitor(self._config, peer, local, tls), peer)
        given = self._relays.give(served) if tls.mode == IMMEDIATE else self._give(served)
        if not given and tls.mode == IMMEDIATE:
            self.complain("tls: no process to speak it with")
        if given:
            self.limits.add(peer)
            self.served.add(served)
            self._waiting[served] = monotonic() + self._config.login_seconds + GRACE
        return given

    def _give(self, served: Served, greets: bool = True) -> bool:
        """Give a connection to a gatekeeper. False: there is none."""
        monitor = served.monitor
        fds = served.fd, served.fd
        order = Order(fds, monitor.policy, monitor.seconds_left, greets)
        while True:
            one = self._pool.take()
            if one is None:
                return False
            try:
                one.channel.give_order(order)
                break
            except OSError:
                self._pool.drop(one)  # it has died while it waited, or does not read
        one.served, served.gatekeeper = served, one
        return True

    def _secured(self, served: Served, secured: Secured) -> None:
        """A relay has made the handshake."""
        if served not in self.served:
            return
        served.monitor.secure(secured)
        if not self._give(served, greets=served.monitor.tls.mode == IMMEDIATE):
            self._finish(served, ERROR)

    def _relay_over(self, served: Served, why: Failed) -> None:
        """A connection has no relay any more. Who speaks on it will find it closed."""
        if served not in self.served or served.monitor.summary.tls:
            return
        if why.reason == SIGNAL:
            self._finish(served, SIGNAL)  # it is we who end it
            return
        served.monitor.log_failed_tls(why)
        self._finish(served, "")

    def first_deadline(self) -> float | None:
        """When `expire` must be called next."""
        return min((*self._waiting.values(), *self._relays.deadlines()), default=None)

    def expire(self) -> None:
        """End those whose time to log in is over, which a gatekeeper should have said long ago."""
        now = monotonic()
        self._relays.expire(now)
        for served in [one for one, deadline in self._waiting.items() if deadline <= now]:
            if served.child > 0 or served.child in (HELD_BACK, DIED):
                self._waiting[served] = now + GRACE  # a slow driver
                continue
            del self._waiting[served]
            if served.gatekeeper is not None:
                self._punish(served.gatekeeper, "the gatekeeper does not answer")
            elif served.relay is not None and not served.monitor.summary.tls:
                self._relays.kill(served)
                self._relay_over(served, Failed("the relay does not answer", is_ours=True))
            else:
                self._finish(served, ERROR)

    def _finish(self, served: Served, how: str) -> None:
        """The connection is over; `how`, unless its session has logged that itself."""
        if served not in self.served:
            return
        self.served.discard(served)
        self._waiting.pop(served, None)
        self.limits.remove(served.source)
        served.hang_up()
        if how:
            served.monitor.summary.log_end(how)
        self._relays.linger(served, self._config.max_children)
        self.fill()

    # What gatekeepers say

    def _hear(self, one: Gatekeeper) -> None:
        """A gatekeeper has said something."""
        try:
            try:
                message = one.channel.receive()
            except BlockingIOError:
                # What was ready had the same number, and is closed: a dead gatekeeper's channel.
                return
            except OSError as error:
                self.complain(f"gatekeeper: {error.strerror}")
                self._pool.kill(one)
                return
            if message is None:
                # It is dead, most likely, and will be buried.
                self._loop.forget(one.channel.fileno())
                self._pool.kill(one)
                return
            if one.served is None:
                raise Violation("a message without a connection")
            if isinstance(message, Line):
                one.served.monitor.log(message)
            elif isinstance(message, Asked):
                try:
                    self._attempts.begin(one, one.served, message)
                finally:
                    message.wipe()
            elif isinstance(message, TlsWanted):
                self._begin_tls(one, one.served, message)
            else:
                self._release(one, one.served, message)
        except Violation as violation:
            self._punish(one, violation)

    def _punish(self, one: Gatekeeper, what: object) -> None:
        """End a gatekeeper that is not ours any more, and its connection with it."""
        served = one.served
        log_violation(served.monitor.summary.client if served else "", one.pid, what)
        if served is not None:
            served.hang_up()
            if served.child > 0:
                logins.tell_to_end(served)
        self._pool.drop(one)

    def _begin_tls(self, one: Gatekeeper, served: Served, wanted: TlsWanted) -> None:
        """A gatekeeper's client wants TLS: the gatekeeper leaves the connection to a relay."""
        if served.child or served.relay is not None:
            raise Violation("TLS at the wrong time")
        served.monitor.check_tls(wanted)
        if not self._relays.can_give(served):
            one.channel.give_verdict(channels.NO_TLS)
            return
        served.child = LEAVING
        one.channel.give_verdict(channels.BEGIN_TLS)

    def _release(self, one: Gatekeeper, served: Served, ending: Ending) -> None:
        """A gatekeeper has finished with its connection."""
        admitted = not ending.how
        left_to_tls = ending.how == channels.STLS
        if left_to_tls != (served.child == LEAVING) and (left_to_tls or admitted):
            raise Violation("an ending at the wrong time")
        if served.child == LEAVING:
            served.child = 0
        if admitted and (served.child > 0 or served.child in (UNHEARD, DIED)):
            # Admitted: the session alone has the connection now. If that is a lie, it will show.
            self._waiting.pop(served, None)
            served.released_by = one
            served.let_go()
        elif not admitted and not served.child:
            served.monitor.count(ending)
        else:
            raise Violation("an ending at the wrong time")
        served.gatekeeper = None
        self._pool.give_back(one)
        if left_to_tls:
            if not self._relays.give(served):
                self._finish(served, ERROR)
        elif served.child == DIED:
            self._finish(served, ERROR)
        elif not admitted or served.child == UNHEARD:
            self._finish(served, ending.how)

    # The dead

    def bury(self, pid: int, status: int) -> None:
        """Take note of a process that has ended."""
        if self._attempts.bury(pid, status):
            return
        one = self._pool.bury(pid, status)
        if one is None or one.served is None:
            return
        if not one.is_dropped and one.served.child <= 0:
            one.served.apologize()
        self._lose_gatekeeper(one.served)

    def _lose_gatekeeper(self, served: Served) -> None:
        """A gatekeeper has died with a connection."""
        served.gatekeeper = None
        if served.child > 0:
            served.let_go()  # it is a session already, or ends with nobody to answer to
        elif served.child in (HELD_BACK, DIED):
            served.hang_up()  # the rest when the time is over
        else:
            self._finish(served, "" if served.child == UNHEARD else ERROR)

    # The end

    def end_all(self) -> None:
        """Tell all that are left to end. It is called again until there are none."""
        self._relays.press()
        for served in list(self.served):
            if served.child > 0:
                logins.tell_to_end(served)
            if served.gatekeeper is not None:
                self._pool.drop(served.gatekeeper)
            elif served.relay is not None and not served.monitor.summary.tls:
                self._relays.kill(served)
                self._relay_over(served, Failed(SIGNAL))
