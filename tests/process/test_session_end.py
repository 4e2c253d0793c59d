"""How sessions with the real server end, and what is removed then."""

import os
import re
import signal
import socket
import ssl
import time
from contextlib import suppress

import pytest

import doors
import tlskit
from mailsite import CHECKOUT, PATIENCE, poll
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
    ann.configure({"timeout-seconds": 4})
    big = b"Subject: big\n\n" + b"line\n" * (1 << 20)
    ann.add("bob", spool_of([big]))
    with doors.inetd(ann) as wire:
        wire.login("bob")
        started = time.monotonic()
        wire.send(b"RETR 1\r\n")
        status, some = wire.line(), b""
        for moment in (2.1, 4.2):  # each within the limit from the last, but not from the first
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


# Hanging up early, and reading on

PIPELINED = LOGIN + b"STAT\r\nRETR 1\r\nUIDL 2\r\nDELE 2\r\nTOP 3 0\r\nQUIT\r\n"
UNMARKED = PIPELINED.replace(b"DELE 2", b"NOOP")


def by_pipe(site, script):
    return run_server(site, [script])[0]


def by_socketpair(site, script):
    with doors.inetd(site) as wire:
        return sent_and_heard(wire, script)


def by_tcp(site, script):
    with doors.standalone(site) as door:
        return sent_and_heard(door.connect(), script)


def sent_and_heard(wire, script):
    """Send a script, end the sending side, and read on."""
    wire.send(script)
    wire.connection.shutdown(socket.SHUT_WR)
    return wire.reader.read()


def within_tls(opens, with_notify):
    """The same within TLS; it ends with close_notify, or with the connection."""

    def converse(site, script):
        tlskit.secure(site, **{"tls-mode": "immediate"})
        with opens(site) as door:
            wire, one = door.connect(), tlskit.Handshake()
            one.finish(wire)
            one.tls.write(script)
            if with_notify:
                with pytest.raises(ssl.SSLWantReadError):
                    one.tls.unwrap()
            wire.send(one.outgoing.read())
            wire.connection.shutdown(socket.SHUT_WR)
            one.incoming.write(wire.reader.read())
            heard = b""
            with suppress(ssl.SSLZeroReturnError):
                while octets := one.tls.read(1 << 16):
                    heard += octets
            return heard

    return converse


WAYS = {
    "pipe": by_pipe,
    "socketpair": by_socketpair,
    "TCP": by_tcp,
} | {
    f"TLS, {name}, {'close_notify' if with_notify else 'FIN'}": within_tls(opens, with_notify)
    for name, opens in tlskit.DOORS.items()
    for with_notify in (True, False)
}


def behind_greeting(heard):
    """The lines of all answers; the greeting has a timestamp."""
    return heard.splitlines(keepends=True)[1:]


in_all_ways = pytest.mark.parametrize("converse", WAYS.values(), ids=WAYS)


@in_all_ways
def test_who_ends_only_the_sending_side_gets_all_that_came_before_quit(ann, converse):
    expected = behind_greeting(converse(ann, PIPELINED))
    assert expected[-1] == b"+OK goodbye\r\n"
    assert ann.spool("ann").read_bytes() == spool_of([MESSAGES[0], *MESSAGES[2:]])
    ann.add("ann", SPOOL)
    ann.configure({"no-commit-on-early-close": "yes"})
    heard = behind_greeting(converse(ann, PIPELINED))
    assert heard[:-1] == expected[:-1]
    assert heard[-1].startswith(b"-ERR ")
    assert ann.spool("ann").read_bytes() == SPOOL


@in_all_ways
def test_nothing_is_withheld_where_nothing_is_marked(ann, converse):
    expected = behind_greeting(converse(ann, UNMARKED))
    ann.configure({"no-commit-on-early-close": "yes"})
    assert behind_greeting(converse(ann, UNMARKED)) == expected
    assert expected[-1] == b"+OK goodbye\r\n"


def test_the_example_of_the_man_page_is_answered_in_full(ann):
    page = (CHECKOUT / "man/tpop3d.8").read_text()
    (script,) = re.findall(r"^\.Dl \$ printf '(.*)' \| tpop3d --inetd$", page, re.M)
    script = script.replace("\\er\\en", "\r\n").replace("QUIT", "RETR 1\r\nDELE 1\r\nQUIT")
    ann.add("anna", SPOOL)
    ann.configure({"no-commit-on-early-close": "yes"})
    output, log = run_server(ann, [script.encode()])
    assert as_sent(MESSAGES[0]) + b".\r\n" in output
    assert output.splitlines()[-1].startswith(b"-ERR ")
    line = log.splitlines()[-1]
    assert b" retr=1/%d " % len(as_sent(MESSAGES[0])) in line
    assert b" dele=0 left=4 " in line
    assert b" octets_out=%d " % len(output) in line
    assert line.endswith(b" end=eof")
    assert ann.spool("anna").read_bytes() == SPOOL


@pytest.mark.parametrize("pipes", [False, True], ids=["socketpair", "pipes"])
@pytest.mark.parametrize("careful", ["no", "yes"])
def test_what_nobody_was_sent_is_not_counted(ann, pipes, careful):
    """Of a client that is gone the log counts what went out, and not what was got ready."""
    ann.configure({"no-commit-on-early-close": careful})
    with doors.inetd(ann, pipes=pipes) as wire:
        wire.login("ann")
        _, first = wire.ask_long("RETR 1")
        wire.process.send_signal(signal.SIGSTOP)
        wire.send(b"RETR 2\r\nTOP 3 0\r\nDELE 2\r\nQUIT\r\n")
        wire.close()
        wire.process.send_signal(signal.SIGCONT)
        assert wire.process.wait(PATIENCE) == 0
        line = wire.logs.wait_for(": session ")
    assert f" retr=1/{len(first)} top=0/0 " in line
    assert line.endswith(" end=eof")
