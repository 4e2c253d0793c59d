"""Sockets that systemd passes: one connected socket, or listening ones (sd_listen_fds(3))."""

from __future__ import annotations

import os

from tpop3d.system import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.system.refusal import Refusal

FIRST = 3  # SD_LISTEN_FDS_START
TLS_NAME = "pop3s"  # FileDescriptorName= of a socket that speaks TLS from the first octet on
MISSING = (
    "systemd has passed sockets, and the package systemd-python, which takes them, is missing:"
    " pip install 'tpop3d[systemd]'"
)


class Passed:
    """What systemd has passed: one connected socket, or listening ones.

    `named_tls` are the descriptors of the sockets whose name is `TLS_NAME`.
    """

    def __init__(
        self, connected: int | None, listening: list[socket.socket], named_tls: set[int]
    ) -> None:
        self.connected = connected
        self.listening = listening
        self.named_tls = named_tls

    def is_tls(self, fd: int) -> bool:
        """Does this socket speak TLS from the first octet on?"""
        return fd in self.named_tls


def is_ours() -> bool:
    """Were sockets passed to this very process?"""
    return (
        os.environ.get("LISTEN_PID") == str(os.getpid())
        and os.environ.get("LISTEN_FDS", "0") != "0"
    )


def take() -> Passed | Refusal:
    """Take the sockets over from systemd."""
    from tpop3d.system.refusal import PERMANENT, Refusal

    try:
        from systemd import daemon
    except ImportError:
        return Refusal(MISSING, PERMANENT)
    passed = daemon.listen_fds_with_names(unset_environment=True)
    fds = list(passed)
    named_tls = {fd for fd, name in passed.items() if name == TLS_NAME}
    listening = []
    for fd in fds:
        if not daemon.is_socket(fd, socket.AF_UNSPEC, socket.SOCK_STREAM, -1):
            return Refusal(f"descriptor {fd} from systemd is no stream socket", PERMANENT)
        if daemon.is_socket(fd, socket.AF_UNSPEC, socket.SOCK_STREAM, 1):
            listening.append(socket.socket(fileno=fd))
    if len(listening) == len(fds):
        return Passed(None, listening, named_tls)
    if listening or len(fds) > 1:
        why = "systemd must pass one connected socket (Accept=yes), or only listening ones"
        return Refusal(why, PERMANENT)
    return Passed(fds[0], [], named_tls)
