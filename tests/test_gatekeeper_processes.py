"""What each process may do, as the kernel sees it: in every door, root reads no network octet."""

import os
import select
from contextlib import contextmanager
from pathlib import Path

import pytest

import doors
from mailsite import IS_ROOT, MAIL_USER, poll
from spools import mbox

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root has privileges to separate")

NOBODY = "65534"


class Process:
    """A process as /proc shows it."""

    def __init__(self, pid):
        self.pid = pid
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        self.status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        self.parent = int(self.status["PPid"])
        self.root = os.readlink(f"/proc/{pid}/root")
        self.files = {int(fd.name): os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
        self.limits = {line[:26].strip(): line[26:].split()[:2] for line in limits}

    @property
    def is_root(self):
        return "0" in self.status["Uid"].split()

    def reads_client(self, inode):
        return f"socket:[{inode}]" in self.files.values()


@contextmanager
def inetd(site):
    with doors.inetd(site) as wire:
        yield wire, [wire.process.pid]


@contextmanager
def listener(site):
    with doors.standalone(site, settings={"max-children": 1}) as door:
        wire = door.connect()
        yield wire, [door.process.pid]


DOORS = {"inetd": inetd, "listener": listener}


def tree(pid):
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *[found for child in children for found in tree(int(child))]]


@pytest.fixture(params=DOORS)
def served(request, site):
    site.add("anna", mbox(b"Subject: x\n\nx\n"))
    with DOORS[request.param](site) as (wire, pids):
        wire.door = request.param
        wire.pid = pids[0]
        yield wire


def processes(wire):
    return [Process(pid) for pid in tree(wire.pid)]


def test_before_login_only_a_locked_in_process_speaks_with_the_client(served):
    assert served.line().startswith(b"+OK")
    gatekeepers = [one for one in processes(served) if not one.is_root]
    assert len(gatekeepers) == 1
    (one,) = gatekeepers
    assert one.status["Uid"].split() == [NOBODY] * 4
    assert one.status["Gid"].split() == [NOBODY] * 4
    assert one.status["Groups"].split() == []
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(one.status[capabilities], 16) == 0
    assert one.status["NoNewPrivs"] == "1"
    assert one.root.endswith("/state/empty")
    assert os.listdir(f"/proc/{one.pid}/root/") == []
    assert os.stat(f"/proc/{one.pid}/root").st_uid == 0
    assert one.limits["Max file size"] == ["0", "0"]
    assert one.limits["Max processes"] == ["0", "0"]
    assert one.limits["Max core file size"] == ["0", "0"]
    # Not dumpable: its memory belongs to root, whoever it runs as.
    assert os.stat(f"/proc/{one.pid}/mem").st_uid == 0
    # stdin, stdout and stderr are nobody's; besides: the channel, the signals, the connection.
    own = {fd: name for fd, name in one.files.items() if fd > 2}
    assert {one.files[fd] for fd in (0, 1, 2)} == {"/dev/null"}
    assert sorted(name.split(":")[0] for name in own.values() if "[" in name) == sorted(
        ["pipe", "pipe"] + ["socket"] * (len(own) - 2)
    )
    assert len(own) <= 6


def test_the_monitor_reads_nothing_from_the_client(served, site):
    """Shown by what it waits for: octets that only the monitor could read stay unread."""
    assert served.line().startswith(b"+OK")
    (gatekeeper,) = [one for one in processes(served) if not one.is_root]
    os.kill(gatekeeper.pid, 19)  # SIGSTOP
    try:
        served.send(b"QUIT\r\n")
        assert not select.select([served.connection], [], [], 0.5)[0]
    finally:
        os.kill(gatekeeper.pid, 18)  # SIGCONT
    assert served.line().startswith(b"+OK")


def test_after_login_the_session_is_the_mailboxs_user_for_good(served):
    served.login("anna")
    found = [one for one in processes(served) if "spool/anna" in " ".join(one.files.values())]
    assert len(found) == 1
    (one,) = found
    uid, gid = str(MAIL_USER.pw_uid), str(MAIL_USER.pw_gid)
    assert one.status["Uid"].split() == [uid] * 4
    assert one.status["Gid"].split() == [gid] * 4
    assert one.status["Groups"].split() == [gid]
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(one.status[capabilities], 16) == 0
    assert os.stat(f"/proc/{one.pid}/mem").st_uid == 0
    # No listening socket, no channel, no other client: two pipes for signals, the maildrop, its
    # lock, the connection in one or two descriptors, and where the log goes.
    own = [name for fd, name in one.files.items() if fd > 2]
    assert sum("pipe:" in name for name in own) == 2
    assert sum("spool/anna" in name for name in own) == 1
    assert sum(name.endswith("/lock") for name in own) == 1
    sockets = {name for name in own if "socket:" in name}
    assert len(sockets) == 1
    assert served.ask("QUIT").startswith(b"+OK")


def test_after_login_no_gatekeeper_has_the_connection(served):
    served.login("anna")
    session = next(one for one in processes(served) if "spool/anna" in " ".join(one.files.values()))
    (connection,) = {name for fd, name in session.files.items() if fd > 2 and "socket:" in name}

    def holders():
        return [
            one.pid
            for one in processes(served)
            if one.pid != session.pid and connection in one.files.values()
        ]

    poll(lambda: holders() == [], "all others to let go of the connection")


def test_an_ordinary_user_has_the_same_processes_without_root(site):
    """As nobody, in a fork of an interpreter that is loaded already."""
    site.add("anna", mbox(b"x\n"))
    site.give_to_mail_user(site.state)
    site.give_to_mail_user(site.passwd)
    ours, theirs = os.pipe(), os.pipe()
    from tpop3d import config
    from tpop3d.doors import single
    from tpop3d.session import cell, session

    assert session
    loaded = config.load(str(site.conf))
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(MAIL_USER.pw_gid)
            os.setuid(MAIL_USER.pw_uid)
            single.serve(loaded, cell.prepare_cell(loaded), ours[0], theirs[1])
        finally:
            os._exit(0)
    os.close(ours[0])
    os.close(theirs[1])
    os.write(ours[1], b"USER anna\r\nPASS secret\r\nSTAT\r\nQUIT\r\n")
    with open(theirs[0], "rb") as replies:
        text = replies.read()
    os.close(ours[1])
    os.waitpid(pid, 0)
    assert text.count(b"+OK") == 5
