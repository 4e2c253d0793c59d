"""Serve one connection in this process: one of the inetd door, or a connected socket of systemd's.

The process forks a gatekeeper, which speaks with the client until a login is good, and is itself
the monitor. After a good login it ends the gatekeeper, and becomes the mailbox's user and the
session. With TLS there is a relay, too, which stays to the end.
"""

from __future__ import annotations

import os
import stat
from time import monotonic

from tpop3d.auth.driver import YES
from tpop3d.config.addresses import IMMEDIATE
from tpop3d.pop3 import replies
from tpop3d.privsep import channel as channels
from tpop3d.privsep import gatekeeper, lifecycle
from tpop3d.privsep.channel import Channel, Line, Order, ReceivedLogin
from tpop3d.privsep.monitor import GRACE, Monitor, log_violation
from tpop3d.session.wire import ERROR, SIGNAL, Wire
from tpop3d.system import logs, processes, signal, socket
from tpop3d.system.io import LINGER_TIMES, Violation, ready, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config.addresses import Tls
    from tpop3d.privsep.channel import Message
    from tpop3d.settings import Config
    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.relay_process import RelayProcess


MAX_TRANSCRIPT = 1 << 20  # octets of AUTHORIZATION, if stdout is a file


class _Ended(Exception):
    """The connection ended before a good login. `how` is "" if that is logged already."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class _Died(Exception):
    """The gatekeeper has ended too early. The cause is logged when it is reaped."""


def serve(config: Config, sandbox: Sandbox, fd_in: int, fd_out: int, tls: Tls) -> None:
    """Serve the connection on two descriptors, which may be the same."""
    if stat.S_ISREG(os.fstat(fd_out).st_mode):
        sandbox.file_size = MAX_TRANSCRIPT
    processes.unblock()
    found = None  # client and local address, if a balancer has told them
    if config.proxy_protocol_from is not None:
        from tpop3d.proxy import origin

        if origin.is_from_balancer(config.proxy_protocol_from, fd_in):
            found = origin.await_origin(fd_in, origin.seconds_for_header(config.login_seconds))
            if found is None:
                return
    pid, channel = gatekeeper.start(sandbox)
    wakeup = processes.catch()
    wire = Wire(fd_in, fd_out, wakeup)
    wire.keep_alive()
    client, local = found or (wire.peer(), wire.local())
    monitor = Monitor(config, client, local, tls)
    wire.close()
    one = _Connection(config, sandbox, (fd_in, fd_out), monitor, wakeup)
    summary = monitor.summary
    try:
        if tls.mode == IMMEDIATE:
            one.start_relay()
            _import_rest()
            one.begin_tls()
        _give_order(channel, Order(one.fds, monitor.policy, monitor.seconds_left))
        _import_rest()
        request = one.admitted(channel)
    except _Ended as ended:
        _end(pid)
        one.hang_up()
        if ended.how:
            summary.log_end(ended.how)
        return
    except Violation as violation:
        log_violation(summary.client, pid, violation)
        _end(pid)
        one.hang_up()
        summary.log_end(ERROR)
        return
    except Exception as error:
        # Trouble of the machine, or a bug: nobody has attacked, and the client may come again.
        one.log_trouble(error, channel)
        _end(pid, isinstance(error, _Died))
        one.apologize()
        one.hang_up()
        summary.log_end(ERROR)
        return
    # From here on only the session has the connection, whatever the gatekeeper tried.
    _end(pid)
    channel.close()
    account = monitor.verdict.account
    assert account is not None
    from tpop3d.session import session

    session.serve(one.fds, request.pending, wakeup, account, monitor.policy, config, summary)
    one.hang_up()


def _import_rest() -> None:
    """Import what is needed from the login on, while the gatekeeper and the client work.

    A session may not be able to read these files any more.
    """
    from tpop3d.session import session  # isort: skip  # noqa: F401
    from tpop3d.auth import isolation  # noqa: F401

    logs.prepare()


class _Connection:
    """The connection: `fds` are the client's descriptors, or a socket that leads to the relay."""

    def __init__(
        self, config: Config, sandbox: Sandbox, fds: tuple[int, int], monitor: Monitor, wakeup: int
    ) -> None:
        self.fds = fds
        self._config = config
        self._sandbox = sandbox
        self._monitor = monitor
        self._wakeup = wakeup
        self._deadline = monitor.summary.started + config.login_seconds + GRACE
        self._relay: RelayProcess | None = None
        self._has_no_relay = False  # and must not start one any more

    def apologize(self) -> None:
        """Tell the client that this is not its fault, if it can be told at once."""
        if self._monitor.state in lifecycle.IN_POP3:
            say(self.fds[1], replies.INTERNAL_ERROR.line)

    def hang_up(self) -> None:
        """Close the connection. If there is a relay, wait until the client has what was sent."""
        for fd in set(self.fds):
            os.close(fd)
        if self._relay is None:
            return
        if not self._monitor.summary.tls:
            self._relay.kill()  # nobody waits for its handshake any more
            return
        most = LINGER_TIMES * self._config.timeout_seconds + GRACE
        if broken := self._relay.await_end(self._wakeup, most):
            self._monitor.log_failed_tls(broken)

    def admitted(self, channel: Channel) -> ReceivedLogin:
        """Do what each state wants, until a login is good. Raises `_Ended` and `Violation`."""
        while True:
            message = self._receive(channel)
            if message is None:
                raise _Died
            state = self._monitor.receive(message)
            if state == lifecycle.DECIDING and isinstance(message, ReceivedLogin):
                if self._try_login(channel, message):
                    return message
            elif state == lifecycle.TLS_WANTED:
                self._offer_tls(channel)
            elif state == lifecycle.HANDSHAKE:
                self.begin_tls()
                policy, seconds = self._monitor.policy, self._monitor.seconds_left
                _give_order(channel, Order(self.fds, policy, seconds, greets=False))
            elif state == lifecycle.OVER:
                raise _Ended(self._monitor.end)

    def log_trouble(self, error: Exception, channel: Channel) -> None:
        """Log what went wrong. The last lines of a gatekeeper that has died say what it died of."""
        if not isinstance(error, _Died):
            logs.error(f"internal error: {logs.describe(error)}")
            return
        try:
            while isinstance(message := channel.receive(), Line):
                self._monitor.receive(message)
        except (Violation, OSError):
            pass

    def _try_login(self, channel: Channel, request: ReceivedLogin) -> bool:
        """Decide about a login, and answer it if it is refused. Is it good?"""
        monitor = self._monitor
        answered = monotonic() + self._config.auth_failure_delay_seconds
        try:
            verdict = monitor.decide(request)
        except processes.Interrupted:
            raise _Ended(SIGNAL) from None
        code = monitor.answer(verdict.answer)
        if verdict.answer == YES:
            monitor.note(lifecycle.LET_IN)
            return True
        monitor.note(lifecycle.REFUSED)
        self._hold_back(answered)
        monitor.note(lifecycle.DUE)
        channel.give_verdict(code)
        # The gatekeeper gets the time back that this took.
        self._deadline = max(self._deadline, monotonic() + GRACE)
        return False

    def _hold_back(self, until: float) -> None:
        """Wait before a refusal, the same time whatever was refused: guessing must cost time."""
        if ready(until - monotonic(), self._wakeup):
            raise _Ended(SIGNAL)

    def _receive(self, channel: Channel) -> Message | None:
        """Receive the next message of the gatekeeper; None if it has died."""
        self._await(channel.fileno(), "gatekeeper")
        return channel.receive()

    def _await(self, fd: int, who: str) -> None:
        """Wait until a process of ours says something. Raises `_Ended`."""
        found = ready(self._deadline - monotonic(), fd, self._wakeup)
        if self._wakeup in found:
            raise _Ended(SIGNAL)
        if not found and who == "relay":
            self._fail_to_relay("the relay does not answer")
            raise _Ended("")
        if not found:
            self._monitor.note(lifecycle.LATE)

    # TLS

    def start_relay(self) -> None:
        """Fork a relay, which reads its certificates itself."""
        from tpop3d.tls import relay_process

        config, pairs = self._config, self._monitor.tls.pairs
        settings = config.tls_min_version, config.tls_ciphers
        try:
            if not self._has_no_relay:
                self._relay = relay_process.start(self._sandbox, pairs, *settings)
        except OSError as error:
            logs.error(f"no further process: {error.strerror}")

    def begin_tls(self) -> None:
        """Let the relay speak with the client from now on. Raises `_Ended` and `Violation`."""
        from tpop3d.tls import relay_channel

        if not self._relay_is_ready():
            raise _Ended("")
        assert self._relay is not None
        channel = self._relay.channel
        ours, theirs = socket.socketpair()
        fds, seconds = (*self.fds, theirs.fileno()), self._monitor.seconds_left
        order = relay_channel.RelayOrder(fds, 0, seconds, self._config.timeout_seconds)
        message = None
        try:
            channel.give_order(order)
            self._let_go(ours.detach())
            theirs.close()
            self._await(channel.fileno(), "relay")
            message = channel.receive()
            channel.give_no_more()  # the session has nothing to say to it
        except ConnectionError:
            pass  # it has died
        if isinstance(message, relay_channel.Secured):
            self._monitor.secure(message)
            return
        failed = message if isinstance(message, relay_channel.Failed) else None
        if failed is not None and failed.reason == SIGNAL:
            raise _Ended(SIGNAL)
        if failed is not None:
            self._monitor.log_failed_tls(failed)
        else:
            self._fail_to_relay(_why(message))
        raise _Ended("")

    def _fail_to_relay(self, why: str) -> None:
        """Log what is wrong with the relay. The client is not to blame for it."""
        from tpop3d.tls.relay_channel import Failed

        self._monitor.log_failed_tls(Failed(why, is_ours=True))

    def _let_go(self, inner: int) -> None:
        """Speak on `inner` from now on.

        The client's numbers then lead nowhere: other code may still know them.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in set(self.fds):
            os.dup2(null, fd, inheritable=False)
        os.close(null)
        self.fds = inner, inner

    def _relay_is_ready(self) -> bool:
        """Wait until the relay has its certificates. Has it? If not, it is ended."""
        from tpop3d.tls import relay_channel

        relay = self._relay
        if relay is None or relay.is_ready:
            return relay is not None
        self._await(relay.channel.fileno(), "relay")
        message = relay.channel.receive()
        relay.is_ready = isinstance(message, relay_channel.Ready)
        if not relay.is_ready:
            logs.error(f"tls: {_why(message)}")
            relay.kill()
            self._relay = None
            self._has_no_relay = True
        return relay.is_ready

    def _offer_tls(self, channel: Channel) -> None:
        """Tell the gatekeeper to let go of the connection, if there is a relay for it."""
        self.start_relay()
        is_ready = self._relay_is_ready()
        self._monitor.note(lifecycle.GRANTED if is_ready else lifecycle.NO_RELAY)
        channel.give_verdict(channels.BEGIN_TLS if is_ready else channels.NO_TLS)


def _why(message: object) -> str:
    """Say why a relay is of no use: in its own words, or that it has died."""
    from tpop3d.tls.relay_channel import Failed

    return message.reason if isinstance(message, Failed) else "the relay has died"


def _give_order(channel: Channel, order: Order) -> None:
    """Hand the connection to the gatekeeper."""
    try:
        channel.give_order(order)
    except ConnectionError:
        raise _Died from None


def _end(pid: int, is_dying: bool = False) -> None:
    """End the gatekeeper, and reap it.

    `is_dying`: has its channel told that it is dying? Its exit status is then its own, and is
    logged.
    """
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not is_dying:
            return
    if is_dying and not status:
        logs.error(f"gatekeeper {pid} ended with status 0")
    processes.log_death("gatekeeper", pid, status, gatekeeper.UNCONFINED)
