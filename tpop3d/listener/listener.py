"""The listener: it accepts connections, keeps the limits, and obeys signals.

listener/connections.py says what happens to a connection that it has accepted.
"""

from __future__ import annotations

import errno
import gc
import os

from tpop3d.auth import registry
from tpop3d.config.addresses import NONE, PLAIN
from tpop3d.listener import sd_notify
from tpop3d.listener.awaiting_header import AwaitingHeader
from tpop3d.listener.connection import turn_away
from tpop3d.listener.connections import Connections
from tpop3d.listener.event_loop import Loop
from tpop3d.listener.limits import provide_descriptors
from tpop3d.listener.reload import Reload
from tpop3d.privsep.lifecycle import SERVING
from tpop3d.system import logs, processes, signal, socket, titles
from tpop3d.system.io import close_all_but, keep_alive, name_of, plain
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.config.addresses import Tls
    from tpop3d.listener.reload import Changed
    from tpop3d.listener.sockets import Listening
    from tpop3d.settings import Config
    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.keyholder import Keyholder

ACCEPTS = 16  # connections taken before anything else is looked at
MAX_BACKLOG = 4096  # connections that a socket may hold for us: net.core.somaxconn, listen(2)
RETRY = 0.1  # seconds until accepting is tried again when descriptors or memory have run out
# Descriptors or memory have run out.
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """The listener on some sockets, until it is told to stop.

    `keyholder` has the private keys if any socket has TLS. `read` and `look_up` are a reload's.
    """

    def __init__(
        self,
        config: Config,
        sandbox: Sandbox,
        sockets: Listening,
        keyholder: Keyholder | None = None,
        read: Callable[[], Changed | Refusal] = lambda: Refusal("nothing was read"),
        look_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._sockets = sockets
        self._keyholder = keyholder
        self._loop = Loop()
        self._connections = Connections(config, sandbox, self._loop)
        limits = self._connections.limits
        self._awaiting_header = AwaitingHeader(config, self._loop, limits, self._serve)
        self._recovery = 0  # the pid of the process that recovers all mailboxes, 0 if there is none
        self._stopping = False
        self._total = 0
        self._reload = Reload(self._loop, read, look_up, self._change, self._status)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, and after that until the sessions have ended."""
        titles.show_name()
        processes.unblock()
        processes.spare_from_hangup()
        wakeup = processes.catch_again(signal.SIGCHLD, signal.SIGUSR1, signal.SIGHUP)
        self._loop.add_reader(wakeup, lambda: self._on_signals(wakeup))
        self._provide_descriptors()
        registry.preload(self.config.drivers.values())
        gc.collect()
        gc.freeze()  # nothing of this becomes garbage, and children share it
        self._recover()
        self._connections.use_keys(self._keyholder)
        self._connections.fill()
        for one in self._sockets:
            self._listen(one)
        sd_notify.notify("READY=1\n" + self._status())
        if (interval := sd_notify.watchdog_interval()) > 0:
            self._tell_watchdog(interval)
        while not (self._stopping and self._connections.are_over() and not self._recovery):
            self._loop.run_once()
        self._connections.drop_all()

    def _recover(self) -> None:
        """Finish what a crash has interrupted, while the first clients come.

        A session does this for its own mailbox, but other programs read mailboxes, too.
        """

        def work() -> None:
            titles.show(titles.RECOVERY)
            logs.reopen(lambda log: close_all_but((*processes.descriptors(), *log)))
            from tpop3d.session.recover_all import recover_all

            recover_all(self.config)

        try:
            self._recovery = processes.spawn(work)
        except OSError as error:
            self._connections.log_throttled(f"no further process: {error.strerror}")

    def _provide_descriptors(self) -> None:
        has_tls = any(tls.mode != NONE for tls in self._sockets.values())
        provide_descriptors(self.config.max_children, has_tls)

    def _status(self) -> str:
        served = self._connections.all
        sessions = sum(1 for one in served if one.monitor.state == SERVING)
        serving = (
            f"serving {len(served)} of {self.config.max_children} connections,"
            f" {sessions} logged in; {self._total} so far"
        )
        # The trouble comes first: somebody has to mend it.
        trouble = self._reload.trouble
        return f"STATUS={trouble and f'reload failed: {trouble}; '}{serving}"

    def _tell_watchdog(self, interval: float) -> None:
        self._loop.call_later(interval, lambda: self._tell_watchdog(interval))
        sd_notify.notify("WATCHDOG=1\n" + self._status())

    # Accepting

    def _listen(self, listening: socket.socket) -> None:
        if listening.fileno() < 0:
            return  # it was closed meanwhile

        def accept() -> None:
            self._accept(listening)

        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), accept)

    def _accept(self, listening: socket.socket) -> bool:
        """Accept waiting connections, but not too many at once. May there be more?"""
        for _ in range(ACCEPTS):
            try:
                fd, address = listening._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in SCARCE:
                    self._connections.log_throttled(f"cannot accept: {error.strerror}")
                    self._loop.remove_reader(listening.fileno())
                    self._loop.call_later(RETRY, lambda: self._listen(listening))
                    return False
                continue  # the client has gone already
            self._identify(socket.socket(fileno=fd), address, self._sockets.get(listening, PLAIN))
        return True

    def _identify(self, connection: socket.socket, address: object, tls: Tls) -> None:
        """Serve a connection once its client is known."""
        keep_alive(connection)
        peer = name_of(connection, "getpeername")[0]
        if peer == "unknown" and isinstance(address, tuple):
            peer = plain(address[0])  # the client has gone already: getpeername(2) fails
        local = name_of(connection, "getsockname")
        if self._awaiting_header.is_from_balancer(peer):
            self._awaiting_header.add(connection, peer, local, tls)
        else:
            self._serve(connection, peer, local, tls)

    def _serve(
        self, connection: socket.socket, peer: str, local: tuple[str, int], tls: Tls
    ) -> None:
        """Serve a connection, or turn it away."""
        limits = self._connections.limits
        if refused := limits.refuse(peer):
            if line := limits.line(peer, refused):
                logs.warning(line)
            turn_away(connection, tls)
        elif self._connections.serve(connection.fileno(), peer, local, tls):
            connection.detach()
            self._total += 1
            self._connections.fill()
        else:
            turn_away(connection, tls)

    def _close(self, listening: socket.socket) -> None:
        """Stop listening on a socket. Connections that came before that are served."""
        for _ in range(MAX_BACKLOG // ACCEPTS):
            if not self._accept(listening):
                break
        self._loop.remove_reader(listening.fileno())
        # A child that was forked just now may have it, too, and close(2) alone would not end it.
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()

    # Signals

    def _on_signals(self, wakeup: int) -> None:
        try:
            numbers = os.read(wakeup, 4096)
        except BlockingIOError:
            return
        self._reap()
        if signal.SIGUSR1 in numbers:
            logs.notice(self._status().removeprefix("STATUS="))
        if signal.SIGHUP in numbers and not self._stopping:
            self._reload.begin()
        if (signal.SIGTERM in numbers or signal.SIGINT in numbers) and not self._stopping:
            self._stop()

    def _reap(self) -> None:
        """Reap every process that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._recovery:
                self._recovery = 0
                if os.WIFSIGNALED(status):
                    logs.error(f"recovery was ended by signal {os.WTERMSIG(status)}")
            else:
                self._connections.reap(pid, status)

    def _change(
        self, config: Config, sandbox: Sandbox, sockets: Listening, keyholder: Keyholder | None
    ) -> None:
        gone = {one: tls for one, tls in self._sockets.items() if one not in sockets}
        new = [one for one in sockets if one not in self._sockets]
        self.config = config
        registry.preload(config.drivers.values())
        # Connections that wait on these are still accepted, with the TLS that their socket had.
        self._sockets = gone | sockets
        self._provide_descriptors()
        self._connections.change(config, sandbox, keyholder)
        self._awaiting_header.change(config)
        for one in gone:
            self._close(one)
        self._sockets = sockets
        for one in new:
            self._listen(one)

    def _stop(self) -> None:
        """Accept nothing more, and let sessions end by themselves for a while."""
        self._stopping = True
        self._reload.stop()
        sd_notify.notify("STOPPING=1\nSTATUS=stopping")
        for one in self._sockets:
            self._loop.remove_reader(one.fileno())
            one.close()
        self._awaiting_header.drop_all()
        self._connections.stop_filling()
        if self._recovery:
            os.kill(self._recovery, signal.SIGTERM)
        self._loop.call_later(self.config.shutdown_seconds, self._end_sessions)

    def _end_sessions(self) -> None:
        self._connections.end_all()
        if self._recovery:
            os.kill(self._recovery, signal.SIGKILL)
        self._loop.call_later(1.0, self._end_sessions)
