"""One connection in this process: what the inetd door, and a connected socket from systemd, do.

The process forks a gatekeeper, which speaks with the client until somebody is let in, and is
itself the monitor. After a good login the gatekeeper is ended, and the monitor becomes the
mailbox's user and the session.
"""

from __future__ import annotations

import _signal
import os
import select
import stat
from time import monotonic

from tpop3d import logs
from tpop3d.auth.driver import YES
from tpop3d.session import gatekeeper, signals
from tpop3d.session.channel import Asked, Channel, Ending, Line, Order, Violation
from tpop3d.session.monitor import GRACE, Monitor, log_violation
from tpop3d.session.wire import ERROR, SIGNAL, Wire, milliseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config
    from tpop3d.session.privileges import Cell


MAX_TRANSCRIPT = 1 << 20  # octets of AUTHORIZATION, where stdout is a file


class _Ended(Exception):
    """The connection ended before anybody was let in."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


def serve(config: Config, cell: Cell, fd_in: int, fd_out: int) -> None:
    """Serve the connection on two descriptors, which may be one and the same."""
    if stat.S_ISREG(os.fstat(fd_out).st_mode):
        cell.file_size = MAX_TRANSCRIPT
    signals.unblock()
    pid, channel = gatekeeper.start(cell)
    wakeup = signals.catch()
    wire = Wire(fd_in, fd_out, wakeup)
    monitor = Monitor(config, wire.peer(), wire.local())
    wire.close()
    summary = monitor.summary
    try:
        channel.give_order(Order((fd_in, fd_out), monitor.policy, config.login_seconds))
        # While the client reads the greeting: a session may not be able to read these files.
        from tpop3d.session import session  # isort: skip
        from tpop3d.auth import isolation  # noqa: F401

        deadline = summary.started + config.login_seconds + GRACE
        request = _admitted(channel, monitor, wakeup, deadline, config)
    except _Ended as ended:
        _end(pid)
        summary.log_end(ended.how)
        return
    except (Violation, OSError) as error:
        log_violation(summary.client, pid, error)
        _end(pid)
        summary.log_end(ERROR)
        return
    # Whatever the gatekeeper was up to: from here on the connection is the session's alone.
    _end(pid)
    channel.close()
    account = monitor.verdict.account
    assert account is not None
    fds = fd_in, fd_out
    session.serve(fds, request.pending, wakeup, account, monitor.policy, config, summary)


def _admitted(
    channel: Channel, monitor: Monitor, wakeup: int, deadline: float, config: Config
) -> Asked:
    """Answer the gatekeeper until somebody is let in. Raises `_Ended` and `Violation`."""
    while True:
        message = _receive(channel, wakeup, deadline)
        if message is None:
            raise _Ended(ERROR)  # it is dead; what it died of is logged when it is ended
        if isinstance(message, Line):
            monitor.log(message)
            continue
        monitor.summary.octets_in = message.octets_in
        monitor.summary.octets_out = message.octets_out
        if isinstance(message, Ending):
            raise _Ended(message.how or ERROR)
        monitor.check(message)
        answered = monotonic() + config.auth_failure_delay_seconds
        try:
            verdict = monitor.decide(message)
        except signals.Interrupted:
            raise _Ended(SIGNAL) from None
        code = monitor.answer(verdict.answer)
        if verdict.answer == YES:
            return message
        _hold_back(wakeup, answered)
        channel.give_verdict(code)
        # The time that this took was not the gatekeeper's.
        deadline = max(deadline, monotonic() + GRACE)


def _receive(channel: Channel, wakeup: int, deadline: float) -> Asked | Ending | Line | None:
    """The gatekeeper's next message."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    ready = dict(poll.poll(milliseconds(deadline - monotonic())))
    if wakeup in ready:
        raise _Ended(SIGNAL)
    if not ready:
        raise Violation("the gatekeeper does not answer")
    return channel.receive()


def _hold_back(wakeup: int, until: float) -> None:
    """Let time pass before a refusal: guessing costs time, the same whatever was guessed."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    if poll.poll(milliseconds(until - monotonic())):
        raise _Ended(SIGNAL)


def _end(pid: int) -> None:
    """End the gatekeeper, and see that it has ended."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, _signal.SIGKILL)
        os.waitpid(pid, 0)
    elif os.WIFSIGNALED(status):
        logs.error(f"gatekeeper {pid} was ended by signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status):
        logs.error(f"gatekeeper {pid} ended with status {os.WEXITSTATUS(status)}")
