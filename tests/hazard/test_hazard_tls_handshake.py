"""Clients that make no handshake, half of one or a bad end of TLS, and who comes after them."""

import os
import socket
import ssl
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

import doors
import tlskit
from mailsite import IS_ROOT, poll
from spools import mbox, messages_of
from test_hazard_stls_injection import greeted, is_taken, monitor_of, stopped
from test_listener import children_of
from tlskit import Handshake, in_both_doors

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")
WITHOUT_FIRST = b"".join(messages_of(SPOOL)[1:])
WANTS_TLS = b"-ERR TLS was expected here\r\n"
in_both_modes = pytest.mark.parametrize("mode", ["immediate", "stls"])


@pytest.fixture
def site(site):
    tlskit.secure(site)
    site.configure({"auth-failure-delay-seconds": 0})
    site.add("anna", SPOOL)
    return site


def at_handshake(door, mode):
    """A client whose turn it is to say its hello."""
    wire = door.connect()
    if mode == "stls":
        assert wire.line().startswith(b"+OK")
        assert wire.ask("STLS").startswith(b"+OK")
    return wire


def logged_in(door, **more):
    """A session in TLS from the first octet on."""
    wire = tlskit.wrap(door.connect(), **more)
    wire.login("anna")
    return wire


def is_served(door, mode="immediate"):
    """Does a real client get its mail?"""
    wire = tlskit.wrap(at_handshake(door, mode))
    assert mode == "stls" or wire.line().startswith(b"+OK")
    assert wire.ask("USER anna").startswith(b"+OK")
    assert wire.ask("PASS secret").startswith(b"+OK")
    assert wire.ask("QUIT").startswith(b"+OK")
    wire.close()
    return True


def must_have_failed(door, reason, times=1):
    """There is one line about each, and no other."""
    poll(lambda: len(tlskit.lines_of(door, "tls failed")) >= times, "lines about TLS that failed")
    lines = tlskit.lines_of(door, "tls failed")
    assert len(lines) == times
    for line in lines:
        assert line.endswith(f"tls failed rip=127.0.0.1 reason={reason}")
    assert not tlskit.lines_of(door, "session rip=")
    assert "error" not in door.logs.text()


# No handshake, or half of one


@in_both_doors
@in_both_modes
def test_who_falls_silent_in_the_handshake_is_ended(site, opens, mode):
    site.configure({"tls-mode": mode, "login-seconds": 1})
    hello = Handshake().hello
    with opens(site) as door:
        wires = [at_handshake(door, mode) for _ in range(4)]
        for wire, octets in zip(wires, (0, 1, 5, 50), strict=True):
            wire.send(hello[:octets])
        for wire in wires:
            assert wire.reader.read() == b""
        must_have_failed(door, "timeout", times=4)


@in_both_doors
def test_the_time_before_stls_is_none_for_the_handshake(site, opens):
    site.configure({"login-seconds": 1})
    with opens(site) as door:
        wire = greeted(door)
        with stopped(monitor_of(site, door)):
            wire.send(b"STLS\r\n")
            time.sleep(1.1)  # not a wait for something: these are the seconds that are counted
        assert wire.line().startswith(b"+OK")
        try:
            answer = tlskit.wrap(wire).ask("CAPA")
        except OSError:
            answer = b""
        assert answer == b""
        assert door.logs.wait_for(" tls failed .*reason=timeout$| session .*end=timeout$")


@in_both_doors
@in_both_modes
@pytest.mark.parametrize("abort", [False, True])
def test_who_hangs_up_in_the_handshake_is_told_of(site, opens, mode, abort):
    site.configure({"tls-mode": mode})
    with opens(site) as door:
        wire = at_handshake(door, mode)
        wire.send(Handshake().hello[:50])
        poll(lambda: is_taken(wire), "the half to be read")  # or nobody might know who it was
        hang_up(wire, abort)
        must_have_failed(door, "eof")
        assert is_served(door, mode)


