"""What comes before STLS, behind it and twice: none of it is worth anything in the TLS."""

import hashlib
import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

import doors
import tlskit
from mailsite import poll
from spools import mbox
from tlskit import in_both_doors

SPOOL = mbox(b"Subject: one\n\n1\n")
NO_MORE = b"-ERR nothing may be sent behind STLS\r\n"
USER_FIRST = b"-ERR send USER first\r\n"
WRONG = b"-ERR [AUTH] wrong name or password\r\n"
LOGIN = b"USER anna\r\nPASS secret\r\n"


@pytest.fixture
def site(site):
    tlskit.secure(site)
    site.configure({"auth-failure-delay-seconds": 0})
    site.add("anna", SPOOL)
    return site


def greeted(door):
    wire = door.connect()
    greeting = wire.line()
    assert greeting.startswith(b"+OK")
    wire.timestamp = greeting.split()[-1]
    return wire


def must_end(wire, door):
    """One refusal, the end, and one line; nothing of what came behind STLS was done."""
    assert wire.reader.read() == NO_MORE
    wire.close()
    line = tlskit.wait_for_line(door, "session rip=")
    assert line.endswith("end=injection")
    assert "user=- " in line
    assert "login" not in door.logs.text()
    assert "tls failed" not in door.logs.text()


@in_both_doors
@pytest.mark.parametrize("behind", [LOGIN, b"QUIT\r\n", b"U", b"\n", b"\x16\x03\x01", LOGIN * 2000])
def test_what_is_in_the_segment_behind_stls_is_never_read(site, opens, behind):
    with opens(site) as door:
        wire = greeted(door)
        try:
            wire.send(b"STLS\r\n" + behind)
        except ConnectionError:
            pass
        must_end(wire, door)


@in_both_doors
@pytest.mark.parametrize("behind", [LOGIN, b"US"])
def test_what_comes_before_the_answer_to_stls_is_never_read(site, opens, behind):
    with opens(site) as door:
        wire = greeted(door)
        with stopped(monitor_of(site, door)):
            wire.send(b"STLS\r\n")
            poll(lambda: is_taken(wire), "STLS to be read")
            wire.send(behind)
        must_end(wire, door)


def monitor_of(site, door):
    """The process that a gatekeeper asks."""
    if door.process.pid in site.processes() and "--accept" not in door.process.args:
        return door.process.pid
    parents = [pid for pid in site.processes() if parent_of(pid) == door.process.pid]
    assert len(parents) == 1
    return parents[0]


