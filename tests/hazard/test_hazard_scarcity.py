"""Descriptors, processes and patience run out: everybody gets an answer, and the log one line."""

import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

import doors
from authkit import config_of, foreign_driver
from mailsite import PATIENCE, need, poll
from spools import mbox
from tpop3d.listener.connections import Connections
from tpop3d.listener.event_loop import Loop
from tpop3d.privsep import gatekeeper
from tpop3d.system.privileges import Sandbox

SPOOL = mbox(b"Subject: one\n\n1\n")
SLOW = """
import time
from tpop3d.auth.driver import Verdict
class Driver:
    directives = {}
    checks_apop = False
    def __init__(self, settings): pass
    def authenticate(self, login):
        time.sleep(float(login.local_part))
        return Verdict.no("too late")
"""


@pytest.fixture
def slow(site, monkeypatch):
    """A driver that takes as many seconds as the name says."""
    packages = site.path / "packages"
    packages.mkdir()
    environment = foreign_driver(packages, "slow", SLOW)
    monkeypatch.setitem(doors.ENVIRONMENT, "PYTHONPATH", environment["PYTHONPATH"])
    site.configure({"auth-slow-enable": "yes", "auth-failure-delay-seconds": 0})
    return site


def test_with_few_descriptors_everybody_is_answered_or_waits(site, monkeypatch):
    site.add("anna", SPOOL)
    limited = [need("prlimit"), "--nofile=40:40", *doors.SERVER]
    monkeypatch.setattr(doors, "SERVER", limited)
    with doors.standalone(site, settings={"max-children": 100}) as door:
        door.logs.wait_for("may need 264 open files, and 40 are allowed: raise LimitNOFILE=")
        wires = [door.connect() for _ in range(60)]
        wires[0].connection.settimeout(PATIENCE)
        assert wires[0].line().startswith(b"+OK")
        door.logs.wait_for("cannot accept|no further")
        time.sleep(1)  # in which a flood would come
        assert len(door.logs.lines()) < 20
        for wire in wires:
            wire.close()
        wire = poll(lambda: greeted(door), "room")
        assert wire.ask("USER anna").startswith(b"+OK")
        answer = wire.ask("PASS secret")
        assert answer.startswith(b"+OK"), door.logs.text()


def greeted(door):
    wire = door.connect()
    return wire if wire.line().startswith(b"+OK") else None


@pytest.mark.parametrize("open_door", [doors.standalone, doors.inetd])
def test_descriptors_may_have_numbers_that_select_does_not_know(site, monkeypatch, open_door):
    """select(2) ends at 1023, and a listener with many clients is far beyond that."""
    site.add("anna", SPOOL)
    code = "import os, resource, sys\n"
    code += "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
    code += "many = [os.open(os.devnull, os.O_RDWR) for _ in range(1100)]\n"
    code += "from tpop3d.cli import main\nraise SystemExit(main(sys.argv[1:]))"
    monkeypatch.setattr(doors, "SERVER", [doors.SERVER[0], "-c", code])
    site.configure({"auth-failure-delay-seconds": 0})
    with open_door(site) as door:
        wire = door if open_door is doors.inetd else door.connect()
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS wrong").startswith(b"-ERR [AUTH]")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK"), door.logs.text()
        assert wire.ask("QUIT").startswith(b"+OK")
        assert "internal error" not in door.logs.text()


def test_who_cannot_fork_tries_again_once_however_often_it_failed(monkeypatch):
    """Or each failure would become a timer of its own that goes on failing."""
    loop = Loop()
    connections = Connections(config_of(), Sandbox(None, 0, ""), loop)

    def fail(sandbox):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(gatekeeper, "start", fail)
    for _ in range(10):
        connections.fill()
    assert len(loop._actions) == 1
    connections._gatekeepers._fill_now()
    assert len(loop._actions) == 2  # the one before is due no more, and this is the next


