"""The inetd door: the connection is on stdin and stdout.

That is so under xinetd, inetd and tcpserver, under systemd with StandardInput=socket, and with a
pipe. The process serves one session and ends.
"""

from __future__ import annotations

import os
import sys

from tpop3d.system.io import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.pop3.replies import Reply
    from tpop3d.system.refusal import Refusal

LISTENING = (
    "stdin is a listening socket, and must be a connection: give xinetd wait = no, inetd nowait,"
    " and a socket unit with StandardInput=socket in its service Accept=yes"
)
MOST_WAITING = 1000  # connections that are refused there at a time
FIRST_FREE = 3  # the descriptors below are stdin, stdout and stderr to everybody's code


class Connection:
    """The client's connection: the descriptors `fd_in` and `fd_out`, which may be the same.

    `stderr_is_free`: is stderr something else than the connection, so that a log may go there?
    """

    __slots__ = ("fd_in", "fd_out", "stderr_is_free")

    def __init__(self, fd_in: int, fd_out: int, stderr_is_free: bool) -> None:
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.stderr_is_free = stderr_is_free


def take() -> Connection | Refusal:
    """Move the connection from stdin and stdout to descriptors of its own. Raises OSError.

    A driver, or a library below it, may print, and the client must see nothing but protocol. So
    stdin and stdout become /dev/null. Under inetd and xinetd stderr is the connection, too, and
    becomes the same. A refusal changes nothing.
    """
    theirs = {_identity(0), _identity(1)}
    stderr_is_free = _identity(2) not in {*theirs, None}
    why = "stdin or stdout is closed, so there is no connection" if None in theirs else ""
    if why := why or (LISTENING if _is_listening(0) else ""):
        from tpop3d.system.refusal import PERMANENT, Refusal

        return Refusal(why, PERMANENT)
    import fcntl

    fd_in = fd_out = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    if len(theirs) > 1:
        fd_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1) if stderr_is_free else (0, 1, 2):
        os.dup2(null, fd)
    if null >= FIRST_FREE:
        os.close(null)
    if sys.stderr is None:
        # It was closed when we started, and `print` would fall back on stdout.
        sys.stderr = sys.stdout
    return Connection(fd_in, fd_out, stderr_is_free)


def _identity(fd: int) -> tuple[int, int] | None:
    """Return device and inode, which tell files apart; None if the descriptor is not open."""
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
    """If stdin is a listening socket, tell the clients that wait there that nobody serves them.

    If they went on waiting, the program that has started us would do so again at once, without end.
    """
    from tpop3d.system import socket

    if not _is_listening(0):
        return
    listening = socket.socket(fileno=0)
    was_blocking = os.get_blocking(0)
    try:
        listening.setblocking(False)  # also for the program that has started us
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
    """Is stderr the client's socket, as under xinetd and inetd? Or is it closed, and there is one?

    A socket on stdout alone is the client's only if `--inetd` says so. A service of systemd's has
    the journal's socket there.
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
    """Open stdin, stdout and stderr if we were started without them: no file of ours may get these
    numbers. `instead_of_sockets`: replace sockets there, too."""
    import stat

    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    for number in (0, 1, 2) if instead_of_sockets else ():
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            os.dup2(fd, number)
    os.close(fd)
