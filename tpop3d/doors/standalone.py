"""A minimal accept loop for the demo: one process a connection, `max-children` at most.

No privileges are separated here and nothing is reloaded; it is no daemon.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress

from tpop3d.session import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config

CHECK = 200  # milliseconds between looks at which children have ended
FULL = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"


def serve_forever(listener: socket.socket, config: Config) -> None:
    """Serve connections until SIGINT, SIGTERM or SIGHUP, then end the sessions in progress."""
    wakeup = signals.catch()
    children: set[int] = set()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        ready = poll.poll(CHECK if children else None)
        _reap(children)
        if any(fd == wakeup for fd, _ in ready):
            break
        if ready:
            _accept(listener, config, children)
    listener.close()
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in children:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _accept(listener: socket.socket, config: Config, children: set[int]) -> None:
    """Take one connection, and fork the process that serves it."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return  # gone before it was taken
    if len(children) >= config.max_children:
        with suppress(OSError):
            connection.send(FULL, socket.MSG_DONTWAIT)
    elif pid := os.fork():
        children.add(pid)
    else:
        status = 1
        try:
            from tpop3d.doors import inetd

            listener.close()
            inetd.serve(config, connection.fileno(), connection.fileno())
            status = 0
        finally:
            os._exit(status)
    connection.close()


def _reap(children: set[int]) -> None:
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)
