"""Processes of ours: how one begins, and how one is told to end.

A child begins in `spawn`, and fork(2) returns twice nowhere else: no child ever returns into its
parent's code. The signals that end a session interrupt nothing: they make a descriptor readable.
Code that waits, waits for that descriptor, too; code that writes to a mailspool does not look at
it.
"""

from __future__ import annotations

import os

# `signal` wraps the same functions into enums, and costs a third of an interpreter's start.
from tpop3d.system import logs, signal
from tpop3d.system.io import ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_pipe = (-1, -1)
_caught: set[int] = set()
_endings: tuple[int, ...] = ENDING


class Interrupted(BaseException):
    """The process was told to end while `interrupt` was on."""


def spare_from_hangup() -> None:
    """Have SIGHUP end nothing from now on, in this process and in its children: to a listener it
    means a reload, and people send it to all processes of a name."""
    global _endings
    _endings = (signal.SIGTERM, signal.SIGINT)


def unblock() -> None:
    """Unblock the ending signals: blocked ones are inherited from whoever started us."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*ENDING, signal.SIGCHLD, signal.SIGUSR1))


def catch(*more: int) -> int:
    """Have the ending signals, and `more`, make the returned descriptor readable from now on.

    Each signal writes one octet, its number (signal.set_wakeup_fd); nothing else happens.
    """
    global _pipe
    before, _pipe = _pipe, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    for number in _caught.difference(_endings, more):
        # Caught by the parent, and no business of a child's.
        signal.signal(number, signal.SIG_IGN)
    if signal.SIGCHLD not in more:
        # Whoever started us may have it ignored, and then nobody can wait for a child.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _caught.clear()
    for number in (*_endings, *more):
        signal.signal(number, _ignore)
        _caught.add(number)
    for fd in before:
        if fd >= 0:
            os.close(fd)
    return _pipe[0]


def catch_again(*more: int) -> int:
    """`catch`, in a process that has called it before: the new descriptor tells of the signals that
    came meanwhile, too, and none is lost between the two."""
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        early = received()
        wakeup = catch(*more)
        os.write(_pipe[1], early)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    return wakeup


def spawn(work: Callable[[], int | None], failed: int = 1) -> int:
    """Do `work` in a process of its own; returns its pid.

    The process ends with the status that `work` returns (None: 0). If `work` raises, that is a bug:
    it is logged, and the status is `failed`. The process has called `catch`, so a signal is its
    own, however soon it comes. Raises OSError where there can be no further process.
    """
    pid = _fork()
    if pid:
        return pid
    status = failed
    try:
        status = work() or 0
    except BaseException as error:
        logs.error(f"internal error: {logs.describe(error)}")
    finally:
        os._exit(status)


def log_death(what: str, pid: int, status: int, told: int = 0) -> None:
    """Log how a process has ended (`status` as waitpid(2) gives it), unless it ended well, or with
    the exit status `told`: then it has logged the reason itself."""
    if os.WIFSIGNALED(status):
        logs.error(f"{what} {pid} was ended by signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status) not in (0, told):
        logs.error(f"{what} {pid} ended with status {os.WEXITSTATUS(status)}")


def _fork() -> int:
    """fork(2), with the child's signals caught before any can come. Raises OSError."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        pid = os.fork()
        if not pid:
            _catch_or_exit()
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _catch_or_exit() -> None:
    """Catch the child's signals, or exit: an exception would look to the parent's code as if the
    parent's fork had failed."""
    try:
        catch()
    except OSError:
        os._exit(1)


def received() -> bytes:
    """The numbers of the signals that have come since `catch`, or since the last call."""
    try:
        return os.read(_pipe[0], 4096)
    except OSError:  # none, or nothing was caught
        return b""


def descriptors() -> tuple[int, int]:
    """Both ends of the pipe that `catch` made last: first the one that becomes readable."""
    return _pipe


def interrupt(on: bool) -> None:
    """While this is on, the first ending signal also raises `Interrupted`, wherever the process is;
    and so does a signal that came before."""
    for number in _caught.intersection(ENDING):
        signal.signal(number, _interrupt if on else _ignore)
    if on and _caught and ready(0, _pipe[0]):
        _interrupt(0, None)


def _interrupt(number: int, frame: object) -> None:
    interrupt(False)  # once: whoever puts things in order now is not to be interrupted in that
    raise Interrupted


def _ignore(number: int, frame: object) -> None:
    """Do nothing: a handler must exist for the wakeup descriptor to be written to (signal(7))."""
