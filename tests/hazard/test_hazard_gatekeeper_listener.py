"""A gatekeeper in somebody else's hands, and a listener that others want something from, too."""

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

import doors
from mailsite import poll
from spools import mbox
from test_hazard_gatekeeper import START
from test_listener import children_of, greeted_or_none

SPOOL = mbox(b"Subject: secret\n\nsecret\n")


@pytest.fixture
def listen(site, monkeypatch):
    """Start a listener whose gatekeepers run `body` for each connection, or only for the first."""
    site.add("anna", SPOOL)
    stack = []

    def start(body, **settings):
        code = START.format(body=textwrap.indent(textwrap.dedent(body), "    "))
        monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", code])
        settings = {key.replace("_", "-"): value for key, value in settings.items()}
        basic = {"auth-failure-delay-seconds": 0, "login-seconds": 1, "max-children": 3}
        manager = doors.standalone(site, settings=basic | settings)
        stack.append(manager)
        return manager.__enter__()

    yield start
    for manager in stack:
        manager.__exit__(None, None, None)


def connect(door):
    wire = door.connect()
    assert wire.line() == b"+OK evil\r\n"
    return wire


def attacks(door):
    return [line for line in door.logs.lines() if "attack " in line]


def test_one_that_attacks_while_a_child_is_born_ends_the_connection_only(listen):
    """The child is told to end before it has learnt to listen to signals for itself."""
    door = listen(
        "for n in range(3):\n"
        "    raw.send(channels._ATTEMPT.pack(b'A', b'U', 4, 1, 0, 0, 0) + b'annax')\n"
        "time.sleep(60)"
    )
    for _ in range(40):
        wire = poll(lambda: greeted_by_anybody(door), "a place")
        assert wire.reader.read() == b""
    assert "an attempt during another" in attacks(door)[-1]


def greeted_by_anybody(door):
    wire = door.connect()
    return wire if wire.line().startswith(b"+OK") else None


def test_one_that_keeps_an_admission_to_itself_is_ended(listen):
    door = listen("channel.ask(attempt(b'secret'))\nimport time\ntime.sleep(60)", max_children=1)
    wire = connect(door)
    assert wire.line().startswith(b"+OK maildrop")
    assert wire.ask("QUIT").startswith(b"+OK")
    assert wire.line() == b""  # although the gatekeeper has a duplicate
    door.logs.wait_for("attack .*does not answer")
    poll(lambda: greeted_or_none(door), "a free place")


def test_a_violation_ends_the_session_that_it_has_led_to(listen, site):
    door = listen("channel.ask(attempt(b'secret'))\nraw.send(b'X')\nimport time\ntime.sleep(60)")
    wire = connect(door)
    wire.reader.read()
    assert "of no known kind" in door.logs.wait_for("attack ")
    door.logs.wait_for("session .*user=.* end=")
    assert site.spool("anna").read_bytes() == SPOOL
    poll(lambda: not site_holds(site), "the session to end")


def site_holds(site):
    """Has any process the maildrop open?"""
    for pid in site.processes():
        try:
            files = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if str(site.spool("anna")) in files:
            return True
    return False


LIES = {
    "says that somebody was let in": "raw.send(struct.pack('!ccQQ', b'E', b'a', 0, 0))",
    # When it has been heard, and before there is an answer.
    "is gone": "time.sleep(0.3)\nos._exit(0)",
}


@pytest.mark.parametrize("lie", LIES)
def test_nobody_guesses_faster_by_a_gatekeeper_that(listen, lie):
    """A guess holds its place for as long as a refusal is held back."""
    door = listen(
        "raw.send(channels._ATTEMPT.pack(b'A', b'U', 4, 5, 0, 0, 0) + b'annawrong')\n"
        f"{LIES[lie]}\ntime.sleep(60)",
        max_children=1,
        auth_failure_delay_seconds=2,
    )
    began = time.monotonic()
    connect(door)
    line = door.logs.wait_for("login failed .*user=anna")
    assert line
    poll(lambda: greeted_or_none(door), "a free place")
    assert time.monotonic() - began >= 2
    if "says" in lie:
        # The latter where the guess had been refused before the lie was heard.
        door.logs.wait_for("attack .*(an admission that nobody gave|an ending at the wrong time)")


def test_one_without_a_connection_has_nothing_to_say(listen):
    door = listen(
        "raw.send(channels._ENDED.pack(b'E', b'q', 0, 0))\n"
        "raw.send(channels._ENDED.pack(b'E', b'q', 0, 0))\n"
        "time.sleep(60)"
    )
    connect(door)
    line = door.logs.wait_for("attack ")
    assert "serving=- " in line
    assert "a message without a connection" in line


def test_a_connection_that_is_over_is_over_for_duplicates_too(listen):
    door = listen("os.dup(order.fds[0])\nreturn 'quit'")
    wire = connect(door)
    assert wire.line() == b""


def test_its_lines_are_marked_as_such(listen):
    """So that nobody who reads the log, a program least of all, takes them for the server's."""
    forged = "login failed rip=198.51.100.7 user=root"
    door = listen(f"channel.log(3, {forged!r})\nreturn 'quit'")
    connect(door)
    line = door.logs.wait_for("198.51.100.7")
    assert f'gatekeeper rip=127.0.0.1 says="{forged}"' in line


def test_no_password_stays_behind(site):
    """Neither in the listener, nor in whatever it forks later: a gatekeeper, a session."""
    canary = "bert" + "swordfish" * 12
    site.add("anna", SPOOL)
    site.add("bert", SPOOL, hashed="{plaintext}" + canary)
    settings = {"gatekeeper-connections": 1, "max-children": 6, "auth-failure-delay-seconds": 0}
    with doors.standalone(site, settings=settings) as door:
        for password in (canary, canary + "wrong"):
            wire = door.connect()
            assert wire.line().startswith(b"+OK")
            wire.ask("USER bert")
            wire.ask(f"PASS {password}")
            wire.ask("QUIT")
            wire.close()
        before = set(children_of(door.process.pid))
        poll(lambda: use_up(door) or set(children_of(door.process.pid)) - before, "a new one")
        wire = door.connect()
        wire.login("anna")
        needle = (canary[:60].encode(), canary[-60:].encode())
        for pid in (door.process.pid, *children_of(door.process.pid)):
            assert not any(part in memory_of(pid) for part in needle)
        assert any(b"127.0.0.1" in memory_of(pid) for pid in [door.process.pid])  # it is read
        assert wire.ask("QUIT").startswith(b"+OK")


def use_up(door):
    """Let a gatekeeper serve somebody, and be replaced."""
    wire = door.connect()
    assert wire.line()
    wire.ask("QUIT")
    wire.close()
    return False


def memory_of(pid):
    """All that a process can read of its own."""
    parts = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            where, rights = line.split()[:2]
            if rights.startswith("r") and "[v" not in line:
                start, end = (int(number, 16) for number in where.split("-"))
                memory.seek(start)
                try:
                    parts.append(memory.read(end - start))
                except OSError:
                    continue
    return b"".join(parts)
