"""The listener with TLS: keyholder and relays come, go, die and lie; no connection minds."""

import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

import doors
import tlskit
from mailsite import IS_ROOT, PATIENCE, poll
from spools import mbox
from test_listener import children_of, greeted_or_none
from test_listener_signals import reload
from tpop3d.listener.relays import SPARES

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="nobody else may look at relays")

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")
HOLDS_OPENSSL = "/libssl"


def keyholders(door):
    """Pids of the listener's children that have OpenSSL."""
    return [pid for pid in children_of(door.process.pid) if HOLDS_OPENSSL in maps_of(pid)]


def maps_of(pid):
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def keeper_of(door):
    (pid,) = keyholders(door)
    return pid


def relays_of(pid):
    return {one for one, state in children_of(pid).items() if state != "Z"}


@pytest.fixture
def secure(site):
    site.add("anna", SPOOL)
    site.add("bert", SPOOL)
    tlskit.secure(site)
    return site


def secured(door, user="anna"):
    """Somebody who has logged in over TLS."""
    wire = door.connect()
    assert wire.line().startswith(b"+OK")
    tlskit.stls(wire)
    assert wire.ask(f"USER {user}").startswith(b"+OK")
    assert wire.ask("PASS secret").startswith(b"+OK")
    return wire


def finish(wire, site, user="anna"):
    """The session has been well all along: it removes a message."""
    assert wire.ask("STAT").startswith(b"+OK 2 ")
    assert wire.ask("DELE 1").startswith(b"+OK")
    assert wire.ask("QUIT").startswith(b"+OK")
    assert wire.line() == b""
    wire.close()
    poll(lambda: site.spool(user).read_bytes() == SPOOL[len(SPOOL) // 2 :], "the removal")


def works(door, site, user="bert"):
    finish(secured(door, user), site, user)


def test_each_connection_has_a_relay_of_its_own(secure):
    with doors.standalone(secure) as door:
        keyholder = keeper_of(door)
        poll(lambda: len(relays_of(keyholder)) == SPARES, "those that wait")
        wires = [secured(door, user) for user in ("anna", "bert")]
        poll(lambda: len(relays_of(keyholder)) == SPARES + 2, "one for each, and those that wait")
        for wire, user in zip(wires, ("anna", "bert"), strict=True):
            finish(wire, secure, user)
        poll(lambda: len(relays_of(keyholder)) == SPARES, "those that wait")


def test_a_keeper_that_was_killed_is_replaced(secure):
    with doors.standalone(secure) as door:
        wire, first = secured(door), keeper_of(door)
        os.kill(first, signal.SIGKILL)
        door.logs.wait_for("the process that has the private keys has died")
        # Meanwhile nobody is promised what cannot be.
        other = door.connect()
        assert other.line().startswith(b"+OK")
        assert other.ask("STLS").startswith((b"-ERR", b"+OK"))
        other.close()
        poll(lambda: keyholders(door) not in ([], [first]), "another keyholder")
        works(door, secure)
        finish(wire, secure)


def serves(pid):
    """Has a relay a connection, and a way to the session, besides its channel?"""
    names = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return len({name for name in names if name.startswith("socket:")}) == 3


def test_a_relay_that_was_killed_is_the_end_of_its_connection(secure):
    with doors.standalone(secure, settings={"max-children": 1}) as door:
        wire = secured(door)
        assert wire.ask("DELE 1").startswith(b"+OK")
        (relay,) = [pid for pid in relays_of(keeper_of(door)) if serves(pid)]
        os.kill(relay, signal.SIGKILL)
        door.logs.wait_for(r"session .*user=anna .*tls=TLSv1.3 .*end=eof")
        door.logs.wait_for(rf"relay {relay} was ended by signal 9")
        assert secure.spool("anna").read_bytes() == SPOOL
        wire.close()
        poll(lambda: greeted_or_none(door), "a free place").close()


def test_relays_that_die_while_they_wait_are_replaced(secure):
    with doors.standalone(secure) as door:
        keyholder = keeper_of(door)
        first = poll(lambda: len(relays_of(keyholder)) == SPARES and relays_of(keyholder), "relays")
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        poll(lambda: len(relays_of(keyholder) - first) == SPARES, "others")
        works(door, secure)


# Signals to all processes of the program, as people send them


def of_the_listener(door):
    own = [door.process.pid]
    for pid in own:
        own += children_of(pid)
    return own


def send_all(door, number):
    for pid in of_the_listener(door):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def test_a_hangup_ends_nothing(secure):
    with doors.standalone(secure) as door:
        wire = secured(door)
        half = door.connect()  # in the middle of a handshake
        assert half.line().startswith(b"+OK")
        assert half.ask("STLS").startswith(b"+OK")
        send_all(door, signal.SIGHUP)
        door.logs.wait_for("reload: the configuration is read again")
        tlskit.wrap(half)
        assert half.ask("CAPA").startswith(b"+OK")
        works(door, secure)
        finish(wire, secure)
        assert "internal error" not in door.logs.text()


def test_sigterm_to_all_ends_all(secure):
    with doors.standalone(secure) as door:
        wire, half, new = secured(door), door.connect(), door.connect()
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert new.line().startswith(b"+OK")
        assert half.line().startswith(b"+OK")
        assert half.ask("STLS").startswith(b"+OK")
        send_all(door, signal.SIGTERM)
        assert door.process.wait(PATIENCE) == 0
        poll(lambda: not secure.processes(), "all processes to end")
        assert wire.line() == b""
        door.logs.wait_for(r"session .*user=anna .*dele=0 .*end=(signal|eof)")
        assert secure.spool("anna").read_bytes() == SPOOL
        assert "internal error" not in door.logs.text()


def test_sessions_outlive_the_listener_and_nothing_stays_behind(secure):
    with doors.standalone(secure) as door:
        wire = secured(door)
        door.process.kill()
        door.process.wait()
        assert wire.ask_long("RETR 1")[1] == b"Subject: one\r\n\r\n1\r\n"
        assert secure.processes()
        finish(wire, secure)
        poll(lambda: not secure.processes(), "all processes to end")


# Reloads


def offers_tls(door):
    wire = door.connect()
    assert wire.line().startswith(b"+OK")
    listed = wire.ask_long("CAPA")[1]
    wire.close()
    return b"STLS\r\n" in listed


def test_tls_goes_and_comes_with_the_configuration(secure):
    with doors.standalone(secure) as door:
        before, first = secured(door), keeper_of(door)
        assert offers_tls(door)
        secure.configure({"tls-mode": "none"})
        reload(door)
        assert not offers_tls(door)
        # The keyholder goes with the last of its relays.
        assert keyholders(door) == [first]
        poll(lambda: len(relays_of(first)) == 1, "those that waited to end")
        secure.configure({"tls-mode": "stls"})
        reload(door)
        assert offers_tls(door)
        works(door, secure)
        assert len(keyholders(door)) == 2
        finish(before, secure)
        poll(lambda: len(keyholders(door)) == 1, "the first to end")
        assert keyholders(door) != [first]


def test_keys_that_cannot_be_used_change_nothing(secure):
    with doors.standalone(secure) as door:
        first = keeper_of(door)
        secure.configure({"tls-private-key": secure.path / "server.pem", "max-children": 1})
        reload(door, "the configuration is kept as it was")
        assert "server.pem: holds no private key; tls-private-key must name" in door.logs.text()
        assert keeper_of(door) == first
        waiting = secured(door)  # and max-children is what it was
        works(door, secure)
        finish(waiting, secure)


# Relays in somebody else's hands

START = """
import os, struct, sys, time, _socket
from tpop3d.tls import relay
from tpop3d.listener import relays as doors_relays
from tpop3d.tls.relay_channel import FAILED, READY, SECURED

def evil(order, channel, context, wakeup):
    raw = channel._socket
    inner = _socket.socket(fileno=order.fds[2])
{body}
    time.sleep(60)

relay._serve = evil
{more}
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""
SECURES = "channel.tell(SECURED, 'TLSv1.3 NONE')"
LIES = {
    "garbage": ("raw.send(b'X' + os.urandom(99))", "an impossible message of a relay"),
    "a descriptor": (
        "raw.sendmsg([b'R'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack('i', 0))])",
        "an impossible message of a relay",
    ),
    "a line for the log": (
        "raw.send(b'Fx\\nlogin user=root')", "an impossible message of a relay",
    ),
    "no kind": ("raw.send(b'O')", "no known kind"),
    "TLS twice": (f"{SECURES}\n{SECURES}", "TLS begins again"),
    "one failure upon the other": (
        f"{SECURES}\nfor n in range(99): channel.tell(FAILED, 'x')", "TLS fails again",
    ),
}  # fmt: skip


@pytest.fixture
def listen(secure, monkeypatch):
    """Start a listener whose relays do this with each connection."""
    stack = []

    def start(body, more="", **settings):
        code = START.format(body=textwrap.indent(body, "    "), more=more)
        monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", code])
        settings = {key.replace("_", "-"): value for key, value in settings.items()}
        manager = doors.standalone(secure, settings={"max-children": 1} | settings)
        stack.append(manager)
        return manager.__enter__()

    yield start
    for manager in stack:
        manager.__exit__(None, None, None)


def hands(door):
    """A connection that is a relay's from now on."""
    wire = door.connect()
    assert wire.line().startswith(b"+OK")
    assert wire.ask("STLS").startswith(b"+OK")
    return wire


@pytest.mark.parametrize("lie", LIES)
def test_one_that_lies_is_ended_with_its_connection(listen, lie):
    body, reason = LIES[lie]
    door = listen(body)
    wire = hands(door)
    line = door.logs.wait_for("attack ")
    assert "attack serving=127.0.0.1 relay=" in line
    assert reason in line
    assert wire.line() == b""
    poll(lambda: greeted_or_none(door), "a free place")
    assert "user=root" not in door.logs.text()
    assert door.logs.text().count("tls failed") <= 1


def test_one_that_is_silent_is_ended_in_time(listen):
    door = listen("pass", more="import tpop3d.listener.connections as c; c.GRACE = 0.2",
                  login_seconds=1)  # fmt: skip
    wire = hands(door)
    assert "the relay does not answer" in door.logs.wait_for("tls trouble rip=127.0.0.1")
    assert wire.line() == b""
    poll(lambda: greeted_or_none(door), "a free place")


def test_one_that_dies_at_once_ends_its_connection(listen):
    door = listen("os._exit(3)")
    wire = hands(door)
    assert wire.line() == b""
    assert "the relay has died" in door.logs.wait_for("tls trouble rip=127.0.0.1")
    door.logs.wait_for(r"relay \d+ ended with status 3")
    poll(lambda: greeted_or_none(door), "a free place")


def test_one_behind_which_nobody_is_secured_gets_no_password(listen):
    """What it says in the clear is the client's word: whoever has the relay has the client."""
    door = listen(f"{SECURES}\ninner.send(b'USER anna\\r\\nPASS wrong\\r\\nQUIT\\r\\n')\n"
        "while inner.recv(999): pass\nos._exit(0)",
                  auth_failure_delay_seconds=0)  # fmt: skip
    hands(door)
    door.logs.wait_for("login failed .*user=anna .*tls=TLSv1.3 cipher=NONE")


def test_relays_that_die_at_once_are_not_forked_in_a_fast_loop(listen):
    """Once, and then when it is time again: which here it never is."""
    door = listen(
        "pass", more="relay._await_order = lambda *_: os._exit(3)\ndoors_relays.RETRY = 1e6"
    )
    died = r"ended with status 3"
    door.logs.wait_for(died)
    poll(lambda: door.logs.text().count(died) == SPARES, "both to die")
    assert greeted_or_none(door)
    assert door.logs.text().count(died) == SPARES
