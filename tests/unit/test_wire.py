"""The wire: lines, gathering and deadlines on sockets and pipes."""

import os
import select
import signal
import socket
import struct
import tempfile
import threading

import pytest

from mailsite import PATIENCE, poll
from protocol import waiting, wired
from tpop3d.session.wire import EOF, GATHER, SIGNAL, TIMEOUT, Ended
from tpop3d.system import processes

LIMIT = 255
BIG = b"x" * (4 << 20)  # more than any socket or pipe holds


class Client:
    """The other end of a wire."""

    def __init__(self, wire, server_fds, client_fds, wake, close):
        self.wire = wire
        self.server_fds = server_fds
        self.read_fd, self.write_fd = client_fds
        self.wake = wake
        self.close = close

    def send(self, octets):
        os.write(self.write_fd, octets)

    def received(self):
        return os.read(self.read_fd, 1 << 20) if waiting(self.read_fd) else b""

    def read_in_background(self, octets):
        """Start to read so many octets; returns a function that waits for them."""
        taken = []

        def read():
            while sum(map(len, taken)) < octets and (some := os.read(self.read_fd, 1 << 16)):
                taken.append(some)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()

        def wait():
            thread.join(PATIENCE)
            return b"".join(taken)

        return wait


def by_socketpair():
    ours, theirs = socket.socketpair()
    return ours, theirs, (theirs.fileno(), theirs.fileno()), (ours.fileno(), ours.fileno())


def by_tcp():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), PATIENCE)
        theirs, _ = listener.accept()
    ours.setblocking(True)
    return ours, theirs, (theirs.fileno(), theirs.fileno()), (ours.fileno(), ours.fileno())


def by_pipes():
    (server_in, client_out), (client_in, server_out) = os.pipe(), os.pipe()
    ends = [os.fdopen(fd, "rb" if fd in (server_in, client_in) else "wb", buffering=0)
            for fd in (client_in, client_out, server_in, server_out)]  # fmt: skip
    return Both(*ends[:2]), Both(*ends[2:]), (server_in, server_out), (client_in, client_out)


class Both:
    def __init__(self, *files):
        self.files = files

    def close(self):
        for file in self.files:
            file.close()


WAYS = {"socketpair": by_socketpair, "tcp": by_tcp, "pipes": by_pipes}


@pytest.fixture(params=WAYS)
def client(request):
    ours, theirs, server_fds, client_fds = WAYS[request.param]()
    with wired(*server_fds) as (wire, wake):
        yield Client(wire, server_fds, client_fds, wake, ours.close)
    ours.close()
    theirs.close()


def how_it_ends(call, *arguments):
    with pytest.raises(Ended) as ended:
        call(*arguments)
    return ended.value.how


def test_lines_are_read_across_packets(client):
    client.send(b"NOOP\r\nST")
    assert client.wire.read_line(LIMIT) == b"NOOP"
    client.send(b"AT\nQUIT")
    assert client.wire.read_line(LIMIT) == b"STAT"
    assert client.wire.pending() == b"QUIT"
    assert client.wire.octets_in == len(b"NOOP\r\nSTAT\nQUIT")


def test_what_another_process_received_comes_first(client):
    with wired(*client.server_fds, b"STAT\r\nNO") as (wire, _):
        client.send(b"OP\r\n")
        assert [wire.read_line(LIMIT), wire.read_line(LIMIT)] == [b"STAT", b"NOOP"]


def test_nothing_is_sent_before_it_is_flushed(client):
    client.wire.send([b"+OK\r\n", b"+OK\r\n"])
    assert client.received() == b""
    client.wire.flush()
    poll(lambda: waiting(client.read_fd), "the replies")
    assert client.received() == b"+OK\r\n+OK\r\n"
    assert client.wire.octets_out == 10


def test_what_was_gathered_is_sent_before_waiting_for_the_client(client):
    client.wire.send([b"+OK\r\n"])
    client.wire.deadline = client.wire.now()
    assert how_it_ends(client.wire.read_line, LIMIT) == TIMEOUT
    poll(lambda: waiting(client.read_fd), "the reply")
    assert client.received() == b"+OK\r\n"


def test_no_reply_is_sent_while_a_command_is_buffered(client):
    client.send(b"NOOP\r\nNOOP\r\n")
    client.wire.read_line(LIMIT)
    client.wire.send([b"+OK\r\n"])
    client.wire.read_line(LIMIT)
    assert client.received() == b""


