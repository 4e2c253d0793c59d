"""The listener's gatekeepers: forked ahead, waiting for connections."""

from __future__ import annotations

import _signal
import os

from tpop3d import logs
from tpop3d.doors.served import Gatekeeper
from tpop3d.session import gatekeeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpop3d.session.privileges import Cell

LEAST = 2  # gatekeepers that wait, so that a greeting needs no fork; with fewer there will be
SPARES = 4
MOST = 8  # that go on waiting when many have come back
RETRY = 0.1  # seconds until forking is tried again, at first
MAX_RETRY = 5.0  # and after gatekeeper upon gatekeeper has died at once


class Pool:
    """All gatekeepers, by pid; those that wait are spares."""

    def __init__(self, cell: Cell, connections: int) -> None:
        self._cell = cell
        self._connections = connections  # that one gatekeeper may serve
        self._generation = 0
        self._spares: list[Gatekeeper] = []
        self.all: dict[int, Gatekeeper] = {}
        self.retry = RETRY  # seconds until the next try where one has failed

    def renew(self, cell: Cell, connections: int) -> list[Gatekeeper]:
        """Another configuration: those that wait are ended, and are returned; those that are busy
        are not used again."""
        self._cell = cell
        self._connections = connections
        self._generation += 1
        return self.drop_spares()

    def fill(self, wanted: int) -> Iterator[Gatekeeper]:
        """Have spares again if there are few, but no more than `wanted`; yields the new ones.

        Raises OSError where there can be no further process.
        """
        if len(self._spares) >= min(wanted, LEAST):
            return
        for _ in range(min(wanted, SPARES) - len(self._spares)):
            made = Gatekeeper(*gatekeeper.start(self._cell), self._generation)
            self.all[made.pid] = made
            self._spares.append(made)
            yield made

    def take(self) -> Gatekeeper | None:
        """A gatekeeper that waits, or None."""
        return self._spares.pop() if self._spares else None

    def give_back(self, one: Gatekeeper) -> bool:
        """A gatekeeper has finished with a connection. False: it is not used again."""
        one.served = None
        one.connections += 1
        self.retry = RETRY
        worn = one.connections >= self._connections or one.generation != self._generation
        if worn or len(self._spares) >= MOST:
            return False
        self._spares.append(one)
        return True

    def drop(self, one: Gatekeeper) -> None:
        """End a gatekeeper, whatever it is doing. Its death is noticed later, and not logged."""
        one.is_dropped = True
        self.kill(one)

    def kill(self, one: Gatekeeper) -> None:
        """End a gatekeeper, if it has not ended by itself; what ended it is logged."""
        if one in self._spares:
            self._spares.remove(one)
        if self.all.get(one.pid) is one:
            os.kill(one.pid, _signal.SIGKILL)

    def drop_spares(self) -> list[Gatekeeper]:
        """End those that wait; returns them."""
        dropped = list(self._spares)
        for one in dropped:
            self.drop(one)
        return dropped

    def bury(self, pid: int, status: int) -> Gatekeeper | None:
        """A process has ended: if it was a gatekeeper, it is one no longer, and is returned."""
        one = self.all.pop(pid, None)
        if one is None:
            return None
        if one in self._spares:
            self._spares.remove(one)
        if one.is_dropped:
            return one
        if os.WIFSIGNALED(status):
            logs.error(f"gatekeeper {pid} was ended by signal {os.WTERMSIG(status)}")
        elif os.WEXITSTATUS(status):
            logs.error(f"gatekeeper {pid} ended with status {os.WEXITSTATUS(status)}")
        if not one.connections and one.served is None:
            # One that dies at once would be replaced by another that dies at once.
            self.retry = min(2 * self.retry, MAX_RETRY)
        return one
