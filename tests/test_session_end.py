"""How sessions with the real server end, and what is removed then."""

import os
import signal
import time

import pytest

import doors
import tlskit
from mailsite import PATIENCE, poll
from protocol import as_sent, run_server
from samples import spool_of

MESSAGES = [
    b"Subject: one\n\nfirst\n",
    b"Subject: two\n\n.dot\n..\n\n.\n",
    b"Subject: three\r\n\r\ncr\rlf\r\n",
    b"Subject: four\n\nno newline at the end",
]
SPOOL = spool_of(MESSAGES)
LOGIN = b"USER ann\r\nPASS secret\r\n"


@pytest.fixture
def ann(site):
    site.add("ann", SPOOL)
    return site


def ended(wire):
    """Wait for the end of the server; returns its last log line."""
    assert wire.line() == b""
    assert wire.process.wait(PATIENCE) == 0
    return wire.logs.wait_for(": session ")


def answers(site, script):
    """The status words of the replies to a script, the greeting's first."""
    output, _ = run_server(site, [script])
    return [line.split()[0] for line in output.splitlines()]


def test_quit_removes_what_is_marked_before_it_says_so(ann, inetd):
    inetd.login("ann")
    for n in (1, 3):
        assert inetd.ask(f"DELE {n}").startswith(b"+OK")
    assert ann.spool("ann").read_bytes() == SPOOL
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert ann.spool("ann").read_bytes() == spool_of([MESSAGES[1], MESSAGES[3]])
    assert " dele=2 left=2 " in ended(inetd)


def test_rset_before_quit_removes_nothing(ann):
    assert set(answers(ann, LOGIN + b"DELE 1\r\nRSET\r\nQUIT\r\n")) == {b"+OK"}
    assert ann.spool("ann").read_bytes() == SPOOL


NO_QUIT = {
    "EOF": b"",
    "QUIT without a line end": b"QUIT",
    "QUIT and half a line end": b"QUIT\r",
    "QUIT with an argument": b"QUIT now\r\n",
    "QUIT behind a space": b" QUIT\r\n",
    "QUIT with a NUL": b"QUIT\0\r\n",
    "QUIT in an overlong line": b"x" * 300 + b"QUIT\r\n",
    "another command that ends": b"XYZZY\r\n" * 20,
    "QUIT too late": b"XYZZY\r\n" * 20 + b"QUIT\r\n",
}


@pytest.mark.parametrize("ending", NO_QUIT.values(), ids=NO_QUIT)
def test_nothing_is_removed_without_quit(ann, ending):
    replies = answers(ann, LOGIN + b"DELE 1\r\nDELE 2\r\n" + ending)
    assert replies[:5] == [b"+OK"] * 5
    assert ann.spool("ann").read_bytes() == SPOOL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_session_in_silence_and_removes_nothing(ann, inetd, number):
    inetd.login("ann")
    assert inetd.ask("DELE 1").startswith(b"+OK")
    inetd.process.send_signal(number)
    assert " dele=0 left=4 " in (line := ended(inetd))
    assert line.endswith(" end=signal")
    assert ann.spool("ann").read_bytes() == SPOOL


@pytest.mark.parametrize("pipes", [False, True], ids=["socketpair", "pipes"])
def test_idle_clients_are_left_in_silence_and_nothing_is_removed(ann, pipes):
    ann.configure({"timeout-seconds": 1})
    with doors.inetd(ann, pipes=pipes) as wire:
        wire.login("ann")
        assert wire.ask("DELE 1").startswith(b"+OK")
        started = time.monotonic()
        wire.send(b"QUIT")  # without its line end
        assert ended(wire).endswith(" end=timeout")
        assert time.monotonic() - started >= 0.9
    assert ann.spool("ann").read_bytes() == SPOOL


def test_a_client_that_does_not_read_is_left_too(ann):
    ann.configure({"timeout-seconds": 1})
    big = spool_of([b"Subject: big\n\n" + b"line\n" * (1 << 20)])
    ann.add("bob", big)
    with doors.inetd(ann) as wire:
        wire.login("bob")
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("RSET").startswith(b"+OK")
        wire.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
        line = wire.logs.wait_for(": session ")
        assert line.endswith(" end=timeout")
        assert " retr=0/0 " in line
    assert ann.spool("bob").read_bytes() == big


