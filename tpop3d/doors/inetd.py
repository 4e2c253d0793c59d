"""The inetd door: the connection is on stdin and stdout (xinetd, inetd, tcpserver, systemd with
StandardInput=socket, or a pipe). One session, then the end."""

from __future__ import annotations

import os
import sys

from tpop3d.system.io import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.pop3.replies import Reply

LISTENING = (
    "stdin is a listening socket, and must be a connection: give xinetd wait = no, inetd nowait,"
    " and a socket unit with StandardInput=socket in its service Accept=yes"
)
MOST_WAITING = 1000  # connections that are refused there at a time
FIRST_FREE = 3  # the descriptors below are stdin, stdout and stderr to everybody's code


class NoConnection(Exception):
    """stdin and stdout are none; the text says why."""


class Connection:
    """The connection, moved to descriptors of its own: `fd_in` and `fd_out`.

    Nothing but protocol must reach the client, so stdin and stdout become /dev/null; a driver, or
    a library below it, may print. Under inetd and xinetd stderr, too, is the connection; then it
    becomes the same. `stderr_is_free` says that it is another place, where a log may go.

    Raises `NoConnection`, with nothing changed, and OSError.
    """

    def __init__(self) -> None:
        theirs = {_identity(0), _identity(1)}
        self.stderr_is_free = _identity(2) not in {*theirs, None}
        if None in theirs:
            raise NoConnection("stdin or stdout is closed, so there is no connection")
        if _is_listening(0):
            raise NoConnection(LISTENING)
        import fcntl

        self.fd_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
        self.fd_out = self.fd_in
        if len(theirs) > 1:
            self.fd_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1) if self.stderr_is_free else (0, 1, 2):
            os.dup2(null, fd)
        if null >= FIRST_FREE:
            os.close(null)
        if sys.stderr is None:
            # It was closed when we started, and `print` would fall back on stdout.
            sys.stderr = sys.stdout


def _identity(fd: int) -> tuple[int, int] | None:
    """What tells files apart; None for a descriptor that is not open."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_listening(fd: int) -> bool:
    from tpop3d.system import socket

    try:
        one = socket.socket(fileno=fd)
    except OSError:
        return False  # no socket at all
    is_listening = bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    one.detach()
    return is_listening


def refuse_waiting(reply: Reply) -> None:
    """Where stdin is a listening socket: tell those who wait there that they are not served.

    If they went on waiting, whoever has started us would do so again at once, without end.
    """
    from tpop3d.system import socket

    if not _is_listening(0):
        return
    listening = socket.socket(fileno=0)
    was_blocking = os.get_blocking(0)
    try:
        listening.setblocking(False)  # for whoever has started us, too
        for _ in range(MOST_WAITING):
            fd, _ = listening._accept()  # type: ignore[attr-defined]
            say(fd, reply.line)
            os.close(fd)
    except OSError:
        pass  # nobody waits any more
    os.set_blocking(0, was_blocking)
    listening.detach()


def stdin_is_connection() -> bool:
    """Is stdin a connected socket?"""
    import stat

    from tpop3d.system import socket

    try:
        if not stat.S_ISSOCK(os.fstat(0).st_mode):
            return False
        peer = socket.socket(fileno=os.dup(0))
        try:
            peer.getpeername()
        finally:
            peer.close()
    except OSError:
        return False
    return True


def stderr_is_connection(arguments: list[str]) -> bool:
    """Is stderr the client's socket, as under xinetd and inetd, or closed beside one?

    A socket on stdout alone is the client's only where we are told that it is: to a service of
    systemd's it is the journal's.
    """
    import stat

    def identity(fd: int) -> tuple[int, int] | None:
        try:
            status = os.fstat(fd)
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None

    theirs = {identity(fd) for fd in ((0, 1) if "--inetd" in arguments else (0,))}
    if "LISTEN_FDS" in os.environ:
        from tpop3d.doors import activation

        theirs |= {identity(activation.FIRST)} if activation.is_ours() else set()
    theirs.discard(None)
    if sys.stderr is None:  # it was closed when we started, and `print` would fall back on stdout
        return bool(theirs)
    return identity(2) in theirs


def have_standard_descriptors(instead_of_sockets: bool = False) -> None:
    """Whoever started us may have closed stdin, stdout or stderr; nothing of ours may be there."""
    import stat

    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    for number in (0, 1, 2) if instead_of_sockets else ():
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            os.dup2(fd, number)
    os.close(fd)
