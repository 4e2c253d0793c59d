"""The relay: what a client says behind TLS is what the session hears, and the other way round."""

import functools
import os
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import relaykit
import tlskit
from mailsite import PATIENCE, need, poll
from relaykit import relayed
from tpop3d.tls import certificates, relay
from tpop3d.tls.relay_channel import Failed, Ready, RelayOrder, Secured

MUCH = 3_000_000  # octets: more than sockets, OpenSSL and a relay hold together
BOUND = 2_000_000  # what they may hold


@functools.cache
def server():
    with tempfile.TemporaryDirectory() as directory:
        paths = Path(directory) / "pem", Path(directory) / "key"
        tlskit.install(tlskit.authority().issue_cert(tlskit.NAME), *paths)
        pairs = (tuple(map(str, paths)),)
        return certificates.serving(
            pairs, "1.2", "ECDHE+AESGCM:ECDHE+CHACHA20", tickets=False, look=False
        ).context


def client(**more):
    return tlskit.context(**more)


def secured(transport=relaykit.socketpair, **more):
    return relayed(server(), transport, more.pop("client", None) or client(), **more)


def octets(count, seed=1):
    return random.Random(seed).randbytes(count)


@pytest.fixture(params=relaykit.TRANSPORTS)
def transport(request):
    return relaykit.TRANSPORTS[request.param]


# What is passed on


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_megabytes_pass_both_ways_at_once(transport, version):
    up, down = octets(MUCH, 1), octets(MUCH, 2)
    with secured(transport, client=client(maximum_version=version)) as one:
        one.client.say(up)
        one.session.say(down)
        one.run(lambda: len(one.session.got) == len(one.client.got) == MUCH, "all octets")
        assert (bytes(one.session.got), bytes(one.client.got)) == (up, down)


sizes = st.lists(st.integers(1, 70_000), max_size=4)
pieces = st.integers(1, 40) | st.integers(1, 1 << 16)