def test_a_client_that_reads_slowly_is_waited_for(ann):
    ann.configure({"timeout-seconds": 2})
    big = b"Subject: big\n\n" + b"line\n" * (1 << 20)
    ann.add("bob", spool_of([big]))
    with doors.inetd(ann) as wire:
        wire.login("bob")
        started = time.monotonic()
        wire.send(b"RETR 1\r\n")
        status, some = wire.line(), b""
        for moment in (1.2, 2.4):  # each within the limit from the last, but not from the first
            poll(lambda moment=moment: time.monotonic() > started + moment, "the moment")
            some += wire.reader.read(1 << 20)
        rest = wire.reader.read(len(as_sent(big)) - len(some))
        assert status.startswith(b"+OK")
        assert some + rest == as_sent(big)
        assert wire.line() == b".\r\n"
        assert wire.ask("QUIT").startswith(b"+OK")


@pytest.mark.parametrize("busy", [False, True], ids=["silent", "busy"])
def test_the_time_to_log_in_is_limited_whatever_the_client_does(ann, busy):
    ann.configure({"login-seconds": 1})
    with doors.inetd(ann) as wire:
        started = time.monotonic()
        assert wire.line().startswith(b"+OK")
        if busy:
            poll(lambda: asks_in_vain(wire), "the end")
        else:
            assert wire.line() == b""
        assert wire.logs.wait_for(": session ").endswith(" end=timeout")
        assert time.monotonic() - started >= 0.9


def asks_in_vain(wire):
    try:
        return wire.ask("USER ann") == b""
    except ConnectionError:  # it ended while a command was on its way
        return True


# Hanging up early


def hang_up_behind_quit(site, pipes):
    """Log in, mark a message, say QUIT and be gone before the server can look."""
    with doors.inetd(site, pipes=pipes) as wire:
        wire.login("ann")
        assert wire.ask("DELE 1").startswith(b"+OK")
        wire.process.send_signal(signal.SIGSTOP)
        wire.send(b"QUIT\r\n")
        wire.close()
        wire.process.send_signal(signal.SIGCONT)
        assert wire.process.wait(PATIENCE) == 0
        return wire.logs.wait_for(": session ")


@pytest.mark.parametrize("pipes", [False, True], ids=["socketpair", "pipes"])
def test_quit_removes_even_if_nobody_hears_the_answer(ann, pipes):
    assert " dele=1 left=3 " in hang_up_behind_quit(ann, pipes)
    assert ann.spool("ann").read_bytes() == spool_of(MESSAGES[1:])


@tlskit.in_both_doors
def test_quit_removes_even_if_nobody_hears_the_answer_over_tls(ann, opens):
    tlskit.secure(ann)
    with opens(ann) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        tlskit.stls(wire)
        for command in ("USER ann", "PASS secret", "DELE 1"):
            assert wire.ask(command).startswith(b"+OK")
        running = set(ann.processes()) - {door.process.pid}
        for pid in running:
            os.kill(pid, signal.SIGSTOP)
        wire.send(b"QUIT\r\n")
        wire.close()
        for pid in running:
            os.kill(pid, signal.SIGCONT)
        assert " dele=1 left=3 " in door.logs.wait_for(": session ")
    assert ann.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
    assert not list(ann.state.glob("*/journal*"))


@pytest.mark.parametrize("pipes", [False, True], ids=["socketpair", "pipes"])
def test_with_no_commit_on_early_close_somebody_must_hear_the_answer(ann, pipes):
    ann.configure({"no-commit-on-early-close": "yes"})
    assert " dele=0 left=4 " in hang_up_behind_quit(ann, pipes)
    assert ann.spool("ann").read_bytes() == SPOOL


def test_with_no_commit_on_early_close_a_patient_client_removes(ann):
    ann.configure({"no-commit-on-early-close": "yes"})
    with doors.inetd(ann) as patient:
        patient.login("ann")
        assert patient.ask("DELE 1").startswith(b"+OK")
        assert patient.ask("QUIT").startswith(b"+OK")
    assert ann.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
