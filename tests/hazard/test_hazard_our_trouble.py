"""What is wrong with the server, or with its machine, is told as that: nobody has attacked, and the
client is to come again."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import doors
import tlskit
from mailsite import PATIENCE, need, poll
from spools import mbox

SORRY = b"-ERR [SYS/TEMP] internal error\r\n"
# A gatekeeper that dies before it has its order, and a monitor that is late with that.
DIES_AT_ONCE = """
import os, sys
from tpop3d.privsep import gatekeeper
gatekeeper.confine = lambda *_: os._exit(3)
start = gatekeeper.start
def start_and_wait(sandbox):
    pid, channel = start(sandbox)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid, channel
gatekeeper.start = start_and_wait
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""
MAX_FILES = 30  # with which a session can be served


def children_of(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_fair(text):
    """Does the log blame nobody for what is ours?"""
    return not any(word in text for word in ("attack", "tls failed", "login failed"))


class TestAGatekeeperThatIsKilled:
    """As the kernel does it when memory is short."""

    def test_inetd(self, site):
        with doors.inetd(site) as wire:
            assert wire.line().startswith(b"+OK")
            (gatekeeper,) = children_of(wire.process.pid)
            os.kill(gatekeeper, signal.SIGKILL)
            assert wire.reader.read() == SORRY
            wire.logs.wait_for(f"gatekeeper {gatekeeper} was ended by signal 9")
            wire.logs.wait_for("session .*end=error")
            assert is_fair(wire.logs.text())

    def test_listener(self, site):
        with doors.standalone(site) as door:
            wire = door.connect()
            assert wire.line().startswith(b"+OK")
            for gatekeeper in children_of(door.process.pid):
                with suppress(ProcessLookupError):  # one that recovers mailboxes ends by itself
                    os.kill(gatekeeper, signal.SIGKILL)
            assert wire.reader.read() == SORRY
            door.logs.wait_for("session .*end=error")
            assert is_fair(door.logs.text())
            again = door.connect()
            assert again.line().startswith(b"+OK")

    def test_before_it_has_its_order(self, site, monkeypatch):
        monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", DIES_AT_ONCE])
        with doors.inetd(site) as wire:
            assert wire.reader.read() == SORRY
            wire.logs.wait_for(r"gatekeeper \d+ ended with status 3")
            assert is_fair(wire.logs.text())


class TestFewDescriptors:
    """With each number of them that is too small, and with the first that is enough."""

    def serve(self, site, monkeypatch, files):
        """What a client gets that logs in; and the log."""
        limit = f"--nofile={files}:{files}"
        monkeypatch.setattr(doors, "SERVER", [need("prlimit"), limit, *self.server])
        with doors.inetd(site) as wire:
            said = wire.line()
            if said.startswith(b"+OK"):
                wire.send(b"USER anna\r\nPASS secret\r\n")
                said = wire.line() and wire.line()
                if said.startswith(b"+OK"):
                    wire.ask("QUIT")
            wire.close()
            wire.process.wait(PATIENCE)
            return said, wire.logs.text()

    def test_inetd(self, site, monkeypatch):
        self.server = doors.SERVER
        site.add("anna", mbox(b"Subject: one\n\n1\n"))
        troubled = 0
        for files in range(4, MAX_FILES):
            said, log = self.serve(site, monkeypatch, files)
            assert is_fair(log), (files, log)
            assert b"[AUTH]" not in said, (files, log)
            if said.startswith(b"+OK maildrop has 1 "):
                break
            if " internal error: " in log or " gatekeeper" in log:
                troubled += 1
                assert said.startswith(b"-ERR [SYS/TEMP]"), (files, said, log)
        assert files < MAX_FILES - 1
        assert troubled


def test_a_relay_that_is_killed_is_no_failure_of_the_clients(site):
    tlskit.secure(site)
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        assert wire.ask("STLS").startswith(b"+OK")
        poll(lambda: len(children_of(wire.process.pid)) == 2, "gatekeeper and relay")
        os.kill(children_of(wire.process.pid)[1], signal.SIGKILL)
        assert wire.reader.read() == b""  # there is nothing that it could read
        wire.logs.wait_for('tls trouble rip=unix reason="the relay has died"')
        assert is_fair(wire.logs.text())


def test_a_listener_that_is_ended_blames_nobody_who_has_not_come_to_tls(site):
    tlskit.secure(site)
    with doors.standalone(site, settings={"shutdown-seconds": 1}) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        assert wire.ask("STLS").startswith(b"+OK")
        door.process.terminate()
        assert wire.reader.read() == b""
        door.logs.wait_for("session .*end=signal")
        assert is_fair(door.logs.text())
