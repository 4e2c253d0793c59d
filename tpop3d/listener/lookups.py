"""Look up users, groups and hosts for a reload, in a process of its own.

A service on the network may not answer for minutes. Meanwhile the listener goes on. When it then
reads the configuration again, it knows the answers.
"""

from __future__ import annotations

import marshal
import os

from tpop3d.config import Unanswered, directive
from tpop3d.system import logs, processes, signal, socket
from tpop3d.system.io import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from tpop3d.listener.event_loop import Loop

    Answer = TypeVar("Answer")

PATIENCE = 120.0  # seconds, for all look-ups of a reload
PIECE = 65536  # octets that are read at a time
# The exceptions of look-ups by name. Another exception becomes its nearest base among these.
RAISED = {
    kind.__name__: kind for kind in (Unanswered, ValueError, UnicodeError, socket.gaierror, OSError)
}


class NotAsked(BaseException):
    """The other process has not asked for this name, so there is no answer."""


class Answers:
    """Answers by kind and name. The process that looks up finds them; the listener knows them."""

    def __init__(self, known: dict[tuple[str, str], Any] | None = None) -> None:
        self.asks = known is None
        self.known = known or {}

    def answer(self, what: str, name: str, ask: Callable[[], Answer]) -> Answer:
        """Return what `ask` returns, or raise what it raises. Raises `NotAsked`."""
        if self.asks:
            self.known[what, name] = _outcome(ask)
        if (what, name) not in self.known:
            raise NotAsked
        raised, values = self.known[what, name]
        if raised:
            raise RAISED[raised](*values)
        answer: Answer = values
        return answer


def _outcome(ask: Callable[[], object]) -> tuple[str, object]:
    """Call `ask`; returns "" and its result, or the name of what it raises, with the arguments."""
    try:
        return "", ask()
    except (ValueError, OSError) as error:
        kind = next(name for name in map(_name_of, type(error).__mro__) if name in RAISED)
        return kind, () if kind == "UnicodeError" else _plain(error.args)


def _name_of(kind: type) -> str:
    return kind.__name__


def _plain(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(one if isinstance(one, int) else str(one) for one in arguments[:2])


def knowing(answers: Answers, act: Callable[[], Answer]) -> Answer:
    """Call `act`, which finds the answers to its look-ups here. Raises `NotAsked`."""
    directive.answers = answers
    try:
        return act()
    finally:
        directive.answers = None


class LookUp:
    """A process that calls `look_up`.

    `finish` is called with its answers, or with None if there are none in time. Raises OSError if
    there can be no further process.
    """

    def __init__(
        self,
        loop: Loop,
        look_up: Callable[[], None],
        finish: Callable[[Answers | None], None],
    ) -> None:
        self._loop = loop
        self._finish = finish
        self._received = b""
        self._read_end, write_end = os.pipe()
        try:
            pid = processes.spawn(lambda: _work(look_up, write_end))
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            os.close(self._read_end)
            raise
        finally:
            os.close(write_end)
        loop.add_reader(self._read_end, self._read)
        loop.call_later(PATIENCE, lambda: self._end(None))

    def stop(self) -> None:
        """End the process; `finish` is not called."""
        if self._read_end < 0:
            return
        self._loop.remove_reader(self._read_end)
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended
        os.close(self._read_end)
        os.close(self._pidfd)
        self._read_end = -1

    def _read(self) -> None:
        if octets := os.read(self._read_end, PIECE):
            self._received += octets
        else:
            self._end(Answers(marshal.loads(self._received)) if self._received else None)

    def _end(self, answers: Answers | None) -> None:
        if self._read_end >= 0:
            self.stop()
            self._finish(answers)


def _work(look_up: Callable[[], None], write_end: int) -> None:
    """Be the process: look up, and write the answers to the pipe."""
    logs.reopen(lambda log: close_all_but((write_end, *processes.descriptors(), *log)))
    directive.answers = answers = Answers()
    look_up()
    unwritten = memoryview(marshal.dumps(answers.known))
    while unwritten:
        unwritten = unwritten[os.write(write_end, unwritten) :]