def parent_of(pid):
    return int(re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_taken(wire):
    """Has the server read all that was sent to it?"""
    ours = wire.connection.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[2].endswith(f":{ours:04X}"):
            return int(fields[4].partition(":")[2], 16) == 0
    raise AssertionError("the connection is gone")


@in_both_doors
def test_what_comes_behind_the_answer_and_is_no_tls_is_never_read(site, opens):
    with opens(site) as door:
        wire = greeted(door)
        assert wire.ask("STLS").startswith(b"+OK")
        wire.send(LOGIN)
        assert wire.reader.read() == b"-ERR TLS was expected here\r\n"
        wire.close()
        line = tlskit.wait_for_line(door, "tls failed")
        assert 'rip=127.0.0.1 reason="no tls"' in line
        assert "login" not in door.logs.text()


def test_over_pipes_nothing_behind_stls_is_read_either(site):
    with doors.inetd(site, pipes=True) as wire:
        assert wire.line().startswith(b"+OK")
        wire.send(b"STLS\r\n" + LOGIN)
        assert wire.reader.read() == NO_MORE
        assert wire.logs.wait_for("session .*rip=pipe").endswith("end=injection")


@in_both_doors
def test_stls_is_answered_once_and_nobody_is_greeted_again(site, opens):
    with opens(site) as door:
        wire = tlskit.stls(greeted(door))
        assert wire.ask("NOOP").startswith(b"-ERR unknown command")
        assert wire.ask("STLS") == b"-ERR TLS is in use already\r\n"
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK maildrop")
        assert wire.ask("STLS").startswith(b"-ERR")
        assert wire.ask("STAT").startswith(b"+OK 1 ")
        assert wire.ask("QUIT").startswith(b"+OK")
        assert wire.line() == b""


@in_both_doors
def test_who_is_logged_in_may_not_begin_tls(site, opens):
    with opens(site) as door:
        wire = door.connect()
        wire.login("anna")
        assert wire.ask("STLS").startswith(b"-ERR")
        assert wire.ask("STAT").startswith(b"+OK 1 ")
        assert wire.ask("QUIT").startswith(b"+OK")


@in_both_doors
def test_stls_with_an_argument_begins_nothing(site, opens):
    with opens(site) as door:
        wire = greeted(door)
        # What follows is a command in the clear, so it is no injection.
        wire.send(b"STLS now\r\nCAPA\r\n")
        assert wire.line().startswith(b"-ERR wrong arguments")
        assert wire.line().startswith(b"+OK")


@in_both_doors
def test_a_name_that_was_given_in_the_clear_is_forgotten(site, opens):
    with opens(site) as door:
        wire = greeted(door)
        assert wire.ask("USER anna").startswith(b"+OK")
        tlskit.stls(wire)
        assert wire.ask("PASS secret") == USER_FIRST
        # Nor is a login that AUTH has begun.
        wire = greeted(door)
        assert wire.ask("AUTH PLAIN") == b"+ \r\n"
        assert wire.ask("STLS").startswith(b"-ERR malformed")
        assert wire.ask("UTF8").startswith(b"+OK")
        tlskit.stls(wire)
        assert wire.ask("AGFubmEAc2VjcmV0").startswith(b"-ERR unknown command")
        assert wire.ask("AUTH PLAIN AGFubmEAc2VjcmV0").startswith(b"+OK maildrop")


@in_both_doors
def test_failed_logins_before_stls_are_counted(site, opens):
    with opens(site) as door:
        wire = greeted(door)
        for _ in range(2):
            assert wire.ask("USER anna").startswith(b"+OK")
            assert wire.ask("PASS wrong") == WRONG
        tlskit.stls(wire)
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS wrong") == WRONG
        assert wire.line() == b""
        poll(lambda: len(tlskit.lines_of(door, "login failed")) == 3, "the third line")
        last = tlskit.lines_of(door, "login failed")[-1]
        assert "tls=TLSv1.3 cipher=TLS_" in last
        assert not any("tls=" in line for line in tlskit.lines_of(door, "login failed")[:2])


def apop(wire):
    digest = hashlib.md5(wire.timestamp + b"secret", usedforsecurity=False).hexdigest()
    return wire.ask(f"APOP anna {digest}")


@in_both_doors
def test_the_timestamp_of_the_greeting_outlives_stls(site, opens):
    with opens(site) as door:
        wire = greeted(door)
        assert wire.timestamp.startswith(b"<")
        tlskit.stls(wire)
        assert apop(wire).startswith(b"+OK maildrop")


@in_both_doors
def test_a_greeting_where_nobody_may_log_in_gives_none(site, opens):
    site.configure({"plaintext-logins": "no"})
    with opens(site) as door:
        wire = greeted(door)
        assert wire.timestamp == b"ready"
        assert b"use STLS first" in apop(wire)
        tlskit.stls(wire)
        assert apop(wire) == b"-ERR APOP is not available\r\n"
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK maildrop")


def capabilities(wire):
    status, body = wire.ask_long("CAPA")
    assert status.startswith(b"+OK")
    return set(body.split(b"\r\n")) - {b""}


@in_both_doors
@pytest.mark.parametrize("plaintext", ["yes", "no"])
def test_capabilities_say_what_may_be_done_now(site, opens, plaintext):
    site.configure({"plaintext-logins": plaintext})
    with opens(site) as door:
        wire = greeted(door)
        clear = capabilities(wire)
        tlskit.stls(wire)
        secured = capabilities(wire)
        assert {b"USER", b"SASL PLAIN"} <= secured
        assert b"STLS" not in secured
        if plaintext == "yes":
            assert clear == secured | {b"STLS"}
        else:
            assert clear == (secured | {b"STLS"}) - {b"USER", b"SASL PLAIN"}
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert capabilities(wire) == secured


@in_both_doors
def test_the_octets_of_a_session_are_those_before_stls_and_in_it(site, opens):
    with opens(site) as door:
        wire = door.connect()
        heard, said = wire.line(), b""

        def speak(command):
            nonlocal heard, said
            said += command + b"\r\n"
            wire.send(command + b"\r\n")
            heard += wire.line()

        speak(b"NOOP")
        speak(b"STLS")
        tlskit.wrap(wire)
        for command in (b"STLS", b"USER anna", b"PASS secret", b"STAT", b"QUIT"):
            speak(command)
        line = door.logs.wait_for("session .*end=quit")
        assert f" octets_in={len(said)} octets_out={len(heard)} " in line
