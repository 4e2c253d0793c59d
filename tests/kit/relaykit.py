"""A real relay in a process of its own, with both its sides in the test's hands."""

import os
import select
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Self

import tlskit
from mailsite import PATIENCE, poll
from tpop3d.system import processes
from tpop3d.system.privileges import Sandbox
from tpop3d.tls import relay, relay_channel
from tpop3d.tls.relay_channel import Failed, Ready, RelayChannel, RelayOrder, Secured

QUIET = 0.1  # seconds in which nobody does anything who has nothing to do

File = socket.socket | FileIO
Sides = tuple[Sequence[File], Sequence[File]]  # one's own, and those that the relay gets


class Side:
    """A side of the relay that never waits. What there is to send is in `to_send`, what has come
    in `got`; `is_over`: nothing more will come; `is_gone`: nothing more is taken."""

    def __init__(self, files: Sequence[File], piece: int = 1 << 16) -> None:
        self.files = files  # one to read, one to write; or a socket
        self.fd_in, self.fd_out = files[0].fileno(), files[-1].fileno()
        for file in files:
            os.set_blocking(file.fileno(), False)
        self.piece = piece  # the most octets that are read or written at a time
        self.reads = True
        self.sent = 0
        self.say(b"")
        self.got = bytearray()
        self.is_over = self.is_gone = False

    def say(self, octets: bytes) -> None:
        self.to_send = memoryview(octets)

    def wants(self) -> dict[int, int]:
        wanted = {}
        if self.reads and not self.is_over:
            wanted[self.fd_in] = select.POLLIN
        if self.has_more() and not self.is_gone:
            wanted[self.fd_out] = wanted.get(self.fd_out, 0) | select.POLLOUT
        return wanted

    def turn(self, ready: set[int]) -> None:
        if self.reads and not self.is_over and self.fd_in in ready:
            with suppress(BlockingIOError):  # it may be ready for the other direction only
                octets = self.read()
                self.is_over = not octets
                self.take(octets)
        if self.has_more() and not self.is_gone and self.fd_out in ready:
            try:
                self.give()
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                self.is_gone = True

    def close(self) -> None:
        self.reads = False
        self.is_over = self.is_gone = True
        for file in self.files:
            file.close()

    def read(self) -> bytes:
        try:
            return os.read(self.fd_in, self.piece)
        except ConnectionResetError:
            return b""

    def has_more(self) -> bool:
        """Is there something to write?"""
        raise NotImplementedError

    def take(self, octets: bytes) -> None:
        """Take what was read."""
        raise NotImplementedError

    def give(self) -> None:
        """Write what can be written. Raises what os.write raises."""
        raise NotImplementedError


class Plain(Side):
    """The session's side."""

    def has_more(self) -> bool:
        return bool(self.to_send)

    def take(self, octets: bytes) -> None:
        self.got += octets

    def give(self) -> None:
        count = os.write(self.fd_out, self.to_send[: self.piece])
        self.to_send = self.to_send[count:]
        self.sent += count


class Client(Side):
    """The client's side, behind TLS. `bade_farewell`: the server's close_notify has come."""

    def __init__(
        self,
        files: Sequence[File],
        context: ssl.SSLContext,
        piece: int = 1 << 16,
        session: ssl.SSLSession | None = None,
    ) -> None:
        super().__init__(files, piece)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = tlskit.NAME
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_hostname=name, session=session
        )
        self.unsent = b""
        self.is_secured = self.bade_farewell = False
        self.error: ssl.SSLError | None = None
        self.take(b"")

    def take(self, octets: bytes) -> None:
        self.incoming.write(octets)
        try:
            if not self.is_secured:
                self.tls.do_handshake()
                self.is_secured = True
            while part := self.tls.read(1 << 16):
                self.got += part
            self.bade_farewell = True
        except ssl.SSLZeroReturnError:
            self.bade_farewell = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error

    def has_more(self) -> bool:
        return bool(self.unsent or self.outgoing.pending or (self.to_send and self.is_secured))

    def give(self) -> None:
        if self.to_send and self.is_secured and not self.unsent:
            count = self.tls.write(self.to_send[: self.piece])
            self.to_send = self.to_send[count:]
            self.sent += count
        self.unsent += self.outgoing.read()
        self.unsent = self.unsent[os.write(self.fd_out, self.unsent[: self.piece]) :]

    def close_notify(self) -> None:
        """Say that nothing more comes."""
        with suppress(ssl.SSLError):
            self.tls.unwrap()


