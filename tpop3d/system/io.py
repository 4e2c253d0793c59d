"""Descriptors, directories, sockets: what processes ask for that may not block or be held up."""

from __future__ import annotations

import os
import resource
import select
import struct

from tpop3d.system import socket

# The longest time for the client to take what was sent, in times that for taking nothing.
LINGER_TIMES = 3
PARTING_SECONDS = 1.0  # for the client to close after we did
# A client that has vanished is known to be gone after two minutes: it holds its maildrop no longer.
KEEPALIVE_IDLE = 60  # seconds of silence before its host is asked whether it is there (tcp(7)),
KEEPALIVE_INTERVAL = 15  # seconds from one question to the next,
KEEPALIVE_COUNT = 4  # and how many there are without an answer
PIPE_BUF = 4096  # octets that a pipe which poll(2) calls writable takes without blocking
MAX_POLL = 1_000_000.0  # seconds; poll(2) counts milliseconds in 31 bits


FIRST = 3  # those below are stdin, stdout and stderr


class Violation(Exception):
    """A message that no process of ours sends: its sender is in somebody else's hands."""


def milliseconds(seconds: float) -> float:
    """Convert seconds to poll(2)'s milliseconds, as many as it takes at a time."""
    return min(max(0.0, seconds), MAX_POLL) * 1000


def ready(seconds: float | None, *fds: int) -> set[int]:
    """Wait until one of the descriptors can be read or is closed, `seconds` at most (None: for
    ever); returns all that can be, and none when the time is over."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else milliseconds(seconds))}


class PacketSocket:
    """One end of a socketpair on which two processes send each other packets (unix(7),
    SOCK_SEQPACKET), some with descriptors."""

    __slots__ = ("_socket",)

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """The descriptor, to poll for."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other one reads an end of file."""
        self._socket.close()

    def send_packet(self, octets: bytes, *fds: int) -> None:
        """Send a packet without waiting. Raises OSError where the other side is gone, or does not
        read."""
        rights = struct.pack(f"{len(fds)}i", *fds)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        self._socket.sendmsg([octets], control, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def receive_packet(self, size: int, count: int = 0) -> tuple[bytes, tuple[int, ...]]:
        """Wait for a packet of at most `size` octets, from a process that is trusted; returns it
        with its descriptors, at most `count`. No octets: the other end is closed."""
        room = socket.CMSG_SPACE(struct.calcsize(f"{count}i")) if count else 0
        octets, rights, _, _ = self._socket.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
        if not rights:
            return octets, ()
        return octets, struct.unpack(f"{len(rights[0][2]) // struct.calcsize('i')}i", rights[0][2])


def writable(fd: int) -> bool:
    """Would something that is sent there now go at once, or fail at once?

    This is never select(2): it knows no descriptor beyond 1023, and a listener has more clients.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends of a connection, for a `PacketSocket` each."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def say(fd: int, line: bytes) -> None:
    """Send a line, if it can be sent at once. This process may be root: it reads nothing."""
    try:
        if writable(fd):
            os.write(fd, line + b"\r\n")
    except OSError:
        pass  # gone


def send_now(connection: socket.socket | None, fd: int, view: memoryview) -> int:
    """Send on a socket, or into a pipe if it is None, without blocking; returns how many octets
    went, which may be 0. Raises OSError where nobody is there any more."""
    try:
        if connection is not None:
            return connection.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if not writable(fd):
            return 0
        return os.write(fd, view[:PIPE_BUF])
    except BlockingIOError:
        return 0


def name_of(connection: socket.socket, call: str) -> tuple[str, int]:
    """Call `getpeername` or `getsockname`; returns the address and port, or a word and 0."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return "unix", 0
    try:
        host, port = getattr(connection, call)()[:2]
    except OSError:
        return "unknown", 0
    return plain(host), port


def plain(host: str) -> str:
    """Write an address as people know it: an IPv4 address so, too, where it came over IPv6."""
    return host.removeprefix("::ffff:")


def set_no_delay(connection: socket.socket) -> None:
    """Have the kernel send at once: what is sent here is whole, and must not wait for the client's
    next ACK."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # closed already


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel ask whether the peer is there, and end the connection if it is not.

    This is not TCP_USER_TIMEOUT, which also ends connections of peers that are there and take
    nothing for a while.
    """
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
                (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
                (socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
            ):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError:
            pass  # closed already


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    first = FIRST
    for fd in sorted({fd for fd in keep if fd >= first}):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def make_directory(path: str, mode: int) -> None:
    """Make a directory of exactly this mode, unless it exists. Raises OSError.

    Its name is on the disk then: a file in it that is fsynced survives a power cut.
    """
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)  # whatever the umask says
    sync_directory(os.path.dirname(path) or ".")


def sync_directory(directory: str) -> None:
    """Have the names in a directory on the disk (fsync(2)). Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
