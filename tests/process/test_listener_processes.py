"""When the listener makes processes, and what is left of them after many sessions."""

import os
import re
import signal

import pytest

import doors
from mailsite import poll
from spools import mbox
from strace import traced
from test_listener import FULL, children_of, gatekeepers_of
from tpop3d.listener.gatekeepers import MOST, SPARES

SPOOL = mbox(b"Subject: one\n\n1\n")
SESSIONS = 300


@pytest.fixture
def forks(monkeypatch, site):
    """Count the processes that the listener itself has made so far."""
    # Without -f: what its children do is theirs.
    trace = traced(monkeypatch, site.path, "-e", "trace=%process")

    def count():
        made = [call for _, call in trace.lines if re.match(r"(v?fork|clone3?)\(", call)]
        assert not any("unfinished" in call for call in made)
        return len(made)

    return count


def greeting(door):
    wire = door.connect()
    return wire, wire.line()


def test_turning_away_needs_no_process(site, forks):
    with doors.standalone(site, settings={"max-children": 1}) as door:
        # One process tries whether gatekeepers can be locked in, one recovers mailboxes. With one
        # place there is one spare, and none to come while the place is taken.
        assert poll(lambda: forks() == 3, "the spare")
        inside, line = greeting(door)
        assert line.startswith(b"+OK")
        assert forks() == 3  # a greeting needs none, either
        for _ in range(50):
            outside, line = greeting(door)
            assert line == FULL
            assert outside.line() == b""
        assert forks() == 3
        assert list(children_of(door.process.pid).values()).count("Z") == 0
        assert inside.ask("CAPA").startswith(b"+OK")


def test_turning_a_source_away_needs_no_process(site, forks):
    settings = {"max-children": 100, "max-children-per-source": 1}
    with doors.standalone(site, settings=settings) as door:
        inside, line = greeting(door)
        assert line.startswith(b"+OK")
        before = poll(lambda: len(gatekeepers_of(door.process.pid)) == SPARES and forks(), "spares")
        for _ in range(50):
            assert greeting(door)[1] == FULL
        assert forks() == before
        assert inside.ask("CAPA").startswith(b"+OK")


def test_a_login_needs_one_process(site, forks):
    site.add("anna", SPOOL)
    with doors.standalone(site, settings={"max-children": 1}) as door:
        wire, line = greeting(door)
        assert line.startswith(b"+OK")
        before = forks()
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert wire.ask("STAT").startswith(b"+OK 1 ")
        assert forks() == before + 1


def kinds_of(pid):
    """What a process has open, and how many of each, whatever their numbers."""
    kinds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return sorted(re.sub(r"\[\d+\]", "", kind) for kind in kinds)


def session(door, number):
    """One of the ways in which a connection goes; most are sessions."""
    wire, line = greeting(door)
    assert line.startswith(b"+OK")
    how = number % 10
    if how == 7:
        assert wire.ask("QUIT").startswith(b"+OK")
    elif how == 8:
        wire.send(b"USER an")
    else:
        if how == 9:
            assert wire.ask("USER anna").startswith(b"+OK")
            assert wire.ask("PASS wrong").startswith(b"-ERR [AUTH]")
        # After a client that hangs up the maildrop is held for a moment.
        user = "anna" if how else f"user{number}"
        assert wire.ask(f"USER {user}").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        if how:
            assert wire.ask("QUIT").startswith(b"+OK")
    wire.close()


def test_many_sessions_leave_nothing_behind(site):
    for user in ["anna", *(f"user{number}" for number in range(0, SESSIONS, 10))]:
        site.add(user, SPOOL)
    site.configure({"auth-failure-delay-seconds": 0})
    with doors.standalone(site) as door:
        pid = door.process.pid

        def at_rest():
            """What the listener has open besides its spares' channels, with spares as the only
            children, none dead."""
            spares = list(children_of(pid).values())
            if len(spares) != len(gatekeepers_of(pid)):
                return None  # one recovers mailboxes still, or a session has not ended
            if not SPARES <= len(spares) <= MOST or "Z" in spares:
                return None
            kinds = kinds_of(pid)
            for _ in spares:
                kinds.remove("socket:")
            return kinds

        before = poll(at_rest, "the spares")
        for number in range(SESSIONS):
            session(door, number)
        poll(lambda: at_rest() == before, "nothing to be left")
        door.process.send_signal(signal.SIGUSR1)
        line = door.logs.wait_for("serving ")
        assert line.endswith(f"serving 0 of 16 connections, 0 logged in; {SESSIONS} so far")
        assert len([one for one in door.logs.lines() if "session rip=" in one]) == SESSIONS
