"""The signals that end a session. They interrupt nothing: they make a descriptor readable.

Whoever waits, waits for that descriptor too; whoever writes to a mailspool does not look.
"""

from __future__ import annotations

# `signal` wraps the same functions into enums, and costs a third of an interpreter's start.
import _signal
import os

ENDING = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)


def catch() -> int:
    """From now on the ending signals make the returned descriptor readable, and do nothing else.

    A child made by fork must call it anew, or it would share the descriptor.
    """
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _signal.set_wakeup_fd(write_end)
    for number in ENDING:
        _signal.signal(number, _ignore)
    return read_end


def _ignore(number: int, frame: object) -> None:
    """A handler must exist for the wakeup descriptor to be written to (signal(7))."""
