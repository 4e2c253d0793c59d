"""What becomes of a connection that the listener has accepted, from gatekeeper to session.

A waiting gatekeeper gets it, and a duplicate is kept here. For a login attempt a child is forked on
the duplicate, which asks the auth switch and, if the answer is yes, becomes the session. This is
the monitor of all gatekeepers: it reads nothing from any client, and keeps no password.
"""

from __future__ import annotations

import os
from _signal import SIGTERM
from time import monotonic

from tpop3d import logs
from tpop3d.addresses import IMMEDIATE
from tpop3d.auth.driver import CANNOT_SAY, NO
from tpop3d.doors import attempt
from tpop3d.doors.limits import Limits, Seldom
from tpop3d.doors.pool import Pool
from tpop3d.doors.relays import Relays
from tpop3d.doors.served import DIED, HELD_BACK, LEAVING, UNHEARD, Gatekeeper, Served
from tpop3d.session import channel as channels
from tpop3d.session.channel import Asked, Ending, Line, Order, TlsWanted, Violation
from tpop3d.session.monitor import GRACE, Monitor, log_violation
from tpop3d.session.relaychannel import Secured
from tpop3d.session.wire import ERROR, SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.addresses import Tls
    from tpop3d.config import Config
    from tpop3d.doors.keeper import Keeper
    from tpop3d.doors.loop import Loop
    from tpop3d.session.privileges import Cell


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
        self._by_child: dict[int, Served] = {}
        # Those before login, and when a gatekeeper must have said how they ended. Not timers:
        # thousands would wait for connections that are long over.
        self._waiting: dict[Served, float] = {}
        self._is_full = False  # for good: there will be no further connections

    def change(self, config: Config, cell: Cell, keeper: Keeper | None) -> None:
        """Go by another configuration from now on; who is being served is served on."""
        self._config = config
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
        """End all gatekeepers, and relays."""
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

    def _relay_over(self, served: Served, why: str) -> None:
        """A connection has no relay any more. Who speaks on it will find it closed."""
        if served in self.served and not served.monitor.summary.tls:
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
                self._relay_over(served, "the relay does not answer")
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
                    self._try_login(one, one.served, message)
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
                self.tell_to_end(served)
        self._pool.drop(one)

    def _try_login(self, one: Gatekeeper, served: Served, request: Asked) -> None:
        """Fork the child that decides, and that is the session if the answer is yes."""
        if served.child or served.fd < 0:
            raise Violation("an attempt during another")
        served.monitor.check(request)
        served.asked = monotonic()
        try:
            monitor, config = served.monitor, self._config
            served.child = attempt.start(served.fd, one.channel, monitor, request, config)
        except OSError as error:
            self.complain(f"no further process: {error.strerror}")
            one.channel.give_verdict(served.monitor.answer(CANNOT_SAY))
            return
        self._by_child[served.child] = served

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
        served = self._by_child.pop(pid, None)
        if served is not None:
            self._end_child(served, pid, status)
            return
        one = self._pool.bury(pid, status)
        if one is not None and one.served is not None:
            self._lose_gatekeeper(one.served)

    def _end_child(self, served: Served, pid: int, status: int) -> None:
        """An attempt's child, perhaps the session that came of it, has ended."""
        served.child = 0
        one = served.gatekeeper
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if os.WIFSIGNALED(status):
            logs.error(f"session {pid} was ended by signal {os.WTERMSIG(status)}")
        if code == attempt.BROKEN:
            served.monitor.summary.log_end(ERROR)
        if code in (attempt.OVER, attempt.BROKEN):
            if one is None:
                self._finish(served, "")
                return
            served.child = UNHEARD
            served.hang_up()
            self._waiting[served] = monotonic() + GRACE
            return
        is_refused = code in (attempt.REFUSED, attempt.UNDECIDED)
        if is_refused and one is None and (liar := served.released_by) is not None:
            log_violation(served.monitor.summary.client, liar.pid, "an admission that nobody gave")
            self._pool.drop(liar)
        if one is None and not is_refused:
            self._finish(served, ERROR)
            return
        # One that has died on the way has not been let in.
        answer = served.monitor.answer(NO if code == attempt.REFUSED else CANNOT_SAY)
        # Counted from the attempt on: how long the drivers took is nobody's business.
        delay = served.asked + self._config.auth_failure_delay_seconds - monotonic()
        served.child = HELD_BACK if is_refused else DIED
        self._loop.after(delay, lambda: self._refuse(served, answer))

    def _refuse(self, served: Served, answer: bytes) -> None:
        """Give a refusal that was held back: guessing costs time, whatever was guessed, and the
        place of a connection for as long."""
        served.child = 0
        if served.gatekeeper is None:
            self._finish(served, ERROR)
            return
        if served in self._waiting:
            self._waiting[served] = max(self._waiting[served], monotonic() + GRACE)
        served.gatekeeper.channel.give_verdict(answer)

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

    def tell_to_end(self, served: Served) -> None:
        """Tell an attempt, or a session, to end; one that removes messages finishes that first."""
        os.kill(served.child, SIGTERM)

    def end_all(self) -> None:
        """Tell all that are left to end. It is called again until there are none."""
        self._relays.press()
        for served in list(self.served):
            if served.child > 0:
                self.tell_to_end(served)
            if served.gatekeeper is not None:
                self._pool.drop(served.gatekeeper)
            elif served.relay is not None and not served.monitor.summary.tls:
                self._relays.kill(served)
                self._relay_over(served, SIGNAL)
