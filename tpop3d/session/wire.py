"""The connection: lines in, octets out, and the deadline for both.

Nothing here blocks for longer than its deadline, and nothing but `flush` sends. A connection is
either a socket (one descriptor for both directions) or a pair of pipes.
"""

from __future__ import annotations

import os
import select
import stat
from time import monotonic

from tpop3d.pop3.commands import LineBuffer
from tpop3d.system import socket
from tpop3d.system.io import (
    PARTING_SECONDS,
    keep_alive,
    milliseconds,
    name_of,
    send_now,
    set_no_delay,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

QUIT = "quit"  # the one way to end that is no exception
TIMEOUT = "timeout"
EOF = "eof"
ERROR = "error"
SIGNAL = "signal"
INJECTION = "injection"  # something was sent behind STLS
HTTP = "http"  # the client speaks another protocol

RECEIVE = 1 << 16  # octets asked for at a time
GATHER = 1 << 16  # octets of replies that are gathered before they are sent


class Ended(Exception):
    """The connection is over: TIMEOUT, EOF, ERROR or SIGNAL."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Wire:
    """One connection.

    `wakeup` is a descriptor that becomes readable when the session is told to end. `pending` is
    what another process has received and not used.
    """

    def __init__(self, fd_in: int, fd_out: int, wakeup: int, pending: bytes = b"") -> None:
        self._in = fd_in
        self._out = fd_out
        self._wakeup = wakeup
        self._ending = _poll({wakeup: select.POLLIN})
        self._reading = _poll({fd_in: select.POLLIN, wakeup: select.POLLIN})
        self._writing = _poll({fd_out: select.POLLOUT, wakeup: select.POLLIN})
        self._lines = LineBuffer(pending)
        self._gathered: list[bytes] = []
        self._gathered_octets = 0
        self._marks: list[tuple[int, Callable[[], None]]] = []
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(fd_out).st_mode):
            self._socket = socket.socket(fileno=os.dup(fd_out))
            set_no_delay(self._socket)
        self.deadline = 0.0  # of monotonic(); whoever reads or flushes sets it first
        self.extension = 0.0  # seconds by which whatever the client takes puts the deadline off
        self.octets_in = 0
        self.octets_out = 0

    def peer(self) -> str:
        """The client's address, or a word for the kind of connection."""
        return "pipe" if self._socket is None else name_of(self._socket, "getpeername")[0]

    def local(self) -> tuple[str, int]:
        """The address and port that the client connected to; ("", 0) where there is none."""
        host, port = ("", 0) if self._socket is None else name_of(self._socket, "getsockname")
        return (host, port) if port else ("", 0)

    def keep_alive(self) -> None:
        """Have the kernel ask whether the client is still there."""
        if self._socket is not None:
            keep_alive(self._socket)

    @staticmethod
    def now() -> float:
        """The time in seconds, by the clock of deadlines."""
        return monotonic()

    def read_line(self, limit: int) -> bytes:
        """The next line of at most `limit` octets, as `LineBuffer.next_line` returns it.

        What was gathered is sent before waiting. Raises `Ended`; on a signal also where a line has
        come already, so that a client cannot put the end off with many commands.
        """
        line = self._lines.next_line(limit)
        if line is not None and self.pause(0):
            raise Ended(SIGNAL)
        while line is None:
            self.flush()
            self._wait(self._reading)
            try:
                received = os.read(self._in, RECEIVE)
            except OSError:
                raise Ended(EOF) from None  # reset by the client
            if not received:
                raise Ended(EOF)
            self.octets_in += len(received)
            self._lines.feed(received)
            line = self._lines.next_line(limit)
        return line

    def beginning(self) -> bytes:
        """The beginning of a line that was too long for `read_line`."""
        return self._lines.beginning

    def send(self, blocks: Iterable[bytes]) -> None:
        """Gather octets for the client, and send when they are many. Raises `Ended`."""
        for block in blocks:
            self._gathered.append(block)
            self._gathered_octets += len(block)
            if self._gathered_octets >= GATHER:
                if self.pause(0):
                    raise Ended(SIGNAL)
                self.flush()

    def when_sent(self, action: Callable[[], None]) -> None:
        """Call `action` when all that was gathered so far is sent; never, if it is not."""
        self._marks.append((self.octets_out + self._gathered_octets, action))
        self._reach_marks()

    def _reach_marks(self) -> None:
        while self._marks and self._marks[0][0] <= self.octets_out:
            self._marks.pop(0)[1]()

    def flush(self) -> None:
        """Send what was gathered, in one call where the client takes it. Raises `Ended`."""
        if not self._gathered:
            return
        rest = memoryview(b"".join(self._gathered))
        self._gathered.clear()
        self._gathered_octets = 0
        while rest:
            try:
                sent = send_now(self._socket, self._out, rest)
            except OSError:
                raise Ended(EOF) from None
            if not sent:
                self._wait(self._writing)
                continue
            rest = rest[sent:]
            self.octets_out += sent
            self._reach_marks()
            if self.extension:
                self.deadline = monotonic() + self.extension

    def _wait(self, poll: select.poll) -> None:
        """Wait to read or to write. Raises `Ended` at the deadline, and on a signal."""
        ready: list[tuple[int, int]] = []
        while not ready:
            left = self.deadline - monotonic()
            if left <= 0:
                raise Ended(TIMEOUT)  # also for a client that never stops sending
            ready = poll.poll(milliseconds(left))
        if any(found == self._wakeup for found, _ in ready):
            raise Ended(SIGNAL)

    def pause(self, seconds: float) -> bool:
        """Wait; True, at once, if the session is told to end."""
        return bool(self._ending.poll(seconds * 1000))

    def has_hung_up(self, seconds: float = 0) -> bool:
        """Has the client closed its sending side by now, whatever it sent before? The news of a
        client behind a relay may take some `seconds`."""
        return bool(_poll({self._in: select.POLLRDHUP}).poll(seconds * 1000))

    def has_sent_more(self) -> bool:
        """Has the client sent anything behind the line that was read last? Raises `Ended`."""
        if self._lines.rest():
            return True
        if not _poll({self._in: select.POLLIN}).poll(0):
            return False
        try:
            if os.read(self._in, 1):
                return True
        except OSError:
            pass
        raise Ended(EOF)

    def has_unread(self) -> bool:
        """Has the client sent anything that was not read as a line?"""
        ready = _poll({self._in: select.POLLIN}).poll(0)
        return self._lines.has_line() or any(mask & select.POLLIN for _, mask in ready)

    def part(self) -> None:
        """End the connection from our side so that the client receives what was sent last.

        If a socket is closed with octets unread, the kernel throws away what is on its way to the
        client (RFC 1122 section 4.2.2.13): so what the client still sends is read.
        """
        if self._socket is None:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self.deadline = monotonic() + PARTING_SECONDS
            received = b"unknown"
            while received:
                self._wait(self._reading)
                received = os.read(self._in, RECEIVE)
        except (OSError, Ended):
            pass  # gone, or too slow to matter

    def pending(self) -> bytes:
        """What was received and not used, for the process that reads on."""
        return self._lines.rest()

    def close(self) -> None:
        """Close what this object opened; the descriptors that it was given stay open."""
        if self._socket is not None:
            self._socket.close()


def _poll(masks: dict[int, int]) -> select.poll:
    """Make a poll object for these descriptors."""
    poll = select.poll()
    for fd, mask in masks.items():
        poll.register(fd, mask)
    return poll