def hang_up(wire, abort=False):
    if abort:
        wire.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@in_both_doors
def test_who_speaks_in_the_clear_where_tls_is_wanted_is_told_so(site, opens):
    site.configure({"tls-mode": "immediate"})
    with opens(site) as door:
        for said in (b"USER anna\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n" * 50000):
            wire = door.connect()
            with suppress(ConnectionError):
                wire.send(said)
            assert wire.reader.read() == WANTS_TLS
            wire.close()
        must_have_failed(door, '"no tls"', times=3)


@in_both_doors
def test_who_speaks_tls_where_it_is_not_spoken_gets_a_greeting_in_the_clear(site, opens):
    with opens(site) as door:
        wire = door.connect()
        wire.send(Handshake().hello)
        wire.connection.shutdown(socket.SHUT_WR)
        lines = wire.reader.read().splitlines(keepends=True)
        assert lines[0].startswith(b"+OK POP3")
        assert all(line.startswith(b"-ERR ") for line in lines[1:])  # an LF may be in a hello
        assert tlskit.wait_for_line(door, "session rip=").endswith("end=eof")
        assert "tls failed" not in door.logs.text()
        assert is_served(door, "stls")


def old_client(minimum, maximum, ciphers):
    """A client that offers what nobody should."""
    using = tlskit.context()
    using.set_ciphers(ciphers)
    using.minimum_version, using.maximum_version = minimum, maximum
    return using


OLD = [
    ("1.2", "TLSv1", "TLSv1"),
    ("1.2", "TLSv1_1", "TLSv1_1"),
    ("1.2", "TLSv1", "TLSv1_1"),
    ("1.3", "TLSv1_2", "TLSv1_2"),
]
# No forward secrecy, no authenticated encryption, no certificate.
WEAK = ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256", "DHE+AESGCM", "aNULL"]


@in_both_doors
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused_with_an_alert(site, opens):
    site.configure({"tls-mode": "immediate"})
    for wanted, *versions in OLD:
        site.configure({"tls-min-version": wanted})
        with opens(site) as door:
            using = old_client(*[ssl.TLSVersion[one] for one in versions], "ALL:@SECLEVEL=0")
            wire = door.connect()
            with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
                tlskit.wrap(wire, using)
            must_have_failed(door, '"unsupported protocol"')
            assert is_served(door)
        poll(lambda: not site.processes(), "the last word in this log")


@in_both_doors
def test_a_weak_cipher_is_refused_with_an_alert(site, opens):
    site.configure({"tls-mode": "immediate"})
    with opens(site) as door:
        only = ssl.TLSVersion.TLSv1_2
        for ciphers in WEAK:
            using = old_client(only, only, f"{ciphers}:@SECLEVEL=0")
            wire = door.connect()
            with pytest.raises(ssl.SSLError, match="ALERT_HANDSHAKE_FAILURE"):
                tlskit.wrap(wire, using)
        must_have_failed(door, '"no shared cipher"', times=len(WEAK))


@in_both_doors
def test_garbage_for_a_hello_is_refused(site, opens):
    site.configure({"tls-mode": "immediate"})
    with opens(site) as door:
        wire = door.connect()
        wire.send(b"\x16\x03\x01\xff\xff" + bytes(70000))
        assert wire.reader.read()[:1] == b"\x15"  # an alert
        wire.close()
        assert "rip=127.0.0.1 reason=" in tlskit.wait_for_line(door, "tls failed")


# The end of TLS


@in_both_doors
def test_a_record_that_is_not_the_clients_ends_the_session(site, opens):
    site.configure({"tls-mode": "immediate"})
    with opens(site) as door:
        wire = logged_in(door)
        assert wire.ask("DELE 1").startswith(b"+OK")
        with tlskit.beneath(wire) as connection:
            connection.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            wire.line()
        wire.close()
        line = door.logs.wait_for("session .*user=anna")
        assert " dele=0 left=2 " in line
        assert line.endswith("end=eof")
        assert "decryption failed" in tlskit.wait_for_line(door, "tls failed")
        assert site.spool("anna").read_bytes() == SPOOL


