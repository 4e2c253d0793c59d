"""The listener: accepts connections, keeps the limits, and is the monitor of all of them.

It hands each connection to a waiting gatekeeper and keeps a duplicate. For a login attempt it
forks a child on the duplicate, which asks the auth switch and, if the answer is yes, becomes the
session. It reads nothing from any client.
"""

from __future__ import annotations

import _signal
import _socket
import errno
import gc
import os
from time import monotonic

from tpop3d import logs
from tpop3d.auth.driver import CANNOT_SAY, NO
from tpop3d.doors import attempt, manager
from tpop3d.doors.limits import Limits
from tpop3d.doors.loop import Loop
from tpop3d.doors.pool import Pool
from tpop3d.doors.served import HELD_BACK, UNHEARD, Gatekeeper, Served, turn_away
from tpop3d.session import signals
from tpop3d.session.channel import Ending, Line, Order, Request, Violation
from tpop3d.session.monitor import GRACE, Monitor, log_violation
from tpop3d.session.wire import ERROR, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.config import Config
    from tpop3d.session.privileges import Cell

ACCEPTS = 16  # connections taken before anything else is looked at
RETRY = 0.1  # seconds until accepting is tried again when descriptors or memory have run out


class Listener:
    """The listener on some listening sockets, until it is told to stop."""

    def __init__(self, config: Config, cell: Cell, sockets: list[_socket.socket]) -> None:
        self._config = config
        self._limits = Limits(config)
        self._pool = Pool(cell, config.gatekeeper_connections)
        self._sockets = sockets
        self._by_child: dict[int, Served] = {}
        self._served: set[Served] = set()
        # Those before login, oldest first, and when a gatekeeper must have said how they ended.
        # Not timers: thousands would wait for connections that are long over.
        self._waiting: dict[Served, float] = {}
        self._loop = Loop()
        self._stopping = False
        self._total = 0
        self.reload: Callable[[], tuple[Config, Cell, list[_socket.socket]] | None] = lambda: None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, and then until the sessions have ended."""
        wakeup = signals.catch(_signal.SIGCHLD, _signal.SIGUSR1)
        self._loop.watch(wakeup, lambda: self._take_signals(wakeup))
        gc.collect()
        gc.freeze()  # what is here now is never garbage, and stays shared with the children
        self._fill()
        for one in self._sockets:
            self._listen(one)
        manager.notify("READY=1\n" + self._status())
        if (interval := manager.watchdog_interval()) > 0:
            self._keep_alive(interval)
        while not (self._stopping and not self._served):
            self._loop.turn(next(iter(self._waiting.values()), None))
            self._expire()
        for gatekeeper in list(self._pool.all.values()):
            self._pool.drop(gatekeeper)

    # Small things

    def _status(self) -> str:
        sessions = sum(1 for one in self._served if one.fd < 0)
        return (
            f"STATUS=serving {len(self._served)} of {self._config.max_children} connections,"
            f" {sessions} logged in; {self._total} so far"
        )

    def _keep_alive(self, interval: float) -> None:
        manager.notify("WATCHDOG=1\n" + self._status())
        self._loop.after(interval, lambda: self._keep_alive(interval))

    def _fill(self, at_least: int = 0) -> None:
        """Have gatekeepers wait, as many as could get a connection."""
        free = self._config.max_children - len(self._served)
        try:
            for one in self._pool.fill(at_least if self._stopping else max(at_least, free)):
                self._loop.watch(one.channel.fileno(), self._hearing(one))
        except OSError as error:
            logs.error(f"no further gatekeeper: {error.strerror}")
            self._loop.after(RETRY, self._fill)

    # Accepting

    def _listen(self, listening: _socket.socket) -> None:
        if listening.fileno() < 0:
            return  # closed in the meantime
        listening.setblocking(False)
        self._loop.watch(listening.fileno(), lambda: self._accept(listening))

    def _accept(self, listening: _socket.socket) -> None:
        """Take what waits, and hand each connection to a gatekeeper."""
        for _ in range(ACCEPTS):
            try:
                fd, _address = listening._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    logs.error(f"cannot accept: {error.strerror}")
                    self._loop.forget(listening.fileno())
                    self._loop.after(RETRY, lambda: self._listen(listening))
                    break
                continue  # gone before it was taken
            connection = _socket.socket(fileno=fd)
            peer = name_of(connection, "getpeername")[0]
            local = name_of(connection, "getsockname")
            if refused := self._limits.refuse(peer):
                if line := self._limits.line(peer, refused):
                    logs.warning(line)
                turn_away(connection)
            else:
                self._serve(connection.detach(), peer, local)
        self._fill()

    def _serve(self, fd: int, peer: str, local: tuple[str, int]) -> None:
        monitor = Monitor(self._config, peer, local)
        served = Served(fd, monitor, peer)
        self._limits.add(peer)
        self._served.add(served)
        self._total += 1
        order = Order((fd, fd), monitor.policy, self._config.login_seconds)
        while True:
            one = self._pool.take()
            if one is None:
                self._fill(at_least=1)
                one = self._pool.take()
            if one is None:
                self._finish(served, ERROR)
                return
            try:
                one.channel.give_order(order)
                break
            except OSError:
                self._pool.drop(one)  # it has died while it waited
        one.served = served
        served.gatekeeper = one
        self._waiting[served] = monotonic() + self._config.login_seconds + GRACE

    def _expire(self) -> None:
        """End those whose time to log in is over, which a gatekeeper should have said long ago."""
        now = monotonic()
        for served, deadline in list(self._waiting.items()):
            if deadline > now:
                return
            del self._waiting[served]
            if served.child:
                self._waiting[served] = now + GRACE  # a slow driver
            elif served.gatekeeper is not None:
                self._punish(served.gatekeeper, "the gatekeeper does not answer")

    def _finish(self, served: Served, how: str) -> None:
        """The connection is over; `how`, unless its session has logged that itself."""
        if served not in self._served:
            return
        self._served.discard(served)
        self._waiting.pop(served, None)
        self._limits.remove(served.source)
        if served.fd >= 0:
            os.close(served.fd)
            served.fd = -1
        if how:
            served.monitor.summary.log_end(how)
        self._fill()

    # Gatekeepers

    def _hearing(self, one: Gatekeeper) -> Callable[[], None]:
        return lambda: self._hear(one)

    def _hear(self, one: Gatekeeper) -> None:
        """A gatekeeper has said something."""
        try:
            try:
                message = one.channel.receive()
            except BlockingIOError:
                # What was ready had the same number, and is closed: a dead gatekeeper's channel.
                return
            if message is None:
                self._loop.forget(one.channel.fileno())  # it is dead, and will be buried
                return
            if one.served is None:
                raise Violation("a message without a connection")
            if isinstance(message, Line):
                one.served.monitor.log(message)
            elif isinstance(message, Request):
                self._try_login(one, one.served, message)
            else:
                self._let_go(one, one.served, message)
        except Violation as violation:
            self._punish(one, violation)

    def _punish(self, one: Gatekeeper, what: object) -> None:
        """End a gatekeeper that is not ours any more, and its connection with it."""
        if one.served is not None:
            log_violation(one.served.monitor.summary, one.pid, what)
        self._loop.forget(one.channel.fileno())
        self._pool.drop(one)

    def _try_login(self, one: Gatekeeper, served: Served, request: Request) -> None:
        """Fork the child that decides, and that is the session if the answer is yes."""
        if served.child or served.fd < 0:
            raise Violation("an attempt during another")
        served.monitor.check(request)
        try:
            monitor, config = served.monitor, self._config
            served.child = attempt.start(served.fd, one.channel, monitor, request, config)
        except OSError as error:
            logs.error(f"no further process: {error.strerror}")
            one.channel.give_verdict(served.monitor.answer(CANNOT_SAY))
            return
        self._by_child[served.child] = served

    def _let_go(self, one: Gatekeeper, served: Served, ending: Ending) -> None:
        """A gatekeeper has finished with its connection."""
        admitted = not ending.how
        if admitted and served.fd >= 0 and (served.child > 0 or served.child == UNHEARD):
            # Admitted: the session alone has the connection now.
            self._waiting.pop(served, None)
            os.close(served.fd)
            served.fd = -1
        elif not admitted and not served.child:
            summary = served.monitor.summary
            summary.octets_in, summary.octets_out = ending.octets_in, ending.octets_out
        else:
            raise Violation("an ending at the wrong time")
        served.gatekeeper = None
        if not self._pool.give_back(one):
            self._loop.forget(one.channel.fileno())
            self._pool.drop(one)
        if not admitted or served.child == UNHEARD:
            self._finish(served, ending.how)

    # Signals and the dead

    def _take_signals(self, wakeup: int) -> None:
        try:
            numbers = os.read(wakeup, 4096)
        except BlockingIOError:
            return
        self._reap()
        if _signal.SIGUSR1 in numbers:
            logs.notice(self._status().removeprefix("STATUS="))
        if _signal.SIGHUP in numbers and not self._stopping:
            self._reload()
        if (_signal.SIGTERM in numbers or _signal.SIGINT in numbers) and not self._stopping:
            self._stop()

    def _reap(self) -> None:
        """Take note of every process that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            served = self._by_child.pop(pid, None)
            if served is not None:
                self._end_child(served, pid, status)
            elif (one := self._pool.bury(pid, status)) is not None:
                self._loop.forget(one.channel.fileno())
                one.channel.close()
                if one.served is not None:
                    self._lose_gatekeeper(one.served)
                # One that dies at once would be replaced by another that dies at once.
                self._loop.after(0 if one.connections or one.served else RETRY, self._fill)

    def _end_child(self, served: Served, pid: int, status: int) -> None:
        """An attempt's child, perhaps the session that came of it, has ended."""
        served.child = 0
        one = served.gatekeeper
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if os.WIFSIGNALED(status):
            logs.error(f"session {pid} was ended by signal {os.WTERMSIG(status)}")
        if code in (attempt.REFUSED, attempt.UNDECIDED) and one is not None:
            answer = served.monitor.answer(NO if code == attempt.REFUSED else CANNOT_SAY)
            delay = self._config.auth_failure_delay_seconds
            served.child = HELD_BACK
            self._loop.after(delay, lambda: self._refuse(served, one, answer))
        elif one is None:
            self._finish(served, "" if code == attempt.OVER else ERROR)
        elif code == attempt.OVER:
            served.child = UNHEARD
        else:
            self._punish(one, f"its login attempt's child {pid} died")

    def _refuse(self, served: Served, one: Gatekeeper, answer: bytes) -> None:
        """Give a refusal that was held back: guessing costs time, whatever was guessed."""
        if served.gatekeeper is one:
            served.child = 0
            one.channel.give_verdict(answer)

    def _lose_gatekeeper(self, served: Served) -> None:
        """A gatekeeper has died with a connection."""
        served.gatekeeper = None
        if served.child > 0:
            # Perhaps it is a session already; if not, it ends with nobody to answer to.
            if served.fd >= 0:
                os.close(served.fd)
                served.fd = -1
        else:
            self._finish(served, "" if served.child == UNHEARD else ERROR)

    def _reload(self) -> None:
        """Read the configuration again, and listen where it says; a bad one changes nothing."""
        manager.notify(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}")
        result = self.reload()
        if result is not None:
            config, cell, sockets = result
            gone = [one for one in self._sockets if one not in sockets]
            new = [one for one in sockets if one not in self._sockets]
            for one in gone:
                self._accept(one)  # what came before the reload is served
                self._loop.forget(one.fileno())
                one.close()
            self._config, self._sockets = config, sockets
            self._limits.change(config)
            self._pool.connections = config.gatekeeper_connections
            self._pool.cell = cell
            self._drop_spares()  # whose cell may be another
            self._fill()
            for one in new:
                self._listen(one)
        manager.notify("READY=1\n" + self._status())

    def _drop_spares(self) -> None:
        for one in self._pool.drop_spares():
            self._loop.forget(one.channel.fileno())

    def _stop(self) -> None:
        """Accept nothing more, and let sessions end by themselves for a while."""
        self._stopping = True
        manager.notify("STOPPING=1\nSTATUS=stopping")
        for one in self._sockets:
            self._loop.forget(one.fileno())
            one.close()
        self._drop_spares()
        self._loop.after(self._config.shutdown_seconds, self._end_sessions)

    def _end_sessions(self) -> None:
        """Tell all that are left to end. A session that removes messages finishes that first."""
        for served in list(self._served):
            if served.child > 0:
                os.kill(served.child, _signal.SIGTERM)
            if served.gatekeeper is not None:
                self._pool.drop(served.gatekeeper)
        self._loop.after(1.0, self._end_sessions)
