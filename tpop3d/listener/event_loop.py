"""A loop that waits for descriptors and for moments, and does not know what they are for."""

from __future__ import annotations

import select
from heapq import heappop, heappush
from time import monotonic, sleep

from tpop3d.system import logs
from tpop3d.system.io import milliseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Action = Callable[[], None]

PAUSE = 0.1  # seconds after a bug, so that it cannot fill the log as fast as the loop turns


class Loop:
    """Handlers by descriptor, and actions by the moment at which they are due."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Action] = {}
        self._actions: list[tuple[float, int, Action]] = []
        self._count = 0

    def add_reader(self, fd: int, handler: Action) -> None:
        """Call `handler` whenever `fd` can be read."""
        self._poll.register(fd, select.POLLIN)
        self._handlers[fd] = handler

    def remove_reader(self, fd: int) -> None:
        """Wait for `fd` no more. Nothing happens if the loop did not wait for it."""
        if self._handlers.pop(fd, None):
            self._poll.unregister(fd)

    def call_later(self, seconds: float, action: Action) -> None:
        """Call `action` once, later."""
        self._count += 1
        heappush(self._actions, (monotonic() + seconds, self._count, action))

    def run_once(self) -> None:
        """Wait until something happens or is due; handle it.

        A handler that raises has a bug: it is logged, and the loop goes on.
        """
        wait = milliseconds(self._actions[0][0] - monotonic()) + 1 if self._actions else None
        for fd, _ in self._poll.poll(wait):
            # The handler before may have taken the descriptor away.
            if fd in self._handlers:
                _call(self._handlers[fd])
        while self._actions and self._actions[0][0] <= monotonic():
            _call(heappop(self._actions)[2])


def _call(action: Action) -> None:
    try:
        action()
    except Exception as error:
        logs.error(f"internal error: {logs.describe(error)}")
        sleep(PAUSE)
