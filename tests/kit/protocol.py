"""The protocol without a network: octets in, octets out, in as many pieces as a test likes."""

import fcntl
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import overload

from doors import SERVER
from mailsite import ENVIRONMENT, PATIENCE, Site
from tpop3d.pop3 import replies
from tpop3d.pop3.authorization import Attempt, Policy
from tpop3d.pop3.replies import Reply
from tpop3d.pop3.transaction import Transaction
from tpop3d.privsep import channel, gatekeeper
from tpop3d.privsep.channel import LoginRequest, Order
from tpop3d.session.conversation import Conversation
from tpop3d.session.wire import Ended, Wire
from tpop3d.system.refusal import Refusal

Said = tuple[str, bytes, bytes]  # the method, the name, and the password or digest
OPEN = Policy(b"", plaintext=True)
TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"  # RFC 1939's own example


def pieces(octets: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The octets, cut at these offsets."""
    places = sorted({0, len(octets), *(cut for cut in cuts if cut < len(octets))})
    return [octets[start:end] for start, end in pairwise(places)]


def bytewise(octets: bytes) -> list[bytes]:
    return pieces(octets, range(len(octets)))


def as_sent(content: bytes) -> bytes:
    """A stored message as RETR sends it, before dot-stuffing."""
    sent = re.sub(rb"(?<!\r)\n", b"\r\n", content)
    return sent + b"\r\n" if content and not content.endswith(b"\n") else sent


def unstuffed(octets: bytes) -> bytes:
    """What a client makes of the body of a multi-line reply, the final dot included."""
    assert octets.count(b"\n") == octets.count(b"\r\n"), "a bare LF"
    lines = octets.split(b"\r\n")
    assert lines[-2:] == [b".", b""], "no final dot"
    assert b"." not in lines[:-2], "a final dot in the middle"
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:-2])


class Memory:
    """A maildrop in memory, whose blocks are as small as a test likes."""

    def __init__(self, *contents: bytes, block: int = 7) -> None:
        self.contents = contents
        self.octets = [len(as_sent(content)) for content in contents]
        self.block = block
        self.why_changed = ""

    def __len__(self) -> int:
        return len(self.contents)

    def changed(self) -> Refusal | None:
        return Refusal(self.why_changed) if self.why_changed else None

    def blocks(self, index: int) -> Iterator[bytes]:
        content = self.contents[index]
        for start in range(0, len(content), self.block):
            yield content[start : start + self.block]

    def unique_ids(self) -> list[bytes]:
        return [b"id-%d" % n for n in range(1, len(self.contents) + 1)]


@overload
def said(answer: Reply) -> bytes: ...
@overload
def said(answer: Attempt) -> Said: ...
def said(answer: Reply | Attempt) -> bytes | Said:
    """A reply as the octets that go out; an attempt as (method, name, secret)."""
    if isinstance(answer, Attempt):
        return answer.method, answer.name, answer.password or answer.digest
    return answer.line + b"\r\n" + b"".join(answer.body or ())


def status(answer: Reply) -> bytes:
    """The first word of a reply that is one."""
    return said(answer).split()[0]


@contextmanager
def wired(
    read_fd: int, write_fd: int, pending: bytes = b""
) -> Iterator[tuple[Wire, Callable[[], int]]]:
    """A wire on these descriptors, and a function that tells its session to end."""
    wakeup, wake = os.pipe()
    wire = Wire(read_fd, write_fd, wakeup, pending)
    wire.deadline = wire.now() + PATIENCE
    try:
        yield wire, lambda: os.write(wake, b"\0")
    finally:
        # A session ends with its process; here its copy of the connection must be closed.
        if wire._socket is not None:
            wire._socket.close()
        os.close(wakeup)
        os.close(wake)


@contextmanager
def packets(chunks: Iterable[bytes]) -> Iterator[int]:
    """A pipe from which each read gets one of the chunks, and then the end."""
    read_end, write_end = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)

    def write() -> None:
        with suppress(BrokenPipeError), open(write_end, "wb", buffering=0) as pipe:
            for chunk in chunks:
                pipe.write(chunk)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        writer.join()


class Outcome:
    """What came of a conversation: octets, how it ended, which messages were marked."""

    output = b""
    end = ""
    deleted = b""

    @property
    def lines(self) -> list[bytes]:
        return self.output.splitlines(keepends=True)


def converse(
    chunks: Iterable[bytes], maildrop: Memory, policy: Policy = OPEN, secret: bytes = b"secret"
) -> Outcome:
    """Both states on one wire, in this process; every name with the right password gets in."""
    outcome = Outcome()

    class Monitor(channel.Channel):
        """Who is asked is the other end of the gatekeeper's channel, without one."""

        def __init__(self) -> None:
            self.failed = 0

        def ask(self, request: LoginRequest) -> bytes:
            if request.attempt.password == secret:
                return channel.ADMITTED
            self.failed += 1
            return channel.REFUSED_FOR_LAST if self.failed == 3 else channel.REFUSED

    with (
        packets(chunks) as read_end,
        tempfile.TemporaryFile() as sink,
        wired(read_end, sink.fileno()) as (wire, _),
    ):
        try:
            outcome.end = gatekeeper.authorize(
                wire, Order((read_end, sink.fileno()), policy, PATIENCE), Monitor()
            )
            if not outcome.end:
                transaction = Transaction(maildrop, policy)
                conversation = Conversation(wire)
                conversation.say(replies.logged_in(len(maildrop), transaction.left_octets))
                last = conversation.run(transaction)
                if last.outcome == replies.UPDATE:
                    outcome.deleted = bytes(transaction.deleted)
                    conversation.say(replies.GOODBYE)
                wire.flush()
                outcome.end = last.outcome
        except Ended as ended:
            outcome.end = ended.how
        sink.seek(0)
        outcome.output = sink.read()
    return outcome


def run_server(site: Site, chunks: Iterable[bytes], *arguments: str) -> tuple[bytes, bytes]:
    """The real server, fed chunk by chunk through a pipe; returns its output and its log."""
    with packets(chunks) as read_end, tempfile.TemporaryFile() as sink:
        done = subprocess.run(
            [*SERVER, "--inetd", "-f", str(site.conf), *arguments],
            stdin=read_end,
            stdout=sink,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            timeout=3 * PATIENCE,
            check=True,
        )
        sink.seek(0)
        return sink.read(), done.stderr


def waiting(fd: int) -> int:
    """How many octets can be read from a pipe or socket by now."""
    return int.from_bytes(fcntl.ioctl(fd, 0x541B, bytes(4)), "little")  # FIONREAD
