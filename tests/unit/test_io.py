"""Waiting for descriptors, and packets that bring some along."""

import os
import resource
import socket
from contextlib import suppress

import pytest

from tpop3d.system import io
from tpop3d.system.io import PacketSocket, packet_pair, ready


@pytest.fixture
def ends():
    ours, theirs = [PacketSocket(end) for end in packet_pair()]
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def pipes():
    made = [os.pipe() for _ in range(2)]
    yield made
    for pair in made:
        for fd in pair:
            try:
                os.close(fd)
            except OSError:
                pass


def test_all_that_are_ready_are_named(pipes):
    """A wakeup and a descriptor at once: whoever waits looks at both."""
    (first, to_first), (second, to_second) = pipes
    assert ready(0, first, second) == set()
    os.write(to_second, b"x")
    assert ready(None, first, second) == {second}
    os.write(to_first, b"x")
    assert ready(5, first, second) == {first, second}


def test_who_is_closed_is_ready(pipes):
    (first, to_first), _ = pipes
    os.close(to_first)
    assert ready(None, first) == {first}


@pytest.mark.parametrize("seconds", [0, -1, -1e9])
def test_a_time_that_is_over_is_not_waited_for(pipes, seconds):
    assert ready(seconds, pipes[0][0]) == set()


@pytest.mark.parametrize("seconds", [1e7, 1e300, float("inf")])
def test_no_time_is_too_long_for_the_kernel(seconds):
    assert 0 < io.milliseconds(seconds) < 1 << 31


def test_a_packet_is_one_piece(ends):
    ours, theirs = ends
    ours.send_packet(b"one")
    ours.send_packet(b"two")
    assert theirs.receive_packet(100) == (b"one", ())
    assert theirs.receive_packet(100) == (b"two", ())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_descriptors_come_along(ends, pipes, count):
    ours, theirs = ends
    (first, to_first), (second, _) = pipes
    ours.send_packet(b"take", *[to_first, first, second][:count])
    octets, fds = theirs.receive_packet(100, count)
    assert (octets, len(fds)) == (b"take", count)
    assert not any(os.get_inheritable(fd) for fd in fds)
    os.write(fds[0], b"x")
    assert os.read(first, 1) == b"x"
    for fd in fds:
        os.close(fd)


def test_the_end_is_an_empty_packet(ends):
    ours, theirs = ends
    ours.close()
    assert theirs.receive_packet(100, 1) == (b"", ())
    with pytest.raises(OSError):
        theirs.send_packet(b"x")


def test_for_one_that_does_not_read_nobody_waits(ends):
    def fill():
        for _ in range(100_000):
            ends[0].send_packet(bytes(1000))

    with pytest.raises(BlockingIOError):
        fill()


def test_a_line_is_said_if_it_can_be_said_at_once():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        io.say(ours.fileno(), b"-ERR [SYS/TEMP] later")
        assert theirs.recv(100) == b"-ERR [SYS/TEMP] later\r\n"
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while ours.send(bytes(100_000)):
                pass
        ours.setblocking(True)
        io.say(ours.fileno(), b"nobody waits")
        gone = os.dup(ours.fileno())
        os.close(gone)
        io.say(gone, b"nobody is there")


def test_a_number_that_select_does_not_know_is_waited_for():
    ours, theirs = socket.socketpair()
    beyond = 1100
    with ours, theirs:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], beyond + 1), before[1]))
        try:
            os.dup2(ours.fileno(), beyond)
            assert ready(0, beyond) == set()
            theirs.send(b"x")
            assert ready(None, beyond) == {beyond}
            io.say(beyond, b"+OK")
            assert theirs.recv(100) == b"+OK\r\n"
        finally:
            os.close(beyond)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