def test_the_limit_on_open_files_is_raised_as_far_as_is_needed(site, monkeypatch):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    monkeypatch.setattr(doors, "SERVER", [need("prlimit"), f"--nofile=64:{hard}", *doors.SERVER])
    with doors.standalone(site, settings={"max-children": 200}) as door:
        wires = [door.connect() for _ in range(200)]
        assert all(wire.line().startswith(b"+OK") for wire in wires)
        limits = Path(f"/proc/{door.process.pid}/limits").read_text()
        (line,) = [one for one in limits.splitlines() if one.startswith("Max open files")]
        assert line.split()[3] == "464"
        assert "open files" not in door.logs.text()


def test_a_gatekeeper_that_cannot_start_does_not_fill_the_log(site):
    """A file stands where its empty directory was, and all of them die at once."""
    with doors.standalone(site) as door:
        empty = site.state / "empty"
        if not empty.exists():
            pytest.skip("only root locks gatekeepers in")
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        empty.rmdir()
        empty.touch()
        for pid in [int(p) for p in tree(door.process.pid)]:
            with suppress(ProcessLookupError):  # one that recovers mailboxes ends by itself
                os.kill(pid, signal.SIGKILL)
        door.logs.wait_for("gatekeepers cannot be locked in: Not a directory")
        time.sleep(2)
        assert len(door.logs.lines()) < 60
        empty.unlink()
        poll(lambda: greeted(door), "a gatekeeper")


def tree(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_slow_driver_makes_no_gatekeeper_an_attacker(slow):
    """It answers when the time to log in is long over; the client still hears it."""
    code = "from tpop3d.doors import per_connection as single\nsingle.GRACE = 0.3\n"
    code += "import sys\nfrom tpop3d.cli import main\nraise SystemExit(main(sys.argv[1:]))"
    server = doors.SERVER
    slow.configure({"login-seconds": 2})
    doors.SERVER = [server[0], "-c", code]
    try:
        with doors.inetd(slow) as wire:
            assert wire.line().startswith(b"+OK")
            assert wire.ask("USER 3").startswith(b"+OK")
            assert wire.ask("PASS x").startswith(b"-ERR [AUTH]")
            wire.logs.wait_for("session .*end=timeout")
            assert "attack" not in wire.logs.text()
    finally:
        doors.SERVER = server


def test_sigterm_ends_a_login_that_is_being_decided(slow):
    slow.configure({"auth-timeout-seconds": 3600})
    with doors.inetd(slow) as wire:
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER 3600").startswith(b"+OK")
        wire.send(b"PASS x\r\n")
        poll(lambda: len(slow.processes()) == 3, "the driver's process")
        wire.process.terminate()
        assert wire.line() == b""
        wire.logs.wait_for("session .*end=signal")
    with doors.standalone(slow, settings={"shutdown-seconds": 1}) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        before = set(slow.processes())  # one of them recovers mailboxes, and ends
        assert wire.ask("USER 3600").startswith(b"+OK")
        wire.send(b"PASS x\r\n")
        poll(lambda: len(set(slow.processes()) - before) >= 2, "the driver's process")
        door.process.terminate()
        assert door.process.wait(PATIENCE) == 0
    assert slow.processes() == []


def test_a_driver_does_not_outlive_its_time_when_nobody_waits_for_it_any_more(slow):
    """Whoever would have cut it off has been killed."""
    with doors.standalone(slow, settings={"auth-timeout-seconds": 1}) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER 25").startswith(b"+OK")
        before = set(slow.processes())
        wire.send(b"PASS x\r\n")
        attempt, driver = poll(lambda: two_more(slow, before), "attempt and driver")
        os.kill(attempt, signal.SIGKILL)
        assert wire.line().startswith(b"-ERR [SYS/TEMP]")
        poll(lambda: driver not in slow.processes(), "the driver's end")


def two_more(site, before):
    pids = sorted(set(site.processes()) - before)
    return pids if len(pids) == 2 else None
