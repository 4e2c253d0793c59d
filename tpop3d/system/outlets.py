"""Ways of a line to the log that never wait long: a datagram to syslogd, or a line on stderr.

syslog(3) waits for ever for a syslogd that does not read, and so does write(2) for whoever has our
stderr; a listener that waits serves nobody. Here a line that nobody takes is lost, and counted. All
processes of a server count together, and tell the number when there is room again.
"""

from __future__ import annotations

import os
import select
import stat
from time import localtime

from tpop3d.system import socket

SOCKET = "/dev/log"  # syslog(3)'s
PATIENCE = 1.0  # seconds that a line may wait, as it may for the journal
FIRST_FREE = 3  # the descriptors below are stdin, stdout and stderr to everybody's code
MONTHS = "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"
LOG_WARNING = 4


class Outlet:
    """Takes lines, in this process and in those that it forks."""

    def __init__(self) -> None:
        self._counter = -1  # an eventfd(2): how many lines are lost that nobody was told of

    def count_losses(self) -> None:
        """Count the lines that are lost, here and in all processes that are forked from now on."""
        if self._counter < 0:
            try:
                flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
                self._counter = _not_standard(os.eventfd(0, flags))
            except OSError:
                pass

    def write(self, level: int, line: str) -> None:
        """Write a line of printable ASCII; `level` is syslog(3)'s. It may be lost."""
        if not self._put(level, line, PATIENCE):
            self._lose(1)
        elif lost := self._take_count():
            lines = "1 line was" if lost == 1 else f"{lost} lines were"
            # A pipe that takes a short line still may be as good as full.
            has_room = _is_ready(self._fileno(), select.POLLOUT)
            text = f"{lines} lost: the log was not read"
            if not has_room or not self._put(LOG_WARNING, text, 0.0):
                self._lose(lost)

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that it needs besides stderr."""
        return (self._counter,) if self._counter >= 0 else ()

    def close(self) -> None:
        """Let go of the descriptors."""
        if self._counter >= 0:
            os.close(self._counter)
            self._counter = -1

    def _put(self, level: int, line: str, patience: float) -> bool:
        """Write it, once there is room. False: it cannot be."""
        octets = self._formed(level, line).encode("ascii", "replace")
        try:
            try:
                self._send(octets)
            except BlockingIOError:
                # Where lines are lost somebody has waited in vain since the last one got through.
                if _is_ready(self._counter, select.POLLIN):
                    return False
                if not _is_ready(self._fileno(), select.POLLOUT, patience):
                    return False
                self._send(octets)
        except OSError:
            return False
        return True

    def _take_count(self) -> int:
        try:
            return os.eventfd_read(self._counter) if self._counter >= 0 else 0
        except OSError:
            return 0  # none is lost

    def _lose(self, lines: int) -> None:
        try:
            os.eventfd_write(self._counter, lines)
        except (OSError, ValueError):
            pass

    def _formed(self, level: int, line: str) -> str:
        raise NotImplementedError

    def _send(self, octets: bytes) -> None:
        """Raises OSError; BlockingIOError where there is no room."""
        raise NotImplementedError

    def _fileno(self) -> int:
        raise NotImplementedError


class Syslog(Outlet):
    """syslogd, in the form of RFC 3164 that syslog(3) of the C library writes with LOG_PID.

    It is connected at once: a session may not be allowed to, as another user. Where syslogd was
    started again, the next line connects to it.
    """

    facility = 0  # syslog(3)'s number

    def __init__(self) -> None:
        super().__init__()
        self._socket: socket.socket | None = None
        self._end = b""

    def connect(self) -> None:
        """Connect now, unless that is done. Raises OSError."""
        if self._socket is None:
            self._connect()

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that it needs besides stderr."""
        own = () if self._socket is None else (self._socket.fileno(),)
        return own + super().descriptors()

    def close(self) -> None:
        """Let go of the descriptors."""
        super().close()
        self._disconnect()

    def _connect(self) -> None:
        """Some daemons want a stream, where each message ends with a NUL."""
        for kind, end in ((socket.SOCK_DGRAM, b""), (socket.SOCK_STREAM, b"\0")):
            made = socket.socket(socket.AF_UNIX, kind)
            made = socket.socket(fileno=_not_standard(made.detach()))
            try:
                made.setblocking(False)
                made.connect(SOCKET)
            except OSError as error:
                made.close()
                from errno import EPROTOTYPE

                if error.errno == EPROTOTYPE and not end:
                    continue
                raise
            self._socket, self._end = made, end
            return

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _formed(self, level: int, line: str) -> str:
        now = localtime()
        clock = f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
        when = f"{MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {clock}"
        return f"<{self.facility | level}>{when} tpop3d[{os.getpid()}]: {line}"

    def _send(self, octets: bytes) -> None:
        if self._socket is not None:
            try:
                self._send_all(octets)
                return
            except BlockingIOError:
                raise
            except OSError:
                self._disconnect()  # that syslogd is gone
        self._connect()
        self._send_all(octets)

    def _send_all(self, octets: bytes) -> None:
        assert self._socket is not None
        octets += self._end
        if self._socket.send(octets) < len(octets):
            self._disconnect()  # or the rest of it would begin the next message
            raise OSError("a message of a stream was cut off")

    def _fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()


class Stderr(Outlet):
    """stderr, whatever it is at the moment.

    Others have it, too, so it must not be made non-blocking itself (fcntl(2), O_NONBLOCK): pipes
    and terminals are opened anew.
    """

    def _formed(self, level: int, line: str) -> str:
        return f"tpop3d[{os.getpid()}]: {line}\n"

    def _send(self, octets: bytes) -> None:
        # Always in one write: lines of several processes do not mix.
        mode = os.fstat(2).st_mode
        if stat.S_ISSOCK(mode):
            stderr = socket.socket(fileno=2)
            try:
                stderr.send(octets, socket.MSG_DONTWAIT)
            finally:
                stderr.detach()
            return
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                fd = os.open("/proc/self/fd/2", flags)
            except OSError:
                if not _is_ready(2, select.POLLOUT):  # it is another user's
                    raise BlockingIOError from None
            else:
                try:
                    os.write(fd, octets)
                finally:
                    os.close(fd)
                return
        os.write(2, octets)

    def _fileno(self) -> int:
        return 2


def _is_ready(fd: int, what: int, seconds: float = 0.0) -> bool:
    """Can it be read or written, or can it within some time?"""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, what)
    return bool(poll.poll(seconds * 1000))


def _not_standard(fd: int) -> int:
    """The same on a descriptor that is not one of the standard ones, which may have been closed."""
    if fd >= FIRST_FREE:
        return fd
    import fcntl

    other = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    os.close(fd)
    return other
