"""The signals that end a session. They interrupt nothing: they make a descriptor readable.

Whoever waits, waits for that descriptor too; whoever writes to a mailspool does not look.
"""

from __future__ import annotations

# `signal` wraps the same functions into enums, and costs a third of an interpreter's start.
import _signal
import os

ENDING = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)

_pipe = (-1, -1)
_caught: set[int] = set()


def catch(*more: int) -> int:
    """From now on the ending signals, and `more`, make the returned descriptor readable.

    One octet a signal, its number (signal.set_wakeup_fd); nothing else happens. A child made by
    fork must call it anew, or it would share the descriptor.
    """
    global _pipe
    before, _pipe = _pipe, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    for number in _caught.difference(ENDING, more):
        # Caught by the parent, and no business of a child's.
        _signal.signal(number, _signal.SIG_DFL if number == _signal.SIGCHLD else _signal.SIG_IGN)
    _caught.clear()
    for number in (*ENDING, *more):
        _signal.signal(number, _ignore)
        _caught.add(number)
    for fd in before:
        if fd >= 0:
            os.close(fd)
    return _pipe[0]


def descriptors() -> tuple[int, int]:
    """Both ends of what `catch` made last, for whoever closes all others."""
    return _pipe


def _ignore(number: int, frame: object) -> None:
    """A handler must exist for the wakeup descriptor to be written to (signal(7))."""
