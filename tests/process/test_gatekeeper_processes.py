"""What each process may do, as the kernel sees it: in every door, root reads no network octet."""

import ctypes
import importlib.util
import os
import select
import signal
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import doors
from mailsite import IS_ROOT, MAIL_USER, PATIENCE, poll
from spools import mbox
from tpop3d.pop3.authorization import Policy
from tpop3d.privsep import gatekeeper
from tpop3d.privsep.channel import Order
from tpop3d.system.privileges import PR_SET_DUMPABLE, Sandbox

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
        self.files = {}
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                self.files[int(fd.name)] = os.readlink(fd)
        # Root's if it is not dumpable, whoever it runs as.
        self.memory_owner = os.stat(f"/proc/{pid}/mem").st_uid
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
        yield wire, wire.process.pid


def connected(open_door):
    """The same of a door that has a port."""

    @contextmanager
    def door(site):
        with open_door(site) as door:
            yield door.connect(), door.process.pid

    return door


def listener(site):
    return doors.standalone(site, settings={"max-children": 1})


def activated_listener(site):
    need_systemd_python()
    site.configure({"max-children": 1, "max-children-per-source": 0})
    return doors.activated(site)


def activated_session(site):
    need_systemd_python()
    return doors.activated(site, "--accept")


def need_systemd_python():
    # The folder of unit files is called systemd, too, and has no daemon.
    if not (importlib.util.find_spec("systemd") and importlib.util.find_spec("systemd.daemon")):
        pytest.skip("systemd-python is not installed in this Python")


DOORS = {
    "inetd": inetd,
    "xinetd": connected(doors.xinetd),
    "systemd, on stdin": connected(doors.systemd_accept),
    "systemd, connected": connected(activated_session),
    "systemd, listening": connected(activated_listener),
    "listener": connected(listener),
}
LISTENERS = ["listener", "systemd, listening"]


def tree(pid):
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        children = []  # gone meanwhile
    return [pid, *[found for child in children for found in tree(int(child))]]


@pytest.fixture(params=DOORS)
def served(request, site):
    site.add("anna", mbox(b"Subject: x\n\nx\n"))
    with DOORS[request.param](site) as (wire, pid):
        wire.door = request.param
        wire.pid = pid
        yield wire


LOST_LINES = "anon_inode:[eventfd]"  # how many lines of the log are lost


