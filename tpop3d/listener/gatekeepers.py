"""The listener's gatekeepers: forked ahead, waiting for connections."""

from __future__ import annotations

import os

from tpop3d.listener.connection import Gatekeeper
from tpop3d.privsep import gatekeeper
from tpop3d.system import processes, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.listener.event_loop import Loop
    from tpop3d.system.privileges import Sandbox

LEAST = 2  # gatekeepers that wait, so that a greeting needs no fork; with fewer there will be
SPARES = 4
MOST = 8  # that go on waiting when many have come back
RETRY = 0.1  # seconds until forking is tried again, at first
MAX_RETRY = 5.0  # and after gatekeeper upon gatekeeper has died at once


class Gatekeepers:
    """All gatekeepers, by pid. Spares are those that wait for a connection.

    `room` tells how many connections could come; `on_message` is called with a gatekeeper that has
    said something; `log_throttled` logs trouble that may last.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        limit: int,
        loop: Loop,
        room: Callable[[], int],
        on_message: Callable[[Gatekeeper], None],
        log_throttled: Callable[[str], None],
    ) -> None:
        self.all: dict[int, Gatekeeper] = {}
        self._sandbox = sandbox
        self._limit = limit  # connections that one gatekeeper may serve
        self._loop = loop
        self._room = room
        self._on_message = on_message
        self._log_throttled = log_throttled
        self._generation = 0
        self._spares: list[Gatekeeper] = []
        self._retry = RETRY  # seconds until the next try where one has failed
        self._is_to_fill = False

    def renew(self, sandbox: Sandbox, limit: int) -> None:
        """Go by another configuration: end the spares, and use no busy gatekeeper again."""
        self._sandbox = sandbox
        self._limit = limit
        self._generation += 1
        self.drop_spares()

    def fill(self, at_least: int = 0) -> None:
        """Have gatekeepers wait, if few do, but not more than could get a connection."""
        wanted = max(at_least, self._room())
        if len(self._spares) >= min(wanted, LEAST):
            return
        try:
            for _ in range(min(wanted, SPARES) - len(self._spares)):
                made = Gatekeeper(*gatekeeper.start(self._sandbox), self._generation)
                self.all[made.pid] = made
                self._spares.append(made)
                self._loop.add_reader(made.channel.fileno(), self._reader_of(made))
        except OSError as error:
            self._log_throttled(f"no further gatekeeper: {error.strerror}")
            self._fill_later(self._retry)

    def _reader_of(self, one: Gatekeeper) -> Callable[[], None]:
        return lambda: self._on_message(one)

    def _fill_later(self, seconds: float) -> None:
        """Call `_fill_now` later, once, however often this is asked for."""
        if not self._is_to_fill:
            self._is_to_fill = True
            self._loop.call_later(seconds, self._fill_now)

    def _fill_now(self) -> None:
        self._is_to_fill = False
        self.fill()

    def take(self) -> Gatekeeper | None:
        """Take a gatekeeper that waits; None where there can be none."""
        if not self._spares:
            self.fill(at_least=1)
        return self._spares.pop() if self._spares else None

    def give_back(self, one: Gatekeeper) -> None:
        """Take a gatekeeper back that has finished with a connection."""
        one.connection = None
        one.served += 1
        self._retry = RETRY
        worn = one.served >= self._limit or one.generation != self._generation
        if worn or len(self._spares) >= MOST:
            self.drop(one)
        else:
            self._spares.append(one)

    def drop(self, one: Gatekeeper) -> None:
        """End a gatekeeper, whatever it is doing. Its death is seen later, and not logged."""
        one.is_dropped = True
        self._loop.remove_reader(one.channel.fileno())
        self.kill(one)

    def kill(self, one: Gatekeeper) -> None:
        """End a gatekeeper, if it has not ended by itself. How it ended is logged."""
        if one in self._spares:
            self._spares.remove(one)
        if self.all.get(one.pid) is not one:
            return
        try:
            os.kill(one.pid, signal.SIGKILL)
        except OSError as error:
            # What has let us begin has taken that away since: a security module, say.
            self._log_throttled(f"gatekeeper {one.pid} cannot be ended: {error.strerror}")
            self._loop.remove_reader(one.channel.fileno())
            one.channel.close()  # one that is well ends by that

    def drop_spares(self) -> None:
        """End the gatekeepers that wait."""
        for one in list(self._spares):
            self.drop(one)

    def drop_all(self) -> None:
        """End all gatekeepers."""
        for one in list(self.all.values()):
            self.drop(one)

    def reap(self, pid: int, status: int) -> Gatekeeper | None:
        """Take note of a process that has ended; returns the gatekeeper that it was, if any."""
        one = self.all.pop(pid, None)
        if one is None:
            return None
        if one in self._spares:
            self._spares.remove(one)
        self._loop.remove_reader(one.channel.fileno())
        one.channel.close()
        self._log_death(one, status)
        self._fill_later(0 if one.served or one.connection else self._retry)
        return one

    def _log_death(self, one: Gatekeeper, status: int) -> None:
        """Log what a gatekeeper has died of, unless we have ended it."""
        if one.is_dropped:
            return
        processes.log_death("gatekeeper", one.pid, status, gatekeeper.UNCONFINED)
        if not one.served and one.connection is None:
            # One that dies at once would be replaced by another that dies at once.
            self._retry = min(2 * self._retry, MAX_RETRY)
