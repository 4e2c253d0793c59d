"""The standalone listener: limits, signals, the dead. (Logins and mail: as behind every door.)"""

import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest

import doors
from mailsite import PATIENCE, poll
from samples import MESSAGES, on_the_wire, spool_of
from spools import mbox
from tpop3d.system.privileges import MAX_DESCRIPTORS

FULL = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")


def children_of(pid):
    """Pids of the children of a process, by what they are: running or dead."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid:
            found[int(stat.parent.name)] = state
    return found


def gatekeepers_of(pid):
    """Those children of a listener that are locked in: not sessions, nor who recovers mailboxes."""
    return {one: state for one, state in children_of(pid).items() if is_locked_in(one)}


def is_locked_in(pid):
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return False  # gone meanwhile
    return f"Max open files {MAX_DESCRIPTORS} " in re.sub(" +", " ", limits)


def has_open(pid, name):
    try:
        return any(os.readlink(fd).endswith(name) for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # gone meanwhile


def greeted(wires):
    """Of these connections, those that were greeted; the others were turned away properly."""
    good = []
    for wire in wires:
        line = wire.line()
        if line.startswith(b"+OK"):
            good.append(wire)
        else:
            assert line == FULL
            assert wire.line() == b""
    return good


def greeted_or_none(door):
    wire = door.connect()
    return wire if wire.line().startswith(b"+OK") else None


def test_mail_is_served(site):
    site.add("anna", spool_of(MESSAGES))
    with doors.standalone(site) as door:
        for method in ("PASS", "APOP"):
            client = door.poplib()
            if method == "APOP":
                client.apop("anna", "secret")
            else:
                client.user("anna")
                client.pass_("secret")
            for number, message in enumerate(MESSAGES, 1):
                lines = client.retr(number)[1]
                assert b"".join(line + b"\r\n" for line in lines) == on_the_wire(message)
            client.quit()


def test_commands_sent_behind_the_login_are_not_lost_on_the_way(site):
    site.add("anna", SPOOL)
    with doors.standalone(site) as door:
        wire = door.connect()
        wire.send(b"USER anna\r\nPASS secret\r\nSTAT\r\nUIDL 1\r\nDELE 1\r\nQUIT\r\nignored")
        replies = wire.reader.read()
        assert replies.count(b"+OK") == 7
        assert replies.endswith(b"+OK goodbye\r\n")
    assert site.spool("anna").read_bytes() == mbox(b"", b"Subject: two\n\n2\n")[50:]


@pytest.mark.parametrize("limit", [1, 5, 16])
def test_of_200_clients_at_once_exactly_max_children_are_served(site, limit):
    with doors.standalone(site, settings={"max-children": limit}) as door:
        wires = [door.connect() for _ in range(200)]
        good = greeted(wires)
        assert len(good) == limit
        assert greeted([door.connect()]) == []
        # One goes, one comes: exactly.
        assert good[0].ask("QUIT").startswith(b"+OK")
        good[0].close()
        wire = poll(lambda: greeted([door.connect()]), "a free place")[0]
        assert greeted([door.connect()]) == []
        wire.close()
        # Hundreds of refusals, and not hundreds of lines: one a source and 10 seconds.
        lines = [line for line in door.logs.lines() if "connection refused" in line]
        assert len(lines) <= 2
        assert f'rip=127.0.0.1 limit="max-children ({limit})"' in lines[0]


def test_one_source_leaves_room_for_others(site):
    settings = {"max-children": 5, "max-children-per-source": "half"}
    with doors.standalone(site, host="0.0.0.0", settings=settings) as door:
        first = [door.connect() for _ in range(10)]
        assert len(greeted(first)) == 3  # half of five, rounded up
        door.host = "127.0.0.2"
        connect = socket.create_connection
        others = []
        for _ in range(5):
            connection = connect((door.host, door.port), PATIENCE, ("127.0.0.2", 0))
            others.append(doors.Wire.on(connection))
        assert len(greeted(others)) == 2
        for wire in others:
            wire.close()
        door.logs.wait_for(
            r'connection refused rip=127.0.0.1 limit="max-children-per-source \(3\)"'
        )


def test_500_connections_that_never_log_in_are_gone_after_login_seconds(site):
    site.add("anna", SPOOL)
    settings = {"max-children": 20, "login-seconds": 1}
    with doors.standalone(site, settings=settings) as door:
        wires = [door.connect() for _ in range(500)]
        good = greeted(wires)
        assert 20 <= len(good) < 500
        assert all(wire.line() == b"" for wire in good)  # in silence
        wire = poll(lambda: greeted([door.connect()]), "a free place")[0]
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        ended = [line for line in door.logs.lines() if "end=timeout" in line]
        assert len(ended) >= 20


def test_a_status_line_on_sigusr1(site):
    site.add("anna", SPOOL)
    with doors.standalone(site) as door:
        wire = door.connect()
        wire.login("anna")
        other = door.connect()
        assert other.line().startswith(b"+OK")
        door.process.send_signal(signal.SIGUSR1)
        line = door.logs.wait_for("serving ")
        assert line.endswith("serving 2 of 16 connections, 1 logged in; 2 so far")


def test_the_dead_are_buried_and_replaced(site):
    site.add("anna", SPOOL)
    with doors.standalone(site) as door:
        spares = poll(lambda: gatekeepers_of(door.process.pid), "spare gatekeepers")
        for pid in spares:
            os.kill(pid, signal.SIGSEGV)
        door.logs.wait_for(f"gatekeeper {min(spares)} was ended by signal 11")
        assert not re.search("gatekeeper .* ended by signal 9", door.logs.text())
        # Whoever came to a dying one has lost its connection; the next has not.
        wire = poll(lambda: greeted_or_none(door), "a new gatekeeper")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        # It alone has the maildrop open.
        session = [pid for pid in children_of(door.process.pid) if has_open(pid, "spool/anna")]
        assert len(session) == 1
        os.kill(session[0], signal.SIGSEGV)
        assert wire.line() == b""
        door.logs.wait_for(f"session {session[0]} was ended by signal 11")
        poll(lambda: "Z" not in children_of(door.process.pid).values(), "no zombies")
        assert greeted([door.connect()])


def test_a_gatekeeper_that_dies_with_a_client_ends_that_connection_only(site):
    with doors.standalone(site, settings={"max-children": 2}) as door:
        poll(lambda: len(gatekeepers_of(door.process.pid)) == 2, "spares")
        before = set(gatekeepers_of(door.process.pid))
        wire, other = door.connect(), door.connect()
        assert wire.line().startswith(b"+OK")
        assert other.line().startswith(b"+OK")
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert wire.line().startswith(b"-ERR [SYS/TEMP]")
        assert wire.line() == b""
        poll(lambda: greeted([door.connect()]), "a free place")
        # The first of the two deaths makes room; the second may be noticed after that.
        poll(lambda: door.logs.text().count("end=error") >= 2, "both to be logged")
        assert door.logs.text().count("end=error") == 2


def test_a_gatekeeper_that_is_told_to_end_takes_no_further_connection(site):
    """As an administrator does, or whoever frees memory in need: others take its place."""
    with doors.standalone(site) as door:
        poll(lambda: len(gatekeepers_of(door.process.pid)) == 4, "spares")
        before = set(gatekeepers_of(door.process.pid))
        for pid in before:
            os.kill(pid, signal.SIGTERM)
        poll(lambda: not before & set(children_of(door.process.pid)), "them to go")
        assert who_greets(door, 8)
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        busy_one = the_busy_one(door.process.pid)
        os.kill(busy_one, signal.SIGTERM)
        assert wire.line() == b""
        poll(lambda: busy_one not in children_of(door.process.pid), "it to go")
        assert greeted([door.connect()])
        assert "gatekeeper" not in door.logs.text()


def test_a_session_that_dies_before_its_gatekeeper_is_heard_accuses_nobody(site):
    site.add("anna", SPOOL)
    with doors.standalone(site, settings={"auth-failure-delay-seconds": 0}) as door:
        wire = door.connect()
        wire.line()
        wire.ask("USER anna")
        wire.send(b"PASS secret\r\n")
        session = poll(
            lambda: [p for p in children_of(door.process.pid) if has_open(p, "spool/anna")], "it"
        )
        os.kill(door.process.pid, signal.SIGSTOP)
        assert wire.line().startswith(b"+OK")
        os.kill(session[0], signal.SIGKILL)
        os.kill(door.process.pid, signal.SIGCONT)
        door.logs.wait_for("end=error")
        assert "attack" not in door.logs.text()
        assert greeted([door.connect()])


def test_a_gatekeeper_is_replaced_after_so_many_connections(site):
    with doors.standalone(site, settings={"gatekeeper-connections": 2}) as door:
        assert len(who_greets(door, 12)) == 6
        assert not re.search("gatekeeper .* ended", door.logs.text())


def test_a_greeting_needs_no_fork(site):
    with doors.standalone(site) as door:
        poll(lambda: len(gatekeepers_of(door.process.pid)) == 4, "spare gatekeepers")
        before = set(gatekeepers_of(door.process.pid))
        assert who_greets(door, 12) <= before
        assert set(gatekeepers_of(door.process.pid)) == before


def who_greets(door, times):
    """The gatekeepers of so many connections, one after the other."""
    greeters = set()
    for _ in range(times):
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        greeters.add(the_busy_one(door.process.pid))
        assert wire.ask("QUIT").startswith(b"+OK")
        wire.close()
        poll(lambda: not busy(door.process.pid), "it to be free")
    return greeters


def the_busy_one(listener):
    """The pid of the gatekeeper that has greeted. A new one looks busy, too, until it has closed
    what it inherited: it is waited for until there is one alone."""
    return poll(lambda: len(found := busy(listener)) == 1 and found, "one busy gatekeeper")[0]


def busy(listener):
    """The gatekeepers that have a connection: a socket besides the channel."""
    found = []
    for pid in children_of(listener):
        sockets = set()
        with suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(os.readlink(fd))
        if sum(name.startswith("socket:") for name in sockets) > 1:
            found.append(pid)
    return found


def test_without_room_for_a_further_process_the_listener_lives_on(site, monkeypatch):
    """fork(2) fails while a file exists; nobody can log in meanwhile, and everybody can then."""
    site.add("anna", SPOOL)
    site.configure({"auth-failure-delay-seconds": 0})
    full = site.path / "full"
    code = (
        "import os, sys\n"
        "real = os.fork\n"
        "def fork():\n"
        f"    if os.path.exists({str(full)!r}):\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return real()\n"
        "os.fork = fork\n"
        "from tpop3d.cli import main\n"
        "raise SystemExit(main(sys.argv[1:]))\n"
    )
    monkeypatch.setattr(doors, "SERVER", [doors.SERVER[0], "-c", code])
    with doors.standalone(site) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        full.touch()
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"-ERR [SYS/TEMP]")
        door.logs.wait_for("no further process: Resource temporarily unavailable")
        # The spares are served still; whoever comes after them is sent away.
        others = [door.connect() for _ in range(6)]
        assert {other.line()[:10] for other in others} == {b"+OK POP3 s", b"-ERR [SYS/"}
        door.logs.wait_for("no further gatekeeper: Resource temporarily unavailable")
        full.unlink()
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert poll(lambda: greeted_or_none(door), "a new gatekeeper")
