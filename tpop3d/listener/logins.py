"""The listener's login attempts: for each a process decides, and may become the session.

What the process does is in `login_child`.
"""

from __future__ import annotations

import os
from time import monotonic

from tpop3d.auth.driver import CANNOT_SAY, NO
from tpop3d.listener import login_child
from tpop3d.listener.hosts import SilentHosts
from tpop3d.privsep import lifecycle
from tpop3d.privsep.monitor import GRACE, log_violation
from tpop3d.session.wire import ERROR
from tpop3d.system import logs, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from tpop3d.auth.driver import Driver
    from tpop3d.listener.connection import Connection, Gatekeeper
    from tpop3d.listener.event_loop import Loop
    from tpop3d.listener.gatekeepers import Gatekeepers
    from tpop3d.privsep.channel import ReceivedLogin
    from tpop3d.session.session import SessionRules

    class LoginRules(SessionRules, Protocol):
        """What logins go by, and the sessions that come of them: directives, by their names."""

        auth_failure_delay_seconds: int
        drivers: dict[str, Driver]


EVENTS = {  # what a login process's exit status says
    login_child.OVER: lifecycle.SESSION_OVER,
    login_child.BROKEN: lifecycle.SESSION_OVER,
    login_child.REFUSED: lifecycle.REFUSED,
    login_child.UNDECIDED: lifecycle.REFUSED,
}


class Logins:
    """All login processes, by pid, and the sessions that came of them.

    `finish` is called with a connection that is over; `log_throttled` logs what may last.
    """

    def __init__(
        self,
        rules: LoginRules,
        gatekeepers: Gatekeepers,
        loop: Loop,
        finish: Callable[[Connection], None],
        log_throttled: Callable[[str], None],
    ) -> None:
        self._rules = rules
        self._hosts = SilentHosts(rules.drivers, loop, log_throttled)
        self._gatekeepers = gatekeepers
        self._loop = loop
        self._finish = finish
        self._log_throttled = log_throttled
        self._by_pid: dict[int, Connection] = {}

    def change(self, rules: LoginRules) -> None:
        """Go by other rules from now on."""
        known = self._hosts.known()
        self._hosts.retire()
        self._rules = rules
        self._hosts = SilentHosts(rules.drivers, self._loop, self._log_throttled, known)

    def begin(self, one: Gatekeeper, connection: Connection, request: ReceivedLogin) -> None:
        """Fork the process that decides, and becomes the session if the answer is yes."""
        connection.asked = monotonic()
        assert connection.fd is not None
        try:
            monitor, rules, needed = connection.monitor, self._rules, self._hosts.descriptors
            pid = login_child.start(connection.fd, one.channel, monitor, request, rules, needed)
        except OSError as error:
            self._log_throttled(f"no further process: {error.strerror}")
            connection.monitor.note(lifecycle.NO_PROCESS)
            one.channel.give_verdict(connection.monitor.answer(CANNOT_SAY))
            return
        connection.login_process = pid
        self._by_pid[pid] = connection

    def reap(self, pid: int, status: int) -> bool:
        """A process has ended: was it a login process, perhaps the session that came of it, or one
        that has tried a host?"""
        connection = self._by_pid.pop(pid, None)
        if connection is not None:
            connection.login_process = 0
            self._on_end(connection, pid, status)
        return connection is not None or self._hosts.reap(pid)

    def stop(self) -> None:
        """There will be no further attempts."""
        self._hosts.retire()

    def _on_end(self, connection: Connection, pid: int, status: int) -> None:
        monitor = connection.monitor
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if os.WIFSIGNALED(status):
            logs.error(f"session {pid} was ended by signal {os.WTERMSIG(status)}")
        if code == login_child.BROKEN:
            monitor.summary.log_end(ERROR)
        has_lied = monitor.state == lifecycle.SERVING and EVENTS.get(code) == lifecycle.REFUSED
        if has_lied and (liar := connection.admitted_by) is not None:
            log_violation(monitor.summary.client, liar.pid, "an admission that nobody gave")
            self._gatekeepers.drop(liar)
        state = monitor.note(EVENTS.get(code, lifecycle.DIED))
        if state == lifecycle.OVER:
            self._finish(connection)
        elif state == lifecycle.ENDED_EARLY:
            connection.hang_up()
            connection.deadline = monotonic() + GRACE
        else:
            # A process that has died on the way has let nobody in. The delay counts from the
            # request on: it does not show how long the drivers took.
            answer = monitor.answer(NO if code == login_child.REFUSED else CANNOT_SAY)
            due = connection.asked + self._rules.auth_failure_delay_seconds
            self._loop.call_later(due - monotonic(), lambda: self._refuse(connection, answer))

    def _refuse(self, connection: Connection, answer: bytes) -> None:
        """Give a refusal that was held back."""
        if connection.monitor.state == lifecycle.OVER:
            return
        if connection.monitor.note(lifecycle.DUE) == lifecycle.OVER:
            self._finish(connection)
            return
        connection.put_off()
        assert connection.gatekeeper is not None
        connection.gatekeeper.channel.give_verdict(answer)


def tell_to_end(connection: Connection) -> None:
    """Tell a login process, or a session, to end; one that removes messages finishes that first."""
    if connection.login_process:
        os.kill(connection.login_process, signal.SIGTERM)