def processes(wire):
    """All of the server's processes, but for those that are gone already."""
    found = []
    for pid in tree(wire.pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append(Process(pid))
    return found


def datagram_sockets():
    """All unix sockets for datagrams, by the names that /proc has for them: those to syslog."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {f"socket:[{field[6]}]" for field in fields if field[4] == "0002"}


def test_the_monitor_only_passes_the_connection_on(served):
    assert served.line().startswith(b"+OK")
    assert served.ask("USER anna").startswith(b"+OK")
    (gatekeeper,) = [one for one in processes(served) if not one.is_root]

    def at_rest():
        """The monitor without a file open: it may be importing what a session needs."""
        monitor = Process(gatekeeper.parent)
        others = [name for fd, name in monitor.files.items() if fd > 2]
        kinds = "pipe:", "socket:", LOST_LINES
        return all(name.startswith(kinds) for name in others) and monitor

    # Neither the password file nor the maildrop is open before there is a password to check.
    monitor = poll(at_rest, "the monitor to have nothing open but pipes and sockets")
    assert monitor.status["Uid"].split() == ["0"] * 4
    # It must see the password files, and the sites of the maildrops.
    assert monitor.root == "/"
    own = {fd: name for fd, name in monitor.files.items() if fd > 2}
    own = {fd: name for fd, name in own.items() if name not in {LOST_LINES, *datagram_sockets()}}
    sockets = {name for name in own.values() if name.startswith("socket:")}
    theirs = {name for name in gatekeeper.files.values() if name.startswith("socket:")}
    # One of the gatekeeper's two is the connection, and the other is its end of the channel.
    assert len(theirs) == 2
    assert len(sockets & theirs) == 1
    # Nobody else in the tree has it, but for who has accepted it.
    (connection,) = sockets & theirs
    holders = {one.pid for one in processes(served) if connection in one.files.values()}
    assert {gatekeeper.pid, monitor.pid} <= holders <= {gatekeeper.pid, monitor.pid, served.pid}
    # Besides: the channel's other end, what wakes it, and where a listener listens.
    assert len(sockets) == (3 if served.door in LISTENERS else 2)
    assert sum(name.startswith("pipe:") for name in own.values()) == 2
    assert len(own) == len(sockets) + 2  # each of them once
    # Where the connection came on stdin, it is there no more.
    if served.door not in LISTENERS and served.door != "systemd, connected":
        assert {monitor.files[0], monitor.files[1]} == {"/dev/null"}


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
    assert one.memory_owner == 0
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
    assert one.memory_owner == 0
    # No listening socket, no channel, no other client: two pipes for signals, the maildrop, its
    # lock, the connection in one or two descriptors, and where the log goes.
    own = [name for fd, name in one.files.items() if fd > 2 and name not in datagram_sockets()]
    assert sum("pipe:" in name for name in own) == 2
    assert sum("spool/anna" in name for name in own) == 1
    assert sum(name.endswith("/lock") for name in own) == 1
    sockets = {name for name in own if "socket:" in name}
    assert len(sockets) == 1
    assert served.ask("QUIT").startswith(b"+OK")


def test_after_login_no_gatekeeper_has_the_connection(served):
    served.login("anna")
    session = next(one for one in processes(served) if "spool/anna" in " ".join(one.files.values()))
    (connection,) = {
        name
        for fd, name in session.files.items()
        if fd > 2 and "socket:" in name and name not in datagram_sockets()
    }

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
    from tpop3d import configuration
    from tpop3d.doors import per_connection
    from tpop3d.privsep.sandbox import prepare_sandbox
    from tpop3d.session import session

    assert session
    loaded = configuration.load(str(site.conf))
    user, group = str(MAIL_USER.pw_uid), str(MAIL_USER.pw_gid)
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(MAIL_USER.pw_gid)
            os.setuid(MAIL_USER.pw_uid)
            # As a process is that this user has started.
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            sandbox = prepare_sandbox(loaded)
            per_connection.serve(loaded, sandbox, ours[0], theirs[1], loaded.tls)
        finally:
            os._exit(0)
    os.close(ours[0])
    os.close(theirs[1])
    with open(ours[1], "wb", buffering=0) as commands, open(theirs[0], "rb") as replies:
        assert replies.readline().startswith(b"+OK")
        monitor, gatekeeper = (Process(one) for one in tree(pid))
        commands.write(b"USER anna\r\nPASS secret\r\nSTAT\r\n")
        for _ in range(3):
            assert replies.readline().startswith(b"+OK")
        (session,) = (Process(one) for one in tree(pid))
        commands.write(b"QUIT\r\n")
        assert replies.read().startswith(b"+OK")
    os.waitpid(pid, 0)
    for one in (monitor, gatekeeper, session):
        assert one.status["Uid"].split() == [user] * 4
        assert one.status["Gid"].split() == [group] * 4
    assert (monitor.pid, session.pid, gatekeeper.parent) == (pid, pid, pid)
    # What needs no root is done all the same: nobody may look at what clients send.
    assert (monitor.memory_owner, gatekeeper.memory_owner) == (MAIL_USER.pw_uid, 0)
    assert gatekeeper.status["NoNewPrivs"] == "1"
    assert gatekeeper.limits["Max file size"] == ["0", "0"]
    assert gatekeeper.limits["Max core file size"] == ["0", "0"]


def test_one_that_is_told_to_end_takes_no_order_that_has_come_meanwhile():
    """Whoever has sent both finds the connection as it was, and nobody has said a word on it."""
    pid, channel = gatekeeper.start(Sandbox(None, os.getegid(), ""))
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    client, its = socket.socketpair()
    with client:
        with its:
            fds = its.fileno(), its.fileno()
            channel.give_order(Order(fds, Policy(b"", plaintext=True), PATIENCE))
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert channel.receive() is None
        assert client.recv(1) == b""
    channel.close()
