"""The listener's login attempts: each is a child that decides, and may become the session.

What the child does is in `attempt`.
"""

from __future__ import annotations

import os
from _signal import SIGTERM
from time import monotonic

from tpop3d.auth.driver import CANNOT_SAY, NO
from tpop3d.listener import login_child
from tpop3d.listener.connection import DIED, HELD_BACK, UNHEARD
from tpop3d.listener.hosts import SilentHosts
from tpop3d.privsep.channel import Violation
from tpop3d.privsep.monitor import GRACE, log_violation
from tpop3d.session.wire import ERROR
from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.listener.connection import Gatekeeper, Served
    from tpop3d.listener.event_loop import Loop
    from tpop3d.listener.gatekeepers import Pool
    from tpop3d.privsep.channel import Asked
    from tpop3d.settings import Config


class Attempts:
    """All of them, by pid, and the sessions that came of them.

    `waiting` has the deadlines of connections before login; `finish` is called with one that is
    over, and with how it ended unless its session has logged that; `complain` logs what may last.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        loop: Loop,
        waiting: dict[Served, float],
        finish: Callable[[Served, str], None],
        complain: Callable[[str], None],
    ) -> None:
        self._config = config
        self._hosts = SilentHosts(config.drivers, loop, complain)
        self._pool = pool
        self._loop = loop
        self._waiting = waiting
        self._finish = finish
        self._complain = complain
        self._by_child: dict[int, Served] = {}

    def change(self, config: Config) -> None:
        """Go by another configuration from now on."""
        known = self._hosts.known()
        self._hosts.retire()
        self._config = config
        self._hosts = SilentHosts(config.drivers, self._loop, self._complain, known)

    def begin(self, one: Gatekeeper, served: Served, request: Asked) -> None:
        """Fork the child that decides, and that is the session if the answer is yes."""
        if served.child or served.fd < 0:
            raise Violation("an attempt during another")
        served.monitor.check(request)
        served.asked = monotonic()
        try:
            monitor, config, needed = served.monitor, self._config, self._hosts.descriptors
            served.child = login_child.start(
                served.fd, one.channel, monitor, request, config, needed
            )
        except OSError as error:
            self._complain(f"no further process: {error.strerror}")
            one.channel.give_verdict(served.monitor.answer(CANNOT_SAY))
            return
        self._by_child[served.child] = served

    def bury(self, pid: int, status: int) -> bool:
        """A process has ended: was it an attempt's child, perhaps the session that came of it, or
        one that has tried a host?"""
        served = self._by_child.pop(pid, None)
        if served is not None:
            self._end(served, pid, status)
        return served is not None or self._hosts.bury(pid)

    def stop(self) -> None:
        """There will be no further attempts."""
        self._hosts.retire()

    def _end(self, served: Served, pid: int, status: int) -> None:
        served.child = 0
        one = served.gatekeeper
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if os.WIFSIGNALED(status):
            logs.error(f"session {pid} was ended by signal {os.WTERMSIG(status)}")
        if code == login_child.BROKEN:
            served.monitor.summary.log_end(ERROR)
        if code in (login_child.OVER, login_child.BROKEN):
            if one is None:
                self._finish(served, "")
                return
            served.child = UNHEARD
            served.hang_up()
            self._waiting[served] = monotonic() + GRACE
            return
        is_refused = code in (login_child.REFUSED, login_child.UNDECIDED)
        if is_refused and one is None and (liar := served.released_by) is not None:
            log_violation(served.monitor.summary.client, liar.pid, "an admission that nobody gave")
            self._pool.drop(liar)
        if one is None and not is_refused:
            self._finish(served, ERROR)
            return
        # One that has died on the way has not been let in.
        answer = served.monitor.answer(NO if code == login_child.REFUSED else CANNOT_SAY)
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


def tell_to_end(served: Served) -> None:
    """Tell an attempt, or a session, to end; one that removes messages finishes that first."""
    os.kill(served.child, SIGTERM)
