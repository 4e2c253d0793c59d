"""SIGTERM at any moment: nothing is lost, no lock stays."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import doors
from mailsite import PATIENCE, need, poll
from spools import mbox, messages_of

MESSAGES = [b"Subject: %d\n\n%b\n" % (n, b"x" * 500) for n in range(200)]
SPOOL = mbox(*MESSAGES)
WITHOUT_FIRST = b"".join(messages_of(SPOOL)[1:])


def end_by_signal(wire, number=signal.SIGTERM):
    wire.process.send_signal(number)
    assert wire.process.wait(PATIENCE) == 0
    wire.logs.wait_for("session .*end=signal")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_before_login(site, inetd, number):
    assert inetd.line().startswith(b"+OK")
    end_by_signal(inetd, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_after_login_nothing_is_deleted(site, inetd, number):
    site.add("anna", SPOOL)
    inetd.login("anna")
    assert inetd.ask("DELE 1").startswith(b"+OK")
    end_by_signal(inetd, number)
    assert site.spool("anna").read_bytes() == SPOOL


def test_while_a_client_does_not_read(site, inetd):
    site.add("anna", mbox(b"x" * 20_000_000))
    inetd.login("anna")
    inetd.send(b"DELE 1\r\nRSET\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
    assert inetd.line().startswith(b"+OK")
    end_by_signal(inetd)
    assert site.spool("anna").stat().st_size > 20_000_000


def test_while_it_waits_for_a_lock(site, inetd):
    site.add("anna", SPOOL)
    site.configure({"lock-timeout-seconds": 3600})
    dotlock = Path(f"{site.spool('anna')}.lock")
    dotlock.write_text(f"{os.getpid()}\n")
    assert inetd.line().startswith(b"+OK")
    assert inetd.ask("USER anna").startswith(b"+OK")
    inetd.send(b"PASS secret\r\n")
    session_lock = poll(lambda: list(site.state.glob("*/lock")), "the session lock")
    assert session_lock
    inetd.process.send_signal(signal.SIGTERM)
    inetd.process.wait(PATIENCE)
    assert dotlock.exists()
    assert site.spool("anna").read_bytes() == SPOOL


BIG = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"y" * 900_000) for n in range(8)])


def is_in(spool):
    """Has the expunge come as far as the spool, whose first message becomes another?"""
    with spool.open("rb") as file:
        return file.read(1000) != BIG[:1000]


def is_journaling(spool):
    return list(spool.parent.parent.glob("state/*/journal*")) and not is_in(spool)


def terminate(wire, server):
    os.kill(server, signal.SIGTERM)
    assert wire.line().startswith(b"+OK")


def hang_up(wire, server):
    wire.close()


@pytest.mark.parametrize(("event", "end"), [(terminate, "quit"), (hang_up, "eof")])
@pytest.mark.parametrize("moment", [is_journaling, is_in])
def test_during_the_expunge_it_is_finished_first(site, monkeypatch, moment, event, end):
    """Each write is slowed down by strace, and the event comes between two of them."""
    site.add("anna", BIG)
    path, trace = site.spool("anna"), site.path / "trace"
    slow = [need("strace"), "-f", "-o", str(trace), "-e", "trace=pwrite64"]
    slow += ["-e", "inject=pwrite64:delay_enter=100000"]
    monkeypatch.setattr(doors, "SERVER", [*slow, *doors.SERVER])
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert wire.ask("DELE 1").startswith(b"+OK")
        wire.send(b"QUIT\r\n")
        poll(lambda: moment(path), "the expunge")
        assert path.stat().st_size == len(BIG)
        (server,) = [pid for pid in site.processes() if pid != wire.process.pid]
        event(wire, server)
        wire.process.wait(PATIENCE)
        wire.logs.wait_for(f"session .*user=anna .*dele=1 left=7 .*end={end}")

    assert ("SIGTERM" in trace.read_text()) == (event is terminate)
    assert path.read_bytes() == b"".join(messages_of(BIG)[1:])
    assert_nothing_is_left(site)


def assert_nothing_is_left(site):
    """No dotlock, and no journal."""
    assert not list(site.spools.glob("*.lock"))
    assert not list(site.state.glob("*/journal*"))


def test_at_a_random_moment_the_spool_is_the_old_or_the_new_one(site):
    site.add("anna", SPOOL)
    path = site.spool("anna")
    random.seed(1)
    outcomes = set()
    for _ in range(40):
        path.write_bytes(SPOOL)
        command = [*doors.SERVER, "--inetd", "-f", str(site.conf)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=doors.ENVIRONMENT,
        ) as process:
            process.stdin.write(b"USER anna\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n")
            process.stdin.flush()
            process.stdout.readline()  # the greeting: from here on signals are caught
            # Not a wait for something: the moment is what is tried out.
            time.sleep(random.choice([0, random.uniform(0, 0.01), random.uniform(0, 0.06)]))
            process.send_signal(signal.SIGTERM)
        left = path.read_bytes()
        assert left in (SPOOL, WITHOUT_FIRST)
        outcomes.add(left)
        assert_nothing_is_left(site)
    assert len(outcomes) == 2, "the moments were all early, or all late"
