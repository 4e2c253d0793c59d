"""What may go wrong with PROXY headers: parts of them, none, wrong ones, far too many."""

import os
import select
import signal
import socket
import time

import pytest

import doors
import tlskit
from authkit import config_of
from mailsite import PATIENCE, poll
from proxyheaders import CLIENT, PROXY, SSL, TCP4, binary, line, raw
from spools import mbox
from test_listener import FULL
from test_listener_signals import reload
from tpop3d.proxy.origin import SECONDS, seconds_for_header

BALANCER = "127.0.0.1"
ONE = mbox(b"Subject: one\n\n1\n")
HEADERS = {"v1": line(), "v2": binary(more=SSL)}
SESSION = b"USER anna\r\nPASS secret\r\nRETR 1\r\nQUIT\r\n"
SETTINGS = {
    "proxy-protocol-from": BALANCER,
    "plaintext-logins": "yes",
    "auth-failure-delay-seconds": 0,
    "login-seconds": 20,
}
MAIL = b"Subject: one\r\n\r\n1\r\n.\r\n"
in_both_versions = pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)


@pytest.fixture
def site(site):
    site.add("anna", ONE)
    site.configure(SETTINGS)
    return site


def connect(door, source=BALANCER):
    """From an address of this host; each octet goes out when it is sent."""
    connection = socket.create_connection((door.host, door.port), PATIENCE, (source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = doors.Wire.on(connection)
    door.opened.append(wire)
    return wire


def is_waiting(wire):
    """Has nothing come, and no end?"""
    return not select.select((wire.connection,), (), (), 0)[0]


def at_end(wire):
    """All that came, until it ended, however that was."""
    try:
        return wire.reader.read()
    except ConnectionResetError:
        return b""


def ended(door, rip=CLIENT):
    return door.logs.text().count(f"session rip={rip} user=anna ")


def complaints(door):
    return [one for one in door.logs.lines() if "proxy header" in one]


@in_both_versions
@tlskit.in_both_doors
def test_header_and_session_in_one_packet(site, opens, header):
    with opens(site) as door:
        wire = connect(door)
        wire.send(header + SESSION)
        assert MAIL in wire.reader.read()
        found = door.logs.wait_for(f"session rip={CLIENT} user=anna .* end=quit")
        assert f" octets_in={len(SESSION)} " in found


@in_both_versions
def test_a_header_that_is_cut_anywhere(site, header):
    site.add("bob")
    with doors.standalone(site, settings={"max-children": 200}) as door:
        wires = [connect(door) for _ in range(1, len(header))]
        for cut, wire in enumerate(wires, 1):
            wire.send(header[:cut])
        # One that comes later has been served: what came before has been read.
        last = connect(door)
        last.send(header)
        assert last.line().startswith(b"+OK")
        assert all(is_waiting(wire) for wire in wires)
        for cut, wire in enumerate(wires, 1):
            wire.send(header[cut:] + b"USER bob\r\nPASS secret\r\nQUIT\r\n")
            assert wire.reader.read().count(b"+OK") == 4, cut
        assert complaints(door) == []


@in_both_versions
@tlskit.in_both_doors
def test_a_header_octet_by_octet(site, opens, header):
    with opens(site) as door:
        wire = connect(door)
        for octet in header[:-1]:
            wire.send(bytes([octet]))
            time.sleep(0.002)  # so that there is a packet for each
        assert is_waiting(wire)
        wire.send(header[-1:])
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")
        door.logs.wait_for(f"session rip={CLIENT} user=anna .* octets_in=30 .* end=quit")


@tlskit.in_both_doors
def test_a_header_and_then_nothing(site, opens):
    site.configure({"login-seconds": 1})
    with opens(site) as door:
        wire = connect(door)
        wire.send(line())
        assert wire.line().startswith(b"+OK")
        assert wire.line() == b""
        door.logs.wait_for(f"session rip={CLIENT} user=- .* end=timeout")


@tlskit.in_both_doors
def test_no_header_in_time(site, opens):
    site.configure({"login-seconds": 1})
    with opens(site) as door:
        started = time.monotonic()
        wires = [connect(door) for _ in range(3)]
        for wire, part in zip(wires, (b"", b"PROXY TCP4 192.0.2.7", binary()[:20]), strict=True):
            wire.send(part)
        assert [wire.reader.read() for wire in wires] == [b"", b"", b""]
        assert 0.9 < time.monotonic() - started < SECONDS
        for what in ("missing", "wrong"):
            door.logs.wait_for(f"proxy header {what} rip={BALANCER} reason=timeout")
        assert "session" not in door.logs.text()


def test_each_has_its_own_time(site):
    site.configure({"login-seconds": 1})
    with doors.standalone(site) as door:
        first = connect(door)
        time.sleep(0.3)
        second = connect(door)
        assert at_end(first) == b""
        assert is_waiting(second)
        assert at_end(second) == b""


def test_the_time_for_a_header_is_short(site):
    assert seconds_for_header(config_of(login_seconds=60).login_seconds) == 10
    assert seconds_for_header(config_of(login_seconds=3).login_seconds) == 3


WRONG = {
    "a client": SESSION,
    "TLS": tlskit.Handshake().hello,
    "UDP": line().replace(b"TCP4", b"UDP4") + SESSION,
    "108 octets": b"PROXY UNKNOWN " + 92 * b"x" + b"\r\n" + SESSION,
    "no end": 5000 * b"PROXY UNKNOWN ",
    "version 3": raw(0x31, TCP4, binary()[16:]) + SESSION,
    "a forged log line": b'PROXY TCP4 192.0.2.7" rip=192.0.2.8 \n1 2 3\r\n' + SESSION,
}


@pytest.mark.parametrize("how", WRONG)
@tlskit.in_both_doors
def test_a_wrong_header_ends_the_connection_at_once(site, opens, how):
    with opens(site) as door:
        wire = connect(door)
        wire.send(WRONG[how])
        assert at_end(wire) == b""
        found = door.logs.wait_for(f"proxy header wrong rip={BALANCER} reason=")
        assert "reason=timeout" not in found
        assert "192.0.2" not in found
        # Those who come after it are none the worse for it.
        wire = connect(door)
        wire.send(line() + SESSION)
        assert MAIL in wire.reader.read()


def test_many_wrong_ones_are_one_line(site):
    with doors.standalone(site) as door:
        for _ in range(20):
            wire = connect(door)
            wire.send(b"CAPA\r\n")
            assert at_end(wire) == b""
        (found,) = complaints(door)
        assert found.endswith(f'proxy header wrong rip={BALANCER} reason="no PROXY header"')


def test_a_line_of_107_octets_and_one_of_108(site):
    with doors.standalone(site) as door:
        wire = connect(door)
        wire.send(b"PROXY UNKNOWN " + 91 * b"x" + b"\r\n" + SESSION)
        assert MAIL in wire.reader.read()
        wire = connect(door)
        wire.send(b"PROXY UNKNOWN " + 92 * b"x" + b"\r\n" + SESSION)
        assert at_end(wire) == b""


@tlskit.in_both_doors
def test_the_longest_header_of_all(site, opens):
    header = binary(more=(0xFFFF - 12) * b"QUIT\r\n"[:1])
    assert len(header) == 16 + 0xFFFF
    with opens(site) as door:
        wire = connect(door)
        wire.send(header + SESSION)
        assert MAIL in wire.reader.read()
        door.logs.wait_for(f"session rip={CLIENT} user=anna .* octets_in={len(SESSION)} ")


def test_a_length_that_is_not_kept_waits_only_for_its_time(site):
    site.configure({"login-seconds": 1})
    with doors.standalone(site) as door:
        wire = connect(door)
        wire.send(raw(PROXY, TCP4, binary()[16:] + SESSION, length=0xFFFF))
        assert at_end(wire) == b""
        door.logs.wait_for("proxy header wrong .* reason=timeout")


@pytest.mark.parametrize("kind", ["socketpair", "pipes"])
def test_what_has_no_address_needs_no_header(site, kind):
    site.configure({"proxy-protocol-from": "0.0.0.0/0 ::/0"})
    with doors.inetd(site, pipes=kind == "pipes") as wire:
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")


@tlskit.in_both_doors
def test_who_hangs_up_leaves_nothing_behind(site, opens):
    with opens(site) as door:
        for part in (b"", b"PROXY TCP4 ", line()[:-1], binary()[:15]):
            wire = connect(door)
            wire.send(part)
            wire.close()
        # Half a connection is none, either.
        wire = connect(door)
        wire.send(b"PROXY TCP4 ")
        wire.connection.shutdown(socket.SHUT_WR)
        assert wire.reader.read() == b""
        door.logs.wait_for(f"proxy header wrong rip={BALANCER} reason=eof")
        assert "session" not in door.logs.text()
    poll(lambda: not site.processes(), "all to end")
    assert "internal error" not in door.logs.text()


def test_those_without_a_header_take_no_place_for_good(site):
    settings = {"login-seconds": 2, "max-children": 4, "max-children-per-source": 2}
    with doors.standalone(site, settings=settings) as door:
        # Of their source nothing is known yet: there may be more of them than of one source.
        waiting = [connect(door) for _ in range(4)]
        refused = [connect(door, source) for source in ("127.0.0.1", "127.0.0.2")]
        assert [wire.line() for wire in refused] == [FULL, FULL]
        assert all(is_waiting(wire) for wire in waiting)
        # One that has a header has its place already.
        waiting[0].send(line() + SESSION)
        assert MAIL in waiting[0].reader.read()
        assert [at_end(wire) for wire in waiting[1:]] == [b"", b"", b""]
        again = [connect(door) for _ in range(4)]
        for number, wire in enumerate(again):
            wire.send(line(f"192.0.2.{number}"))
        assert all(wire.line().startswith(b"+OK") for wire in again)
        assert len([one for one in complaints(door) if "missing" in one]) == 1


def test_a_refusal_after_the_header_frees_its_place(site):
    settings = {"max-children": 3, "max-children-per-source": 1}
    with doors.standalone(site, settings=settings) as door:
        inside = connect(door)
        inside.send(line())
        assert inside.line().startswith(b"+OK")
        for _ in range(10):
            wire = connect(door)
            wire.send(line())
            assert wire.reader.read() == FULL
        others = [connect(door) for _ in range(2)]
        for number, wire in enumerate(others):
            wire.send(line(f"192.0.2.10{number}"))
        assert all(wire.line().startswith(b"+OK") for wire in others)


def test_a_reload_leaves_those_that_wait(site):
    with doors.standalone(site) as door:
        waiting = connect(door)
        waiting.send(line()[:20])
        later = connect(door)
        later.send(line())
        assert later.line().startswith(b"+OK")  # so the one before has been accepted
        site.configure({"proxy-protocol-from": "192.0.2.1"})
        reload(door, "reload: the configuration is read again")
        assert connect(door).line().startswith(b"+OK")
        waiting.send(line()[20:] + SESSION)
        assert MAIL in waiting.reader.read()
        poll(lambda: ended(door), "the session's end")


def test_a_listener_that_ends_does_not_wait_for_headers(site):
    with doors.standalone(site, settings={"shutdown-seconds": 60}) as door:
        wires = [connect(door) for _ in range(3)]
        last = connect(door)
        last.send(line())
        last.login("anna")  # those before it have been accepted
        door.process.send_signal(signal.SIGTERM)
        assert [at_end(wire) for wire in wires] == [b"", b"", b""]
        assert "reason=timeout" not in door.logs.text()
        assert last.ask("QUIT").startswith(b"+OK")
        assert door.process.wait(PATIENCE) == 0


def test_a_process_that_waits_for_a_header_can_be_ended(site):
    with doors.systemd_accept(site) as door:
        wire = connect(door)
        (pid,) = poll(
            lambda: [one for one in site.processes() if one != door.process.pid], "a process"
        )
        os.kill(pid, signal.SIGTERM)
        assert at_end(wire) == b""


def test_tls_with_header_and_handshake_in_one_packet(site):
    tlskit.secure(site, **{"tls-mode": "immediate"})
    for open_door in tlskit.DOORS.values():
        with open_door(site) as door:
            for header in HEADERS.values():
                wire = connect(door)
                handshake = tlskit.Handshake()
                handshake.hello = header + handshake.hello
                handshake.finish(wire)
                wire.close()
            poll(lambda at=door: len(tlskit.lines_of(at, f"rip={CLIENT} ")) == 2, "their ends")
            assert all(" tls=TLSv1.3 " in one for one in tlskit.lines_of(door, f"rip={CLIENT} "))
