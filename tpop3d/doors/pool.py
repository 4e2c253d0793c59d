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

SPARES = 4  # gatekeepers that wait, so that a greeting needs no fork


class Pool:
    """All gatekeepers, by pid; those that wait are `spares`."""

    def __init__(self, cell: Cell, connections: int) -> None:
        self.cell = cell
        self.connections = connections  # that one gatekeeper may serve
        self.all: dict[int, Gatekeeper] = {}
        self._spares: list[Gatekeeper] = []

    def fill(self, wanted: int) -> Iterator[Gatekeeper]:
        """Fork what is missing of `wanted` spares, `SPARES` at most; yields the new ones.

        Raises OSError where there can be no further process.
        """
        missing = min(wanted, SPARES) - len(self._spares)
        for _ in range(missing):
            yield self._start()

    def _start(self) -> Gatekeeper:
        made = Gatekeeper(*gatekeeper.start(self.cell))
        self.all[made.pid] = made
        self._spares.append(made)
        return made

    def take(self) -> Gatekeeper | None:
        """A gatekeeper that waits, or None."""
        return self._spares.pop() if self._spares else None

    def give_back(self, one: Gatekeeper) -> bool:
        """A gatekeeper has finished with a connection. False: it is not used again."""
        one.served = None
        one.connections += 1
        if one.connections >= self.connections or len(self._spares) >= SPARES:
            return False
        self._spares.append(one)
        return True

    def drop(self, one: Gatekeeper) -> None:
        """End a gatekeeper, whatever it is doing. Its death is noticed later."""
        if one in self._spares:
            self._spares.remove(one)
        if one.pid in self.all:
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
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != _signal.SIGKILL:
            logs.error(f"gatekeeper {pid} was ended by signal {os.WTERMSIG(status)}")
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status):
            logs.error(f"gatekeeper {pid} ended with status {os.WEXITSTATUS(status)}")
        return one