def test_not_more_than_a_block_is_gathered(client):
    wait = client.read_in_background(GATHER)
    client.wire.send(b"y" * 1000 for _ in range(GATHER // 1000 + 1))
    assert len(wait()) >= GATHER


def test_large_bodies_arrive_whole(client):
    content = bytes(range(256)) * (1 << 13)
    wait = client.read_in_background(len(content))
    client.wire.send(content[start : start + 9999] for start in range(0, len(content), 9999))
    client.wire.flush()
    assert wait() == content
    assert client.wire.octets_out == len(content)


def test_a_silent_client_meets_the_deadline(client):
    started = client.wire.now()
    client.wire.deadline = started + 0.05
    assert how_it_ends(client.wire.read_line, LIMIT) == TIMEOUT
    assert 0.05 <= client.wire.now() - started < PATIENCE
    assert client.received() == b""


def test_a_client_that_does_not_read_meets_the_deadline(client):
    client.wire.deadline = client.wire.now() + 0.05
    assert how_it_ends(client.wire.send, [BIG]) == TIMEOUT
    assert 0 < client.wire.octets_out < len(BIG)


def test_what_the_client_takes_puts_the_deadline_off_only_by_the_extension(client):
    client.wire.deadline = fixed = client.wire.now() + 1
    client.wire.send([b"+OK\r\n"])
    client.wire.flush()
    assert client.wire.deadline == fixed
    client.wire.extension = 100.0
    client.wire.send([b"+OK\r\n"])
    client.wire.flush()
    assert fixed + 90 < client.wire.deadline <= client.wire.now() + 100


@pytest.mark.parametrize("filling", [b"", b"USER ann\r\n"], ids=["an endless line", "commands"])
def test_a_client_that_never_stops_sending_meets_the_deadline_too(filling):
    with tempfile.TemporaryFile() as endless, open(os.devnull, "wb") as null:
        endless.write(filling * 20000)
        endless.flush()
        if not filling:
            endless.truncate(1 << 28)
        endless.seek(0)
        with wired(endless.fileno(), null.fileno()) as (wire, _):
            wire.deadline = wire.now() - 1
            assert how_it_ends(read_all, wire) == TIMEOUT


def read_all(wire):
    while True:
        wire.read_line(LIMIT)


def test_a_client_that_hangs_up_ends_reading(client):
    client.send(b"NOOP\r\nQUIT")
    client.close()
    assert client.wire.read_line(LIMIT) == b"NOOP"
    assert how_it_ends(client.wire.read_line, LIMIT) == EOF


def test_a_client_that_hangs_up_ends_writing(client):
    client.close()
    assert how_it_ends(client.wire.send, [BIG]) == EOF


def test_a_reset_connection_is_a_hang_up():
    ours, theirs, fds, _ = by_tcp()
    with theirs, wired(*fds) as (wire, _):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours.close()
        assert how_it_ends(wire.read_line, LIMIT) == EOF


def test_a_wakeup_ends_waiting_for_a_command(client):
    client.wake()
    assert how_it_ends(client.wire.read_line, LIMIT) == SIGNAL


def test_a_wakeup_counts_also_where_a_command_has_come_at_once(client):
    client.send(b"NOOP\r\n")
    poll(lambda: waiting(client.server_fds[0]), "the command")
    client.wake()
    assert how_it_ends(client.wire.read_line, LIMIT) == SIGNAL
    assert waiting(client.server_fds[0]) == len(b"NOOP\r\n")


def test_a_wakeup_ends_waiting_for_a_client_that_does_not_read(client):
    client.wake()
    assert how_it_ends(client.wire.send, [BIG]) == SIGNAL


def test_a_wakeup_ends_a_pause_at_once(client):
    assert client.wire.pause(0) is False
    client.wake()
    assert client.wire.pause(PATIENCE) is True


@pytest.fixture
def undisturbed(monkeypatch):
    """What a test catches is none of the next one's business."""
    before = {one: signal.getsignal(one) for one in (*processes.ENDING, signal.SIGCHLD)}
    monkeypatch.setattr(processes, "_pipe", (-1, -1))
    monkeypatch.setattr(processes, "_caught", set())
    yield
    signal.set_wakeup_fd(-1)
    for fd in processes.descriptors():
        os.close(fd)
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_ending_signal_wakes_and_interrupts_nothing(undisturbed, number):
    fd = processes.catch()
    assert fd in processes.descriptors()
    os.kill(os.getpid(), number)
    assert select.select([fd], [], [], PATIENCE)[0] == [fd]
    assert os.read(fd, 9) == bytes([number])


def test_who_catches_anew_shares_no_descriptor_with_its_parent(undisturbed):
    first = os.stat(processes.catch(signal.SIGCHLD))
    os.kill(os.getpid(), signal.SIGCHLD)
    fd = processes.catch()
    assert os.fstat(fd).st_ino != first.st_ino
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    assert waiting(fd) == 0  # what came before is the parent's to see
    assert [os.get_inheritable(one) for one in processes.descriptors()] == [False, False]


@pytest.mark.parametrize("on", [True, False])
def test_who_has_caught_nothing_is_interrupted_by_nothing(undisturbed, on):
    processes.interrupt(on)
    processes.catch()


def test_catching_leaves_no_descriptor_behind(undisturbed):
    processes.catch()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        processes.catch()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_hanging_up_is_noticed_without_reading(client):
    assert not client.wire.has_hung_up()
    client.close()
    poll(client.wire.has_hung_up, "the end of the connection")


@pytest.mark.parametrize(
    ("way", "name"), [("socketpair", "unix"), ("pipes", "pipe"), ("tcp", "127.0.0.1")]
)
def test_the_other_ends_name(way, name):
    ours, theirs, fds, _ = WAYS[way]()
    try:
        with wired(*fds) as (wire, _):
            assert wire.peer() == name
            assert wire.local() == (theirs.getsockname() if way == "tcp" else ("", 0))
    finally:
        ours.close()
        theirs.close()