@in_both_doors
@pytest.mark.parametrize("abort", [False, True])
def test_tls_that_is_cut_off_deletes_nothing(site, opens, abort):
    site.configure({"tls-mode": "immediate"})
    with opens(site) as door:
        wire = logged_in(door)
        assert wire.ask("DELE 1").startswith(b"+OK")
        hang_up(wire, abort)
        line = door.logs.wait_for("session .*user=anna")
        assert " dele=0 left=2 " in line
        assert line.endswith("end=eof")
        assert site.spool("anna").read_bytes() == SPOOL


def quit_and_go(door, with_notify):
    """DELE, QUIT and the end, in one segment."""
    wire, one = door.connect(), Handshake()
    one.finish(wire)
    one.tls.write(b"USER anna\r\nPASS secret\r\n")
    wire.send(one.outgoing.read())
    heard = b""
    while b"+OK maildrop" not in heard:
        one.incoming.write(wire.reader.read1())
        with suppress(ssl.SSLWantReadError):
            while True:
                heard += one.tls.read(4096)
    one.tls.write(b"DELE 1\r\nQUIT\r\n")
    if with_notify:
        with pytest.raises(ssl.SSLWantReadError):
            one.tls.unwrap()
    wire.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    wire.send(one.outgoing.read())
    wire.close()


@in_both_doors
@pytest.mark.parametrize("with_notify", [True, False])
@pytest.mark.parametrize("careful", ["no", "yes"])
def test_who_hangs_up_behind_quit_has_deleted_or_not_as_configured(
    site, opens, with_notify, careful
):
    site.configure({"tls-mode": "immediate", "no-commit-on-early-close": careful})
    with opens(site) as door:
        quit_and_go(door, with_notify)
        line = door.logs.wait_for("session .*user=anna")
        assert line.endswith("end=eof" if careful == "yes" else "end=quit")
        left = SPOOL if careful == "yes" else WITHOUT_FIRST
        assert site.spool("anna").read_bytes() == left


@in_both_doors
def test_who_is_careful_keeps_the_promise_of_quit_to_those_who_wait_for_it(site, opens):
    site.configure({"tls-mode": "immediate", "no-commit-on-early-close": "yes"})
    with opens(site) as door:
        wire = logged_in(door)
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
        assert site.spool("anna").read_bytes() == WITHOUT_FIRST


@in_both_doors
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_every_end_of_ours_is_told_within_tls(site, opens, version):
    """A client that is told can be sure that nobody else has cut off what it got."""
    site.configure({"tls-mode": "immediate"})
    only = {"maximum_version": ssl.TLSVersion[version], "minimum_version": ssl.TLSVersion[version]}
    with opens(site) as door:

        def client():
            using = tlskit.context(**only)
            return tlskit.wrap(door.connect(), using, suppress_ragged_eofs=False)

        wire = client()
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")
        assert wire.reader.read() == b""  # or there would be an SSLEOFError
        wrong = client()
        wrong.line()
        for _ in range(3):
            wrong.ask("USER anna")
            wrong.ask("PASS wrong")
        assert wrong.reader.read() == b""


@in_both_doors
def test_the_end_of_the_time_to_log_in_is_told_within_tls(site, opens):
    site.configure({"tls-mode": "immediate", "login-seconds": 1})
    with opens(site) as door:
        wire = tlskit.wrap(door.connect(), suppress_ragged_eofs=False)
        assert wire.line().startswith(b"+OK")
        assert wire.reader.read() == b""
        wire.close()
        door.logs.wait_for("session .*end=timeout")


# Places


