"""The inetd door: the connection is on stdin and stdout (xinetd, inetd, tcpserver, systemd with
StandardInput=socket, or a pipe). One session, then the end."""

from __future__ import annotations

import os

from tpop3d import logs
from tpop3d.pop3 import replies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config


def protect_client() -> bool:
    """Make sure that nothing but protocol reaches the client; returns whether stderr is free.

    Under inetd and xinetd stderr, too, is the client's connection. Then it becomes /dev/null.
    """
    try:
        theirs = {_identity(0), _identity(1)}
        if _identity(2) not in theirs:
            return True
    except OSError:
        pass  # one of the three is closed, and its number would go to the next file opened
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    if null > 2:
        os.close(null)
    return False


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def serve(config: Config, fd_in: int = 0, fd_out: int = 1) -> None:
    """Serve the one session of a connection."""
    from tpop3d.session import signals
    from tpop3d.session.connection import Connection
    from tpop3d.session.wire import Wire

    Connection(Wire(fd_in, fd_out, signals.catch()), config).serve()


def turn_away(problems: list[str]) -> None:
    """Log why there can be no session, and tell the client that there is none."""
    for problem in problems:
        logs.error(problem)
    try:
        os.write(1, replies.SERVER_MISCONFIGURED.line + b"\r\n")
    except OSError:
        pass