@given(sizes, sizes, pieces, pieces, st.sampled_from(list(relaykit.TRANSPORTS.values())))
@settings(max_examples=10, deadline=None)
def test_octets_pass_unchanged_in_pieces_of_any_size(up, down, ours, theirs, transport):
    with secured(transport, piece=max(ours, sum(up) // 2000)) as one:
        one.session.piece = max(theirs, sum(down) // 2000)
        one.secure()
        expected = b"", b""
        for index in range(max(len(up), len(down))):
            said = [octets(count, index) for count in up[index : index + 1]]
            answered = [octets(count, index + 9) for count in down[index : index + 1]]
            expected = expected[0] + b"".join(said), expected[1] + b"".join(answered)
            one.client.say(b"".join(said))
            one.session.say(b"".join(answered))
            one.run(lambda: (one.session.got, one.client.got) == expected, "all octets")  # noqa: B023


def test_a_connection_may_come_octet_by_octet():
    """Each record, those of the handshake, too, in as many parts as it can have."""
    with secured(piece=1) as one:
        one.session.piece = 1
        one.client.say(octets(300))
        one.session.say(octets(300, 2))
        one.run(lambda: len(one.session.got) == len(one.client.got) == 300, "all octets")
        assert bytes(one.session.got + one.client.got) == octets(300) + octets(300, 2)


def test_what_comes_with_the_end_of_the_handshake_is_not_lost():
    with secured() as one:
        one.client.say(b"CAPA\r\n")  # sent together with the client's Finished
        one.run(lambda: one.session.got == b"CAPA\r\n", "a command")


# Nobody is drowned


def stuck(one):
    """Go on until nobody can do anything; the relay then sleeps, and has not much."""
    one.settle()
    before = one.activity()
    one.settle()
    assert one.activity() == before


def test_from_a_client_nothing_is_read_while_the_session_reads_nothing(transport):
    up = octets(2 * MUCH)
    with secured(transport) as one:
        one.secure()
        before = one.peak()
        one.session.reads = False
        one.client.say(up)
        if transport is relaykit.tcp:  # or the kernel takes megabytes
            one.client.files[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        stuck(one)
        assert transport is relaykit.tcp or one.client.sent < BOUND
        assert one.client.to_send
        assert one.peak() - before < BOUND
        # The other way is open.
        one.session.say(b"+OK\r\n")
        one.run(lambda: one.client.got == b"+OK\r\n", "the session's words")
        one.session.reads = True
        one.run(lambda: len(one.session.got) == len(up), "all octets")
        assert one.session.got == up


def test_from_the_session_nothing_is_read_while_the_client_reads_nothing(transport):
    down = octets(4 * MUCH)
    with secured(transport) as one:
        one.secure()
        before = one.peak()
        one.client.reads = False
        one.session.say(down)
        stuck(one)
        assert transport is relaykit.tcp or one.session.sent < BOUND
        assert one.session.to_send
        assert one.peak() - before < BOUND
        one.client.say(b"NOOP\r\n")
        one.run(lambda: one.session.got == b"NOOP\r\n", "the client's words")
        one.client.reads = True
        one.run(lambda: len(one.client.got) == len(down), "all octets")
        assert one.client.got == down


def test_both_may_be_stuck_and_go_on(transport):
    up, down = octets(4 * MUCH), octets(4 * MUCH, 2)
    with secured(transport) as one:
        one.secure()
        one.client.reads = one.session.reads = False
        one.client.say(up)
        one.session.say(down)
        stuck(one)
        assert one.client.to_send
        assert one.session.to_send
        one.client.reads = one.session.reads = True
        one.run(lambda: not (one.client.to_send or one.session.to_send), "all to be sent")
        one.run(lambda: len(one.session.got) + len(one.client.got) == 8 * MUCH, "all octets")
        assert (one.session.got, one.client.got) == (up, down)


@pytest.mark.parametrize("transport", [relaykit.tcp, relaykit.pipes])
def test_with_nothing_to_do_it_does_nothing(transport):
    with secured(transport) as one:
        one.secure()
        stuck(one)
        # Nor when the client has said that nothing more comes, and the session says nothing.
        one.client.close_notify()
        one.run(lambda: one.session.is_over, "the end of the client")
        stuck(one)


# How it ends


def test_the_session_ends(transport):
    with secured(transport) as one:
        one.session.say(b"+OK goodbye\r\n")
        one.run(lambda: one.client.got == b"+OK goodbye\r\n", "the last words")
        one.session.close()
        one.hear_end()
        assert one.client.bade_farewell


@pytest.mark.parametrize("politely", [True, False])
def test_the_client_ends_and_hears_the_answer_all_the_same(politely):
    with secured(relaykit.tcp) as one:
        one.secure()
        one.client.say(b"QUIT\r\n")
        one.run(lambda: one.session.got == b"QUIT\r\n", "the last words")
        if politely:
            one.client.close_notify()
        else:
            one.client.files[0].shutdown(socket.SHUT_WR)
        one.run(lambda: one.session.is_over, "the client's end")
        one.session.say(octets(MUCH))
        one.run(lambda: len(one.client.got) == MUCH, "the answer")
        one.session.close()
        one.hear_end()
        assert one.client.bade_farewell
        assert one.client.got == octets(MUCH)


def test_the_session_may_end_for_writing_only():
    """It does not; and who says no more has nothing more to hear."""
    with secured() as one:
        one.secure()
        one.session.files[0].shutdown(socket.SHUT_WR)
        one.run(lambda: one.client.is_over, "the end")
        assert one.client.bade_farewell


def test_what_the_session_has_not_read_does_not_cost_the_client_its_last_words(transport):
    with secured(transport) as one:
        one.secure()
        one.session.reads = False
        one.client.say(octets(MUCH))
        one.settle()
        one.session.say(octets(100_000, 2))
        one.run(lambda: not one.session.to_send, "the last words to be sent")
        one.session.close()
        one.run(lambda: one.client.is_over, "the end")
        assert one.client.got == octets(100_000, 2)
        assert one.client.bade_farewell


def last_words(one, count):
    """The session says much and ends, and its client reads nothing; that much has been said."""
    one.secure()
    one.client.reads = False
    one.session.say(octets(count))
    one.settle()
    said = count - len(one.session.to_send)
    one.session.close()
    return said


def test_a_client_that_reads_late_gets_all(transport):
    with secured(transport) as one:
        said = last_words(one, 4 * MUCH)
        stuck(one)
        assert not one.has_ended()
        one.client.reads = True
        one.run(lambda: one.client.is_over, "the end")
        assert one.client.got == octets(4 * MUCH)[:said]
        assert one.client.bade_farewell


@pytest.mark.parametrize("transport", [relaykit.tcp, relaykit.pipes])
def test_a_client_that_does_not_read_at_all_is_given_up(transport):
    with secured(transport, patience=0.3) as one:
        said = last_words(one, 4 * MUCH)
        assert one.await_end() == 0
        one.client.reads = True
        one.run(lambda: one.client.is_over, "the end")
        assert len(one.client.got) < said
        assert not one.client.bade_farewell  # so it knows that something is missing


def test_of_a_client_that_is_gone_the_session_hears_at_once():
    with secured(relaykit.tcp) as one:
        one.secure()
        relaykit.reset(one.client)
        one.run(lambda: one.session.is_over, "the client's end")
        one.session.close()
        assert one.await_end() == 0


def test_who_speaks_to_a_client_that_is_gone_finds_it_closed(transport):
    with secured(transport) as one:
        one.secure()
        one.client.reads = False
        one.session.say(octets(4 * MUCH))
        one.settle()
        one.client.close()
        one.run(lambda: one.session.is_gone, "the session to be told")
        assert one.await_end() == 0


def test_a_signal_is_the_clients_end():
    """The session hears of it, and has its last words."""
    with secured() as one:
        one.secure()
        one.client.say(b"RETR 1\r\n")
        one.run(lambda: one.session.got == b"RETR 1\r\n", "a command")
        os.kill(one.pid, signal.SIGTERM)
        one.run(lambda: one.session.is_over, "the end to be told")
        os.kill(one.pid, signal.SIGTERM)
        stuck(one)
        one.session.say(octets(MUCH))
        one.run(lambda: len(one.client.got) == MUCH, "the session's last words")
        one.session.close()
        one.hear_end()
        assert one.client.bade_farewell


def test_a_monitor_that_is_gone_ends_no_connection():
    with secured() as one:
        one.secure()
        assert isinstance(one.told(), Ready)
        assert isinstance(one.told(), Secured)
        one.channel.close()
        one.client.say(b"up")
        one.session.say(b"down")
        one.run(lambda: (one.session.got, one.client.got) == (b"up", b"down"), "both")


@pytest.mark.parametrize("how", ["no order", "a signal"])
def test_one_that_is_not_wanted_ends(how):
    pid, channel = relaykit.start(server())
    waiting = select.poll()
    waiting.register(channel.fileno(), select.POLLIN)
    poll(lambda: waiting.poll(0), "the relay")
    assert isinstance(channel.receive(), Ready)
    if how == "a signal":
        os.kill(pid, signal.SIGTERM)
    else:
        channel.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    channel.close()


def test_one_that_is_told_to_end_takes_no_order_that_has_come_meanwhile():
    pid, channel = relaykit.start(server())
    waiting = select.poll()
    waiting.register(channel.fileno(), select.POLLIN)
    poll(lambda: waiting.poll(0), "the relay")
    assert isinstance(channel.receive(), Ready)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    ends = [end for pair in (socket.socketpair(), socket.socketpair()) for end in pair]
    client, its, session, inner = ends
    channel.give_order(RelayOrder((its.fileno(), its.fileno(), inner.fileno()), 0, 1.0, 1.0))
    for end in (its, inner):
        end.close()
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert channel.receive() is None  # not even that there was no handshake
    for end in (client, session):
        assert end.recv(1) == b""
        end.close()
    channel.close()


def test_a_bug_is_told_and_passes_nothing_on(monkeypatch):
    monkeypatch.setattr(relay.RelayPump, "_pass_on", lambda self: 1 / 0)
    with secured() as one:
        one.secure()
        one.client.say(b"NOOP\r\n")
        assert told_at_the_end(one).startswith("internal error: ZeroDivisionError")
        assert one.await_end() == 1
        one.run(lambda: one.session.is_over and one.client.is_over, "the end")
        assert (one.session.got, one.client.got) == (b"", b"")


# What is broken


def told_at_the_end(one):
    messages = [one.told() for _ in range(3)]
    assert [type(message) for message in messages] == [Ready, Secured, Failed]
    return messages[2].reason


def test_a_record_that_was_changed_on_the_way_is_the_end():
    with secured() as one:
        one.secure()
        one.client.say(b"NOOP\r\n")
        one.run(lambda: one.session.got == b"NOOP\r\n", "a command")
        one.client.tls.write(b"DELE 1\r\n")
        record = bytearray(one.client.outgoing.read())
        record[-1] ^= 1
        one.client.unsent = bytes(record)
        one.run(lambda: one.session.is_over, "the end")
        one.client.close()
        one.session.close()
        assert told_at_the_end(one) == "decryption failed or bad record mac"
        assert one.session.got == b"NOOP\r\n"


def test_what_is_no_tls_any_more_is_the_end():
    with secured() as one:
        one.secure()
        one.run(lambda: not one.client.has_more(), "the handshake to be sent")
        one.client.unsent = b"DELE 1\r\nQUIT\r\n"
        one.run(lambda: one.session.is_over and one.client.error, "the end, and an alert")
        assert "ALERT" in one.client.error.reason
        one.client.close()
        one.session.close()
        assert told_at_the_end(one) == "wrong version number"
        assert one.session.got == b""


@pytest.mark.parametrize("transport", [relaykit.socketpair, relaykit.pipes, relaykit.tcp])
def test_a_client_may_be_gone_when_it_is_to_get_an_alert(transport):
    with secured(transport) as one:
        one.secure()
        one.run(lambda: not one.client.has_more(), "the handshake to be sent")
        one.settle()
        with one.stopped():
            one.client.unsent = b"DELE 1\r\nQUIT\r\n"
            one.run(lambda: not one.client.has_more(), "it to be sent")
            relaykit.leave(one.client)
        one.run(lambda: one.session.is_over, "the end")
        one.session.close()
        assert told_at_the_end(one) == "wrong version number"
        assert one.session.got == b""
        assert one.await_end() == 0


# openssl s_client, which can do what Python's ssl cannot


class Openssl:
    """`openssl s_client` on a relay's TCP connection."""

    def __init__(self, *options):
        self.listening = socket.create_server(("127.0.0.1", 0))
        port = self.listening.getsockname()[1]
        self.process = subprocess.Popen(
            [need("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.connection, _ = self.listening.accept()
        self.pid, self.channel = relaykit.start(server())
        ours, theirs = socket.socketpair()
        fd = self.connection.fileno()
        self.channel.give_order(RelayOrder((fd, fd, theirs.fileno()), 0, 10.0, 10.0))
        theirs.close()
        self.connection.close()
        ours.settimeout(PATIENCE)
        self.session = ours
        self.reader = ours.makefile("rb")
        self.output = b""

    def __enter__(self):
        return self

    def say(self, line, until=b""):
        """Send a line, or have a command done, until this has been written."""
        self.process.stdin.write(line)
        self.process.stdin.flush()
        while until and until not in self.output:
            part = self.process.stdout.readline()
            assert part, self.output
            self.output += part

    def __exit__(self, *_):
        self.reader.close()
        self.session.close()
        self.output += self.process.stdout.read()
        self.process.stdout.close()
        self.process.stdin.close()
        self.process.wait()
        self.channel.close()
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.listening.close()


def test_keys_may_be_changed():
    with Openssl("-tls1_3") as one:
        for number in range(20):
            one.say(b"before %d\n" % number)
            assert one.reader.readline() == b"before %d\n" % number
            one.session.sendall(b"answer %d\n" % number)
            one.say(b"K\n" if number % 2 else b"k\n", until=b"KEYUPDATE")
            one.output = one.output.replace(b"KEYUPDATE", b"")
            one.say(b"after %d\n" % number)
            assert one.reader.readline() == b"after %d\n" % number
            one.session.sendall(b"another %d\n" % number)
    answers = [b"answer %d" % number for number in range(20)]
    assert re.findall(rb"answer \d+", one.output) == answers
    assert one.output.count(b"another ") == 20
    assert one.status == 0


def test_nobody_renegotiates():
    with Openssl("-tls1_2") as one:
        one.say(b"before\n")
        assert one.reader.readline() == b"before\n"
        one.say(b"R\n", until=b"RENEGOTIATING")
        assert one.reader.read() == b""
    assert b"no renegotiation" in one.output
    assert one.status == 0
