"""No octet of a client is read by root: every system call of whole sessions, in two doors."""

import re

import pytest

import doors
import tlskit
from mailsite import IS_ROOT, poll
from spools import mbox
from strace import traced
from test_listener import greeted_or_none

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root has privileges to separate")

# Whatever could read, whoever forks, and whoever changes users. A question mark: not everywhere.
READING = ("read", "readv", "pread64", "preadv", "?preadv2", "splice", "tee", "sendfile")
CALLS = ["%network", "%process", "%creds", *READING]
READS = re.compile(rf"({'|'.join(READING).replace('?', '')}|recv\w*)\((.*)")
BECOMES = re.compile(r"setresuid\((\d+), (\d+), (\d+)(?!.*= -1)")
REGAINS = re.compile(r"set(?:res|re|fs)?uid\(.*\b0\b.*\) += 0")
GREETS = re.compile(r'\w+\((\d+<[A-Z0-9-]+:\[[^]>]*)->.*"\+OK ')


@pytest.fixture
def trace(monkeypatch, site):
    site.add("anna", mbox(b"Subject: one\n\n1\n"))
    site.configure({"auth-failure-delay-seconds": 0})
    # -yy: each descriptor with what it is; -s: as much of each string as tells a greeting.
    return traced(monkeypatch, site.path, "-f", "-yy", "-s", "16", "-e", f"trace={','.join(CALLS)}")


def client_sockets(lines):
    """The servers' ends of the clients' connections: where a greeting was written to."""
    return {found[1].partition("<")[2] for _, call in lines if (found := GREETS.match(call))}


def readers(site, trace):
    """What root read from a client, when all has ended; and how many reads others did.

    A process is root until it says otherwise, and says so itself.
    """
    poll(lambda: not site.processes(), "the server and its trace to end")
    lines = trace.lines
    clients = client_sockets(lines)
    left, bad, good = set(), [], 0
    for pid, call in lines:
        became = BECOMES.match(call)
        if became and "0" not in became.groups():
            left.add(pid)
        assert not (pid in left and REGAINS.match(call)), f"root again: {call}"
        read = READS.match(call)
        if read and any(f"<{one}" in read[2] for one in clients):
            if pid in left:
                good += 1
            else:
                bad.append(call)
    return bad, good


def whole_session(wire, secure=False):
    """Everything that makes processes of ours act, with octets waiting whenever they do."""
    assert wire.line().startswith(b"+OK")
    if secure:
        tlskit.stls(wire)
    wire.send(b"XYZZY\r\nCAPA\r\nUSER anna\r\nPASS wrong\r\nUSER anna\r\nPASS secret\r\nSTAT\r\n")
    text = b"".join(iter(wire.line, b"+OK 1 19\r\n"))
    assert text.count(b"-ERR") == 2
    assert wire.ask_long("RETR 1")[1] == b"Subject: one\r\n\r\n1\r\n"
    wire.send(b"QUIT\r\nbehind the end")
    assert wire.line().startswith(b"+OK")
    if secure:
        assert wire.line() == b""  # the relay may have said it before the session ended
    wire.close()


def unfinished(wire, how):
    """A session that does not come to a login."""
    assert wire.line().startswith(b"+OK")
    wire.send(how)
    if how.endswith(b"\n"):
        wire.line()
    wire.close()


HOW = {
    "the end": b"QUIT\r\n",
    "half a line": b"USER an",
    "a wrong password": b"USER anna\r\nPASS wrong\r\nSTAT\r\n",
}


def test_the_inetd_door(site, trace):
    with doors.inetd(site) as wire:
        whole_session(wire)
    bad, good = readers(site, trace)
    assert bad == []
    assert good >= 4


@pytest.mark.parametrize("how", HOW)
def test_the_inetd_door_without_a_login(site, trace, how):
    with doors.inetd(site) as wire:
        unfinished(wire, HOW[how])
    bad, good = readers(site, trace)
    assert bad == []
    assert good >= 1


def test_the_listener(site, trace):
    with doors.standalone(site, settings={"max-children": 2}) as door:
        for number, how in enumerate(HOW.values(), 1):
            unfinished(door.connect(), how)
            # There are two places, and one of them is free from now on.
            poll(lambda: door.logs.text().count("session rip=") == number, "its end")  # noqa: B023
        whole_session(door.connect())
        door.logs.wait_for("session .*user=anna .*end=quit")
        # One that is turned away is not listened to, either.
        # (The last session has logged its end, and its place may be free a moment later.)
        inside = [poll(lambda: greeted_or_none(door), "a place") for _ in range(2)]
        assert len(inside) == 2
        outside = door.connect()
        outside.send(b"QUIT\r\n")
        assert outside.line().startswith(b"-ERR [SYS/TEMP]")
    bad, good = readers(site, trace)
    assert bad == []
    assert good >= 4 + len(HOW)


@pytest.mark.parametrize("kind", ["inetd", "listener"])
def test_nor_is_it_with_tls(site, trace, kind):
    """Neither what the client sends to a relay, nor what the relay makes of it."""
    tlskit.secure(site)
    if kind == "inetd":
        with doors.inetd(site) as wire:
            whole_session(wire, secure=True)
    else:
        with doors.standalone(site) as door:
            whole_session(door.connect(), secure=True)
            door.logs.wait_for("session .*user=anna .*tls=TLSv1.3 .*end=quit")
    bad, good = readers(site, trace)
    assert bad == []
    # The client's connection and the relay's way to the session are both known.
    kinds = {one.partition(":")[0] for one in client_sockets(trace.lines)}
    assert "UNIX-STREAM" in kinds or "UNIX" in kinds
    assert kind == "inetd" or "TCP" in kinds
    assert len(client_sockets(trace.lines)) >= 2
    assert good >= 6
