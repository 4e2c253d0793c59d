"""What a relay and the monitor say to each other: it arrives as it was sent, or is a violation."""

import os
import socket
import struct
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpop3d.system.io import Violation
from tpop3d.tls import relay_channel
from tpop3d.tls.relay_channel import (
    FAILED,
    MAX_TEXT,
    READY,
    SECURED,
    Failed,
    Ready,
    RelayChannel,
    RelayOrder,
    Secured,
)

SAID = "TLSv1.3 TLS_AES_256_GCM_SHA384"


@contextmanager
def ends():
    monitor, relay = relay_channel.pair()
    try:
        yield monitor, relay
    finally:
        monitor.close()
        relay.close()


@contextmanager
def forged():
    """The monitor's end, and a socket with which anything can be sent to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield RelayChannel(ours), theirs


def received(packet):
    """What the monitor makes of a packet."""
    with forged() as (monitor, other):
        other.send(packet)
        return monitor.receive()


def told(kind, text=""):
    """What arrives of what a relay tells."""
    with ends() as (monitor, relay):
        relay.tell(kind, text)
        return monitor.receive()


def test_a_relays_life_arrives_as_it_was_told():
    with ends() as (monitor, relay):
        relay.tell(READY)
        relay.tell(SECURED, SAID)
        relay.tell(FAILED, "unexpected eof while reading")
        relay.close()
        ready, secured, failed, end = (monitor.receive() for _ in range(4))
    assert isinstance(ready, Ready)
    assert (secured.version, secured.cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    assert failed.reason == "unexpected eof while reading"
    assert end is None


def test_who_has_said_nothing_is_not_waited_for():
    with ends() as (monitor, _), pytest.raises(BlockingIOError):
        monitor.receive()


def test_who_dies_with_an_order_unread_is_an_end():
    with ends() as (monitor, relay), open(os.devnull, "rb") as null:
        monitor.give_order(RelayOrder((null.fileno(),) * 3, 0, 1.0, 1.0))
        relay.close()
        assert monitor.receive() is None
        with pytest.raises(OSError):
            monitor.give_order(RelayOrder((null.fileno(),) * 3, 0, 1.0, 1.0))


def test_a_relay_whose_monitor_is_gone_speaks_to_nobody():
    with ends() as (monitor, relay):
        monitor.close()
        assert relay.take_order() is None
        relay.tell(SECURED, SAID)


@given(st.integers(0, 255), st.floats(0, 1e6), st.floats(0, 1e6))
def test_an_order_arrives_with_its_descriptors(index, seconds, patience):
    with ends() as (monitor, relay):
        pipes = [os.pipe() for _ in range(3)]
        monitor.give_order(RelayOrder(tuple(fd for fd, _ in pipes), index, seconds, patience))
        order = relay.take_order()
        for (read_end, write_end), mine in zip(pipes, order.fds, strict=True):
            os.close(read_end)
            os.write(write_end, b"%d" % write_end)
            assert os.read(mine, 9) == b"%d" % write_end
            assert not os.get_inheritable(mine)
            os.close(mine)
            os.close(write_end)
    assert (order.index, order.seconds, order.patience) == (index, seconds, patience)


def test_nobody_waits_for_a_relay_that_does_not_read():
    with ends() as (monitor, _), open(os.devnull, "rb") as null:
        order = RelayOrder((null.fileno(),) * 3, 0, 1.0, 1.0)
        # There is no room, or there are too many descriptors on their way.
        with pytest.raises(OSError):
            [monitor.give_order(order) for _ in range(10_000)]


# Texts


@given(st.text(min_size=1))
@example("a\nb")
@example("\udc80")
@example('" end="quit')
@example("é" * 300)
def test_any_reason_arrives_and_forges_no_line_of_the_log(reason):
    failed = told(FAILED, reason)
    assert isinstance(failed, Failed)
    assert len(failed.reason) <= MAX_TEXT
    assert failed.reason.isascii()
    assert failed.reason.isprintable()
    assert '"' not in failed.reason


REASONS = [
    "/etc/ssl/x-1.key: is not the private key of /etc/ssl/x_1.pem",
    "$CREDENTIALS_DIRECTORY/key: systemd has set no $CREDENTIALS_DIRECTORY; see LoadCredential=",
    "tls-ciphers: OpenSSL knows no cipher in 'ECDHE+AESGCM:!aNULL@STRENGTH'",
]


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_wrong_with_the_configuration_arrives_as_it_was_told(reason):
    assert told(FAILED, reason).reason == reason


# Limits

VIOLATIONS = {
    "of no kind": b"X",
    "of no kind, with a text": b"X" + SAID.encode(),
    "an order": b"O" + bytes(9),
    "ready with a text": b"R.",
    "a failure for no reason": b"F",
    "a failure with a line end": b"Fa\nb",
    "a failure with a quotation mark": b'Fa"b',
    "a failure with a NUL": b"F\0",
    "a failure with an octet of no text": b"F\xff",
    "a long failure": b"F" + b"x" * (MAX_TEXT + 2),
    "a very long failure": b"F" + b"x" * 100_000,
    "secured by nothing": b"S",
    "secured without a cipher": b"STLSv1.3",
    "secured with an empty cipher": b"STLSv1.3 ",
    "secured without a version": b"S TLS_AES_128_GCM_SHA256",
    "secured by more": b"S" + SAID.encode() + b" user=root",
    "secured, with a line end": b"S" + SAID.encode() + b"\n",
}


@pytest.mark.parametrize("packet", VIOLATIONS.values(), ids=VIOLATIONS)
def test_whatever_ours_never_tells_is_a_violation(packet):
    with pytest.raises(Violation):
        received(packet)


def test_what_is_just_right_is_none():
    assert received(b"F" + b"x" * MAX_TEXT).reason == "x" * MAX_TEXT
    assert isinstance(received(b"R"), Ready)
    assert received(b"Sa b").cipher == "b"


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("packet", [b"R", b"S" + SAID.encode(), b"Fx"])
def test_a_descriptor_is_a_violation_and_is_not_kept(packet, count):
    with forged() as (monitor, other), open(os.devnull, "rb") as null:
        before = len(os.listdir("/proc/self/fd"))
        rights = struct.pack(f"{count}i", *[null.fileno()] * count)
        other.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(Violation):
            monitor.receive()
        assert len(os.listdir("/proc/self/fd")) == before


packets = st.binary(min_size=1, max_size=400) | st.builds(
    lambda kind, text: kind + text.encode(),
    st.sampled_from([READY, SECURED, FAILED]),
    st.text('aZ0 _-.\n"é', max_size=330),
)


@given(packets)
@example(b"\0")
@example(b"S a b")
def test_any_packet_is_a_message_or_a_violation(packet):
    try:
        message = received(packet)
    except Violation:
        return
    if isinstance(message, Failed):
        texts = [message.reason]
    elif isinstance(message, Secured):
        texts = [message.version, message.cipher]
        assert not any(" " in text for text in texts)
    else:
        assert isinstance(message, Ready)
        texts = []
    assert all(text and text.isascii() and text.isprintable() for text in texts)
    assert sum(map(len, texts)) <= MAX_TEXT + 1
    assert not any('"' in text for text in texts)


def test_an_empty_packet_is_no_message():
    """It cannot be told from the end."""
    assert received(b"") is None