class Relayed:
    """A relay, `client` and `session` on its sides, and the monitor's `channel` to it."""

    def __init__(self, pid: int, channel: RelayChannel, client: Side, session: Side) -> None:
        self.pid, self.channel = pid, channel
        self.client, self.session = client, session
        self.status: int | None = None

    def run(
        self, condition: Callable[[], object], why: str = "the relay", *, quiet: bool = False
    ) -> None:
        """Let both sides do what they can until `condition` is true, or nobody does anything."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"still waiting for {why}"
            waiting = select.poll()
            for side in (self.client, self.session):
                for fd, mask in side.wants().items():
                    waiting.register(fd, mask)
            ready = {fd for fd, _ in waiting.poll(1000 * QUIET if quiet else 20)}
            if quiet and not ready and self.sleeps():
                return
            for side in (self.client, self.session):
                side.turn(ready)

    def settle(self) -> None:
        """Go on until nobody can do anything."""
        self.run(lambda: False, "quiet", quiet=True)

    def secure(self) -> Self:
        """Come to the end of the handshake."""
        client = self.client
        assert isinstance(client, Client)
        self.run(lambda: client.is_secured, "a handshake")
        return self

    def told(self) -> Ready | Secured | Failed | None:
        """The relay's next message."""
        waiting = select.poll()
        waiting.register(self.channel.fileno(), select.POLLIN)

        def message_there() -> bool:
            return bool(waiting.poll(0))

        self.run(message_there, "a message")
        return self.channel.receive()

    def hear_end(self) -> None:
        """Let the client hear the end, and close."""
        self.run(lambda: self.client.is_over, "the end")
        self.client.close()
        assert self.await_end() == 0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done meanwhile the relay finds when all of it is done."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def has_ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def await_end(self) -> int | None:
        """The relay's exit code."""
        self.run(self.has_ended, "the relay's end")
        return self.status

    def sleeps(self) -> bool:
        """Does the relay wait for something, other than for its turn on a busy machine?"""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0] in "SZ"

    def activity(self) -> tuple[int, int]:
        """Nanoseconds on a processor, and how often it was given one: of a sleeper, the same."""
        on, _, times = Path(f"/proc/{self.pid}/schedstat").read_text().split()
        return int(on), int(times)

    def peak(self) -> int:
        """The most memory that it ever had, in octets."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def socketpair() -> Sides:
    ours, theirs = socket.socketpair()
    return [ours], [theirs]


def tcp() -> Sides:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    return [ours], [theirs]


def pipes() -> Sides:
    made = [os.pipe() for _ in range(2)]
    (in_1, out_1), (in_2, out_2) = [(os.fdopen(r, "rb", 0), os.fdopen(w, "wb", 0)) for r, w in made]
    return [in_1, out_2], [in_2, out_1]


TRANSPORTS = {"socketpair": socketpair, "tcp": tcp, "pipes": pipes}


def start(context: ssl.SSLContext) -> tuple[int, RelayChannel]:
    """Fork a relay that waits for its order."""
    ours, theirs = relay_channel.pair()
    sandbox = Sandbox(None, os.getegid(), "")
    pid = processes.spawn(lambda: relay.run(sandbox, theirs, [context]))
    theirs.close()
    return pid, ours


@contextmanager
def relayed(
    context: ssl.SSLContext,
    transport: Callable[[], Sides] = socketpair,
    client: ssl.SSLContext | None = None,
    piece: int = 1 << 16,
    seconds: float = PATIENCE,
    patience: float = PATIENCE,
) -> Iterator[Relayed]:
    """A relay of this context between a client, without one of its own a plain one, and a
    session."""
    pid, channel = start(context)
    mine, its = transport()
    session, inner = socket.socketpair()
    with inner:
        fds = its[0].fileno(), its[-1].fileno(), inner.fileno()
        channel.give_order(RelayOrder(fds, 0, seconds, patience))
    for file in its:
        file.close()
    made = Client(mine, client, piece) if client else Plain(mine)
    one = Relayed(pid, channel, made, Plain([session]))
    try:
        yield one
        one.client.close()
        one.session.close()
        poll(one.has_ended, "the relay's end")
    finally:
        one.client.close()
        one.session.close()
        channel.close()
        if not one.has_ended():
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def leave(side: Side) -> None:
    """Close, so that what is sent to it from now on is an error at once."""
    file = side.files[0]
    if isinstance(file, socket.socket) and file.family == socket.AF_INET:
        reset(side)
    else:
        side.close()


def reset(side: Side) -> None:
    """Close a TCP connection so that the other side hears of an error."""
    (connection,) = side.files
    assert isinstance(connection, socket.socket)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.close()
