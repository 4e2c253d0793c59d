"""What a reload does to those who are connected, and to addresses that change."""

import os
import signal
import socket
from contextlib import suppress

import pytest

import doors
from mailsite import PATIENCE, poll
from spools import mbox
from test_listener import children_of
from test_listener_signals import free_port, refuses, reload, session

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")


def waiting_at(port):
    """How many connections nobody has accepted yet: the last step of making one is the kernel's,
    and may come after connect(2)."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    ours = [row for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"]
    return sum(int(row[4].partition(":")[2], 16) for row in ours)


def test_who_waits_at_an_address_that_goes_is_served(site):
    with doors.standalone(site, settings={"max-children": 64}) as door:
        os.kill(door.process.pid, signal.SIGSTOP)
        wires = [door.connect() for _ in range(40)]
        poll(lambda: waiting_at(door.port) == 40, "all of them to wait")
        site.configure({"listen-address": f"127.0.0.1:{free_port()}"})
        os.kill(door.process.pid, signal.SIGHUP)
        os.kill(door.process.pid, signal.SIGCONT)
        assert {wire.line()[:3] for wire in wires} == {b"+OK"}
        poll(lambda: refuses(door.port), "the address to go")


@pytest.mark.parametrize("there_and_back", [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")])
def test_an_address_may_become_one_that_has_it_in_it(site, there_and_back):
    site.add("anna", SPOOL)
    first, second = there_and_back
    with doors.standalone(site, host=first) as door:
        door.host = "127.0.0.1"
        for host in (second, first, second):
            site.configure({"listen-address": f"{host}:{door.port}"})
            reload(door, "reload: the configuration is read again")
            assert session(door, "anna") == ""
        # And nobody else may have it now.
        with pytest.raises(OSError, match="already in use"):
            socket.create_server((second, door.port))


def test_what_a_start_refuses_a_reload_refuses(site):
    """An address and one that has it in it, both at once."""
    with doors.standalone(site) as door:
        site.configure({"listen-address": f"127.0.0.2:{door.port} 0.0.0.0:{door.port}"})
        reload(door, "kept as it was")
        assert "Address already in use" in door.logs.text()
        assert door.connect().line().startswith(b"+OK")


def test_one_that_cannot_be_bound_leaves_the_others_as_they_were(site):
    site.add("anna", SPOOL)
    with doors.standalone(site, host="0.0.0.0") as door:
        door.host = "127.0.0.1"
        site.configure({"listen-address": f"127.0.0.1:{door.port} 192.0.2.1:1110"})
        reload(door, "kept as it was")
        assert session(door, "anna") == ""
        site.configure({"listen-address": f"127.0.0.1:{door.port}"})
        reload(door, "reload: the configuration is read again")
        assert session(door, "anna") == ""


def test_less_talk_is_no_attack_of_those_who_talked_before(site):
    site.add("anna", SPOOL)
    with doors.standalone(site, settings={"log-level": "debug"}) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        site.configure({"log-level": "info"})
        reload(door)
        for _ in range(5):
            assert wire.ask("CAPA").startswith(b"+OK")
            while wire.line() != b".\r\n":
                pass
        assert "attack" not in door.logs.text()
        assert "CAPA" not in door.logs.text()
        # It talked too much for the new configuration, and is not used again.
        (busy,) = [pid for pid in children_of(door.process.pid) if wire_of(wire) in sockets(pid)]
        assert wire.ask("QUIT").startswith(b"+OK")
        poll(lambda: busy not in children_of(door.process.pid), "the old gatekeeper to go")


def test_who_waits_is_not_accused_by_a_reload_to_less_talk(site):
    settings = {"max-children": 64, "log-level": "debug"}
    with doors.standalone(site, settings=settings) as door:
        os.kill(door.process.pid, signal.SIGSTOP)
        wires = [door.connect() for _ in range(10)]
        poll(lambda: waiting_at(door.port) == 10, "all of them to wait")
        site.configure({"listen-address": f"127.0.0.1:{free_port()}", "log-level": "info"})
        os.kill(door.process.pid, signal.SIGHUP)
        os.kill(door.process.pid, signal.SIGCONT)
        for wire in wires:
            assert wire.line().startswith(b"+OK")
            assert wire.ask("QUIT").startswith(b"+OK")
        assert "attack" not in door.logs.text()


def wire_of(wire):
    """The other end of a connection, as /proc names sockets."""
    ours = wire.connection.getsockname()[1]
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if fields[2].endswith(f":{ours:04X}") and fields[3] == "01":
                return f"socket:[{fields[9]}]"
    return None


def sockets(pid):
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            continue
    return found


def test_a_hangup_sent_to_all_processes_ends_nothing(site):
    """As `killall -HUP` does."""
    site.add("anna", SPOOL)
    with doors.standalone(site) as door:
        wire, waiting = door.connect(), door.connect()
        wire.login("anna")
        assert waiting.line().startswith(b"+OK")
        for pid in (*children_of(door.process.pid), door.process.pid):
            with suppress(ProcessLookupError):  # one that recovers mailboxes ends by itself
                os.kill(pid, signal.SIGHUP)
        door.logs.wait_for("reload: the configuration is read again")
        assert wire.ask("STAT").startswith(b"+OK 2 ")
        assert waiting.ask("USER anna").startswith(b"+OK")
        assert waiting.ask("QUIT").startswith(b"+OK")


@pytest.mark.parametrize("seconds", ["2147484", "999999999"])
def test_limits_in_seconds_may_be_large(site, seconds):
    """More milliseconds than poll(2) counts."""
    site.add("anna", SPOOL)
    large = dict.fromkeys(("login-seconds", "timeout-seconds", "shutdown-seconds"), seconds)
    with doors.standalone(site, settings=large) as door:
        assert session(door, "anna") == ""
        door.process.send_signal(signal.SIGTERM)
        assert door.process.wait(PATIENCE) == 0
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")
