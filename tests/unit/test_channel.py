"""What gatekeeper and monitor say to each other: it arrives as it was sent, or is a violation."""

import os
import signal
import socket
import struct
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpop3d.pop3.authorization import Attempt, Policy
from tpop3d.pop3.commands import MAX_RESPONSE
from tpop3d.privsep import channel
from tpop3d.privsep.channel import (
    MAX_LINE,
    MAX_MESSAGE,
    MAX_NAME,
    MAX_PENDING,
    VERDICTS,
    Channel,
    Ending,
    Line,
    LoginRequest,
    Order,
    ReceivedLogin,
    TlsWanted,
    Violation,
)
from tpop3d.session.wire import EOF, ERROR, INJECTION, QUIT, RECEIVE, SIGNAL, TIMEOUT

DIGEST = b"c4c9334bac560ecc979e58001b3e22fb"
TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"
ENDINGS = [QUIT, EOF, TIMEOUT, SIGNAL, ERROR, INJECTION, channel.STLS, ""]
LARGE = 2**64 - 1  # what a counter of octets goes up to


@contextmanager
def ends():
    monitor, gatekeeper = channel.pair()
    try:
        yield monitor, gatekeeper
    finally:
        monitor.close()
        gatekeeper.close()


@contextmanager
def forged():
    """The monitor's end, and a socket with which anything can be sent to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Channel(ours), theirs


def received(packet):
    """What the monitor makes of a packet."""
    with forged() as (monitor, other):
        other.send(packet)
        return monitor.receive()


def requested(request, verdict=channel.REFUSED):
    """A request as the monitor gets it, and the verdict as the gatekeeper gets it."""
    with ends() as (monitor, gatekeeper):
        monitor.give_verdict(verdict)
        answer = gatekeeper.ask(request)
        return monitor.receive(), answer


def parts(request):
    attempt = request.attempt
    return (
        attempt.method, attempt.name, attempt.password, attempt.digest, attempt.timestamp,
        request.pending, request.octets_in, request.octets_out,
    )  # fmt: skip


names = st.binary(min_size=1, max_size=60).filter(lambda name: not set(name) & set(b"\0\r\n"))
counts = st.integers(0, LARGE)


@st.composite
def requests(draw):
    name, method = draw(names), draw(st.sampled_from(["USER", "PLAIN", "APOP"]))
    if method == "APOP":
        attempt = Attempt(method, name, digest=draw(st.binary(min_size=32, max_size=32)))
    else:
        attempt = Attempt(method, name, password=draw(st.binary(max_size=60)))
    return LoginRequest(attempt, draw(st.binary(max_size=200)), draw(counts), draw(counts))


@given(requests(), st.sampled_from(VERDICTS))
def test_a_request_and_its_verdict_arrive_as_they_were_sent(request, verdict):
    got, answer = requested(request, verdict)
    assert parts(got) == parts(request)
    assert answer == verdict


@pytest.mark.parametrize("how", ENDINGS)
def test_an_ending_arrives_as_it_was_sent(how):
    with ends() as (monitor, gatekeeper):
        gatekeeper.report(Ending(how, 17, LARGE))
        ending = monitor.receive()
    assert (ending.how, ending.octets_in, ending.octets_out) == (how, 17, LARGE)


@given(counts, counts, st.sampled_from([channel.BEGIN_TLS, channel.NO_TLS]))
def test_a_wish_for_tls_and_its_answer_arrive_as_they_were_sent(octets_in, octets_out, verdict):
    with ends() as (monitor, gatekeeper):
        monitor.give_verdict(verdict)
        assert gatekeeper.ask_for_tls(octets_in, octets_out) == verdict
        wanted = monitor.receive()
    assert isinstance(wanted, TlsWanted)
    assert (wanted.octets_in, wanted.octets_out) == (octets_in, octets_out)


def test_no_two_verdicts_look_the_same():
    assert len(set(VERDICTS)) == len(VERDICTS)
    assert {len(verdict) for verdict in VERDICTS} == {1}


@given(st.sampled_from([3, 7]), st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_line_arrives_as_it_was_sent(level, text):
    with ends() as (monitor, gatekeeper):
        gatekeeper.log(level, text)
        line = monitor.receive()
    assert (line.level, line.text) == (level, text[:MAX_LINE])


def test_a_long_line_is_cut():
    with ends() as (monitor, gatekeeper):
        gatekeeper.log(3, "x" * 5000)
        assert monitor.receive().text == "x" * MAX_LINE


flags = st.booleans()


@given(
    st.sampled_from([b"", TIMESTAMP, b"<" + b"x" * 253 + b">"]), flags, flags, flags, flags,
    st.floats(0, 1e6),
)  # fmt: skip
def test_an_order_arrives_with_its_descriptors(
    timestamp, plaintext, stls, secured, greets, seconds
):
    policy = Policy(timestamp, plaintext, stls, secured)
    with ends() as (monitor, gatekeeper):
        read_end, write_end = os.pipe()
        monitor.give_order(Order((read_end, write_end), policy, seconds, greets))
        os.close(read_end)
        os.close(write_end)
        order = gatekeeper.take_order()
        fd_in, fd_out = order.fds
        os.write(fd_out, b"through")
        assert os.read(fd_in, 9) == b"through"
        os.close(fd_in)
        os.close(fd_out)
    got = order.policy
    assert (got.apop_timestamp, got.plaintext, got.stls, got.secured) == (
        timestamp, plaintext, stls, secured,
    )  # fmt: skip
    assert (order.greets, order.login_seconds) == (greets, seconds)


def test_an_order_greets_unless_it_says_otherwise():
    order = Order((0, 1), Policy(b"", True), 1.0)
    assert (order.greets, order.policy.stls, order.policy.secured) == (True, False, False)


def test_messages_stay_apart_and_in_order():
    with ends() as (monitor, gatekeeper):
        gatekeeper.log(3, "one")
        gatekeeper.log(3, "")
        gatekeeper.report(Ending(QUIT, 1, 2))
        assert [monitor.receive().text, monitor.receive().text] == ["one", ""]
        assert monitor.receive().how == QUIT


def test_the_end_of_the_other_side_is_an_end():
    with ends() as (monitor, gatekeeper):
        gatekeeper.close()
        assert monitor.receive() is None
        monitor.give_verdict(channel.ADMITTED)  # nobody hears it, and that is all
        with pytest.raises(OSError):
            monitor.give_order(Order((0, 1), Policy(b"", True), 1.0))
    with ends() as (monitor, gatekeeper):
        monitor.close()
        assert gatekeeper.take_order() is None


def test_who_dies_with_a_message_unread_is_an_end():
    with ends() as (monitor, gatekeeper):
        monitor.give_verdict(channel.REFUSED)
        gatekeeper.close()
        assert monitor.receive() is None


def test_a_gatekeeper_whose_monitor_is_gone_gets_no_verdict():
    with ends() as (monitor, gatekeeper):
        monitor.close()
        with pytest.raises(ConnectionError):
            gatekeeper.ask(LoginRequest(Attempt("USER", b"ann", password=b"x"), b"", 0, 0))
    # Gone after it was asked.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.shutdown(socket.SHUT_WR)
        request = LoginRequest(Attempt("USER", b"ann", password=b"x"), b"", 0, 0)
        assert Channel(theirs).ask(request) == b""


# Limits


def attempt_packet(method=b"U", name=b"ann", secret=b"secret", pending=b"", lengths=None):
    lengths = lengths or (len(name), len(secret), len(pending))
    return struct.pack("!ccHHIQQ", b"A", method, *lengths, 1, 2) + name + secret + pending


def test_what_is_allowed_is_what_a_client_can_make_ours_send():
    """The longest line, and all that one read from the network brings behind it."""
    assert MAX_NAME == MAX_RESPONSE
    assert MAX_PENDING >= RECEIVE
    assert len(attempt_packet(b"P", b"n" * MAX_NAME, b"s" * MAX_NAME, b"p" * MAX_PENDING)) <= (
        MAX_MESSAGE
    )


def test_the_largest_request_arrives_whole():
    attempt = Attempt("PLAIN", b"n" * MAX_NAME, password=b"s" * MAX_NAME)
    request = LoginRequest(attempt, (bytes(range(256)) * 1000)[:MAX_PENDING], 1, 2)
    assert len(request.pending) == MAX_PENDING
    assert parts(requested(request)[0]) == parts(request)


LARGEST = {
    "a name": {"name": b"n" * MAX_NAME},
    "a password": {"secret": b"s" * MAX_NAME},
    "what is pending": {"pending": b"p" * MAX_PENDING},
}


@pytest.mark.parametrize("largest", LARGEST.values(), ids=LARGEST)
def test_limits_are_exact(largest):
    assert isinstance(received(attempt_packet(**largest)), ReceivedLogin)
    one_more = {part: octets + b"x" for part, octets in largest.items()}
    with pytest.raises(Violation):
        received(attempt_packet(**one_more))


def test_a_packet_that_does_not_fit_is_a_violation():
    with pytest.raises(Violation):
        received(b"L\3" + b"x" * (MAX_MESSAGE - 1))
    with pytest.raises(Violation):
        received(attempt_packet(pending=b"p" * 10) + b"x" * MAX_MESSAGE)


def line_packet(level=3, text=b"x"):
    return b"L" + bytes([level]) + text


def ending_packet(how=b"q", more=b""):
    return struct.pack("!ccQQ", b"E", how, 1, 2) + more


def tls_packet():
    return struct.pack("!cQQ", b"T", 1, 2)


VIOLATIONS = {
    "of no kind": b"X",
    "a verdict": b"+",
    "an order": b"O" + bytes(20),
    "a short attempt": b"A",
    "half an attempt's header": attempt_packet()[:20],
    "an attempt without its end": attempt_packet()[:-1],
    "an attempt with something behind it": attempt_packet() + b"x",
    "lengths that are too short": attempt_packet(lengths=(3, 5, 0)),
    "lengths that are too long": attempt_packet(lengths=(3, 6, 2**32 - 1)),
    "no name": attempt_packet(name=b""),
    "no method": attempt_packet(method=b"X"),
    "a method in lower case": attempt_packet(method=b"u"),
    "a NUL in the name": attempt_packet(name=b"an\0n"),
    "a line end in the name": attempt_packet(name=b"ann\n"),
    "a CR in the name": attempt_packet(name=b"\rann"),
    "a short digest": attempt_packet(b"A", secret=b"x" * 31),
    "a long digest": attempt_packet(b"A", secret=b"x" * 33),
    "no digest": attempt_packet(b"A", secret=b""),
    "a short ending": ending_packet()[:-1],
    "a long ending": ending_packet(more=b"x"),
    "an ending of no kind": ending_packet(b"y"),
    "a wish for TLS without its octets": b"T",
    "half a wish for TLS": tls_packet()[:-1],
    "a wish for TLS with something behind it": tls_packet() + b"x",
    "an ending of an octet that is none": ending_packet(b"\xff"),
    "half a line's header": b"L",
    "a line of no level": line_packet(8),
    "a line of the last level": line_packet(255),
    "a line for everybody's terminal": line_packet(0),
    "a line between": line_packet(5),
    "a long line": line_packet(3, b"x" * (MAX_LINE + 1)),
}


@pytest.mark.parametrize("packet", VIOLATIONS.values(), ids=VIOLATIONS)
def test_whatever_ours_never_sends_is_a_violation(packet):
    with pytest.raises(Violation):
        received(packet)


@pytest.mark.parametrize("octet", [b"\0", b"\r", b"\n"])
@pytest.mark.parametrize("name", [b"%b", b"%bann", b"a%bnn", b"ann%b", b"\xff%b\xff"])
def test_nowhere_in_a_name_is_what_ends_one(octet, name):
    with pytest.raises(Violation, match="an impossible name"):
        received(attempt_packet(name=name % octet))


@pytest.mark.parametrize("octet", [b"\0", b"\r", b"\n"])
def test_what_stands_behind_a_name_may_be_anything(octet):
    asked = received(attempt_packet(secret=octet + b"s" + octet, pending=octet + b"p"))
    assert (asked.attempt.password, asked.pending) == (octet + b"s" + octet, octet + b"p")
    assert received(attempt_packet(secret=b"", pending=octet)).pending == octet


def test_what_is_just_right_is_none():
    assert received(line_packet(7, b"x" * MAX_LINE)).level == 7
    assert received(line_packet(3, b"")).text == ""
    assert received(attempt_packet(b"A", secret=DIGEST)).attempt.digest == DIGEST
    assert received(attempt_packet(secret=b"")).attempt.password == b""
    assert received(ending_packet(b"a")).how == ""
    assert received(ending_packet(b"i")).how == INJECTION
    assert received(ending_packet(b"z")).how == channel.STLS
    assert received(tls_packet()).octets_out == 2


def test_a_request_has_no_timestamp_of_the_gatekeepers():
    """A digest that was seen elsewhere is worth nothing: the monitor fills in its own."""
    attempt = Attempt("APOP", b"ann", timestamp=TIMESTAMP, digest=DIGEST)
    assert requested(LoginRequest(attempt, b"", 0, 0))[0].attempt.timestamp == b""


@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_descriptor_is_a_violation_and_is_not_kept(count):
    with forged() as (monitor, other), open(os.devnull, "rb") as null:
        before = len(os.listdir("/proc/self/fd"))
        rights = struct.pack(f"{count}i", *[null.fileno()] * count)
        other.sendmsg([ending_packet()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(Violation):
            monitor.receive()
        assert len(os.listdir("/proc/self/fd")) == before


def is_of_the_form(message):
    """Every promise of the form, as whoever takes the message may rely on it."""
    if isinstance(message, Line):
        return message.level in (3, 7) and len(message.text) <= MAX_LINE
    if isinstance(message, Ending):
        return message.how in ENDINGS
    if isinstance(message, TlsWanted):
        return message.octets_in <= LARGE and message.octets_out <= LARGE
    attempt = message.attempt
    name, password, digest = attempt.name, attempt.password, attempt.digest
    named = 0 < len(name) <= MAX_NAME and not set(name) & set(b"\0\r\n")
    if attempt.method == "APOP":
        secret = password is None and len(digest) == 32
    else:
        secret = attempt.method in ("USER", "PLAIN") and len(password) <= MAX_NAME
    return named and secret and len(message.pending) <= MAX_PENDING


headers = st.builds(
    lambda method, lengths, rest: struct.pack("!ccHHIQQ", b"A", method, *lengths, 0, 0) + rest,
    st.sampled_from([b"U", b"P", b"A", b"x"]),
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)),
    st.binary(max_size=120),
)
packets = (
    st.binary(min_size=1, max_size=200)
    | st.builds(bytes.__add__,
                st.sampled_from([b"A", b"AU", b"AA", b"E", b"Eq", b"L", b"L\3", b"T"]),
                st.binary(max_size=200))
    | headers
)  # fmt: skip


@given(packets)
@example(b"\0")
@example(b"L\3")
@example(b"A" * 26)
@example(b"T" * 17)
def test_any_packet_is_a_message_or_a_violation(packet):
    try:
        message = received(packet)
    except Violation:
        return
    assert is_of_the_form(message)


@given(requests(), st.data())
def test_a_message_with_an_octet_changed_is_a_message_or_a_violation(request, data):
    attempt = request.attempt
    secret = attempt.digest if attempt.password is None else attempt.password
    packet = bytearray(
        attempt_packet(attempt.method[:1].encode(), attempt.name, secret, request.pending)
    )
    packet[data.draw(st.integers(0, len(packet) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        message = received(packet)
    except Violation:
        return
    assert is_of_the_form(message)


def test_an_empty_packet_is_no_message():
    """It cannot be told from the end; what follows it is never looked at."""
    assert received(b"") is None


def test_a_request_can_be_wiped():
    """What the monitor of many forgets, when somebody else has taken it."""
    asked = received(attempt_packet(secret=b"sesame", pending=b"STAT"))
    assert isinstance(asked, ReceivedLogin)
    buffer = asked._buffer
    assert b"sesame" in buffer
    asked.wipe()
    assert buffer == bytes(len(buffer))


def test_what_is_no_request_is_wiped_too(monkeypatch):
    buffers = []

    def keep_and_fail(buffer, length):
        buffers.append(buffer)
        fail()

    monkeypatch.setattr(channel, "ReceivedLogin", keep_and_fail)

    def fail():
        raise Violation("for the test")

    with pytest.raises(Violation):
        received(attempt_packet(secret=b"sesame"))
    assert buffers[0] == bytes(len(buffers[0]))


def test_nobody_waits_for_a_gatekeeper_that_does_not_read():
    """Verdicts are lost, and an order is refused: the monitor has others to serve."""
    order = Order((0, 0), Policy(b"", True), 1.0)
    with ends() as (monitor, _):
        before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
        signal.alarm(5)
        try:
            for _ in range(10_000):
                monitor.give_verdict(channel.REFUSED)
            with pytest.raises(BlockingIOError):
                monitor.give_order(order)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def test_verdicts_that_nobody_waited_for_are_no_orders():
    """As when a child has died after it had let somebody in."""
    with ends() as (monitor, gatekeeper):
        monitor.give_verdict(channel.UNDECIDED)
        monitor.give_order(Order((0, 0), Policy(b"", True), 7.0))
        order = gatekeeper.take_order()
        assert order.login_seconds == 7.0
        for fd in order.fds:
            os.close(fd)