def test_who_stops_reading_gives_its_place_back(site):
    site.add("bert", mbox(b"x" * 30_000_000))
    settings = {"tls-mode": "immediate", "timeout-seconds": 1, "max-children": 1}
    with doors.standalone(site, settings=settings) as door:
        wire = tlskit.wrap(door.connect())
        wire.login("bert")
        wire.send(b"DELE 1\r\nRSET\r\nRETR 1\r\n")
        assert wire.line().startswith(b"+OK")
        assert door.logs.wait_for("session .*user=bert").endswith("end=timeout")
        poll(lambda: is_served_in_its_place(door), "its place")
        assert "rror" not in door.logs.text()


TOO_MANY = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"


def is_served_in_its_place(door):
    with suppress(OSError):  # turned away without a word
        return is_served(door)


@in_both_modes
def test_half_open_handshakes_hold_places_for_no_longer_than_a_login_may_take(site, mode):
    seconds = 1 if mode == "immediate" else 5  # in which all of them must have come
    settings = {"tls-mode": mode, "max-children": 8, "login-seconds": seconds}
    with doors.standalone(site, settings=settings) as door:
        flood = [at_handshake(door, mode) for _ in range(8)]
        for wire in flood:
            wire.send(Handshake().hello[:40])
        late = door.connect()
        told = b"" if mode == "immediate" else TOO_MANY  # which no TLS client would understand
        assert late.reader.read() == told
        for wire in flood:
            assert wire.reader.read() == b""
        poll(lambda: len(tlskit.lines_of(door, "tls failed")) == 8, "all to be logged")
        assert is_served(door, mode)


def open_files(pids):
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}


def all_of(door):
    """Processes and their open files, of the listener and of all that it has forked."""
    pids = [door.process.pid]
    for pid in pids:
        pids += children_of(pid)
    return pids


def summary_of(door):
    """How many processes, and how many files has each of those that stay?"""
    try:
        pids = all_of(door)
        lasting = [pid for pid in pids if children_of(pid)]  # the listener and the keyholder
        return len(pids), open_files(lasting)
    except OSError:
        return None  # one of them has just ended


@in_both_modes
def test_a_hundred_handshakes_that_come_to_nothing_leave_nothing(site, mode):
    if not IS_ROOT:
        pytest.skip("only root sees which files the process with the keys has open")
    settings = {"tls-mode": mode, "max-children": 128, "gatekeeper-connections": 1000}
    with doors.standalone(site, settings=settings) as door:
        assert is_served(door, mode)
        poll(lambda: len(tlskit.lines_of(door, "session rip=")) == 1, "the end of the session")
        before = settled(door)
        assert len(before[1]) == 2
        for number in range(100):
            wire = poll(lambda: at_handshake_or_none(door, mode), "a place")
            wire.send(Handshake().hello[: number * 3])
            hang_up(wire, abort=number % 2 == 0)
        poll(lambda: len(tlskit.lines_of(door, "tls failed")) == 100, "all to be logged")
        poll(lambda: summary_of(door) == before, f"all to be as before: {before}")
        assert is_served(door, mode)
        assert "rror" not in door.logs.text()


def settled(door):
    """What there is when nobody is served, twice the same."""

    def twice():
        first = summary_of(door)
        time.sleep(0.1)
        return first if first == summary_of(door) else None

    return poll(twice, "all to be quiet")


def at_handshake_or_none(door, mode):
    wire = door.connect()
    if mode == "stls":
        if not wire.line().startswith(b"+OK"):
            return None
        assert wire.ask("STLS").startswith(b"+OK")
    return wire


def test_where_each_connection_has_a_server_nothing_stays_either(site):
    site.configure({"tls-mode": "immediate"})
    with doors.systemd_accept(site) as door:
        for number in range(6):
            wire = door.connect()
            wire.send(Handshake().hello[: number * 50])
            hang_up(wire, abort=number % 2 == 0)
        poll(lambda: len(tlskit.lines_of(door, "tls failed")) == 6, "all to be logged")
        poll(
            lambda: (
                not Path(f"/proc/{door.process.pid}/task/{door.process.pid}/children").read_text()
            ),
            "the servers to end",
        )
