"""The inetd door: the connection is on stdin and stdout (xinetd, inetd, tcpserver, systemd with
StandardInput=socket, or a pipe). One session, then the end."""

from __future__ import annotations

import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.pop3.replies import Reply

FIRST_FREE = 3  # the descriptors below are stdin, stdout and stderr to everybody's code


class Connection:
    """The connection, moved to descriptors of its own: `fd_in` and `fd_out`.

    Nothing but protocol must reach the client, so stdin and stdout become /dev/null; a driver, or
    a library below it, may print. Under inetd and xinetd stderr, too, is the connection; then it
    becomes the same. `stderr_is_free` says that it is another place, where a log may go.
    """

    def __init__(self) -> None:
        theirs = {_identity(0), _identity(1)}
        self.stderr_is_free = _identity(2) not in {*theirs, None}
        if None in theirs:
            raise OSError("stdin or stdout is closed, so there is no connection")
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


def say(fd_out: int, reply: Reply) -> None:
    """Tell the client why there is no session. We may be root: nothing is read from it."""
    try:
        if select.select((), (fd_out,), (), 0)[1]:
            os.write(fd_out, reply.line + b"\r\n")
    except OSError:
        pass  # gone
