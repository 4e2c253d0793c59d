"""Writes lines to syslogd or stderr, and never waits long.

syslog(3) waits for ever for a syslogd that does not read, and write(2) does so for the reader of
our stderr; a listener that waits serves nobody. Here a line that nobody takes is lost, and counted.
All processes of a server share the count; the first one that finds room again logs it.
"""

from __future__ import annotations

import os
import select
import stat
from time import localtime

from tpop3d.system import socket

SOCKET = "/dev/log"  # the socket of syslog(3)
PATIENCE = 1.0  # seconds that a line may wait, as for the journal
FIRST_FREE = 3  # foreign code takes the descriptors below for stdin, stdout and stderr
MONTHS = "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"
LOG_WARNING = 4


class Event(str):
    """A line about an event: a text with `what` happened, and its fields."""

    __slots__ = ("fields", "what")

    fields: dict[str, str]
    what: str


class Outlet:
    """Writes lines, in this process and in those that it forks."""

    def __init__(self) -> None:
        self._counter = -1  # an eventfd(2): the number of lost lines that were not logged yet

    def count_losses(self) -> None:
        """Count lost lines, in this process and in all that are forked from now on."""
        if self._counter < 0:
            try:
                flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
                self._counter = _not_standard(os.eventfd(0, flags))
            except OSError:
                pass

    def write(self, level: int, line: str) -> None:
        """Write a line of printable ASCII; `level` is syslog(3)'s. The line may be lost."""
        if not self._put(level, line, PATIENCE):
            self._lose(1)
        elif lost := self._take_count():
            lines = "1 line was" if lost == 1 else f"{lost} lines were"
            # A pipe may be as good as full, and still take a short line.
            has_room = _is_ready(self._fileno(), select.POLLOUT)
            text = f"{lines} lost: the log was not read"
            if not has_room or not self._put(LOG_WARNING, text, 0.0):
                self._lose(lost)

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that this outlet needs besides stderr."""
        return (self._counter,) if self._counter >= 0 else ()

    def close(self) -> None:
        """Close the descriptors, except stderr."""
        if self._counter >= 0:
            os.close(self._counter)
            self._counter = -1

    def _put(self, level: int, line: str, patience: float) -> bool:
        """Write a line when there is room, within `patience` seconds. False: it is lost."""
        octets = self._formed(level, line).encode("ascii", "replace")
        try:
            try:
                self._send(octets)
            except BlockingIOError:
                # If lines were lost, somebody has already waited in vain since the last success.
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
        """Write a formed line. Raises OSError; BlockingIOError if there is no room."""
        raise NotImplementedError

    def _fileno(self) -> int:
        raise NotImplementedError


class Syslog(Outlet):
    """Writes to syslogd, in the form of RFC 3164 that syslog(3) writes with LOG_PID.

    `connect` is called early, since a session, as another user, may not be allowed to connect. If
    syslogd was started again, the next line connects to it.
    """

    facility = 0  # a number of syslog(3)

    def __init__(self) -> None:
        super().__init__()
        self._socket: socket.socket | None = None
        self._end = b""

    def connect(self) -> None:
        """Connect now, unless that is done. Raises OSError."""
        if self._socket is None:
            self._connect()

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that this outlet needs besides stderr."""
        own = () if self._socket is None else (self._socket.fileno(),)
        return own + super().descriptors()

    def close(self) -> None:
        """Close the descriptors."""
        super().close()
        self._disconnect()

    def _connect(self) -> None:
        """Connect to syslogd. Some daemons need a stream, in which a NUL ends each message."""
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
                self._disconnect()  # syslogd is gone, or was started again
        self._connect()
        self._send_all(octets)

    def _send_all(self, octets: bytes) -> None:
        assert self._socket is not None
        octets += self._end
        if self._socket.send(octets) < len(octets):
            self._disconnect()  # or syslogd would take the next message for the rest of this one
            raise OSError("a message of a stream was cut off")

    def _fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()


class Stderr(Outlet):
    """Writes to stderr, whatever that is at the moment.

    Other programs have it, too, so we must not make it non-blocking (fcntl(2), O_NONBLOCK). We open
    pipes and terminals anew instead.
    """

    def _formed(self, level: int, line: str) -> str:
        return f"tpop3d[{os.getpid()}]: {line}\n"

    def _send(self, octets: bytes) -> None:
        # A line is one write, so that lines of several processes do not mix.
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
                if not _is_ready(2, select.POLLOUT):  # we may not open it: it is another user's
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
    """Can `fd` be read or written, as the poll(2) event `what` says, within some seconds?"""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, what)
    return bool(poll.poll(seconds * 1000))


def _not_standard(fd: int) -> int:
    """Move a descriptor behind the standard ones, which may have been closed; returns its number.
    Raises OSError."""
    if fd >= FIRST_FREE:
        return fd
    import fcntl

    other = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    os.close(fd)
    return other
