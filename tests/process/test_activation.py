"""Sockets passed by systemd's own socket-activate: connected ones and listening ones."""

import importlib.util
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack

import pytest

import doors
import tlskit
from mailsite import ENVIRONMENT, PATIENCE, end, has_ipv6, poll
from spools import mbox

# Puts the descriptors that it was given where systemd puts them, and becomes a server.
LAUNCHER = """
import fcntl, os, sys
count = int(sys.argv[1])
given = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2:2 + count]]
for place, fd in enumerate(given, 3):
    os.dup2(fd, place)
    os.close(fd)
os.environ |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count:]])
"""
SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")
# The folder of unit files is called systemd, too, and has no daemon.
has_package = importlib.util.find_spec("systemd") and importlib.util.find_spec("systemd.daemon")
pytestmark = pytest.mark.skipif(
    not has_package, reason="systemd-python is not installed in this Python"
)


def test_a_connected_socket_is_one_session(site):
    site.add("anna", SPOOL)
    with doors.activated(site, "--accept") as door:
        for _ in range(2):
            wire = door.connect()
            wire.login("anna")
            assert wire.ask("STAT").startswith(b"+OK 2 ")
            assert wire.ask("QUIT").startswith(b"+OK")
            assert wire.line() == b""
        door.logs.wait_for("session rip=127.0.0.1 user=anna .*end=quit")


def test_a_listening_socket_is_the_listeners(site):
    site.add("anna", SPOOL)
    site.configure({"max-children": 2, "max-children-per-source": 0})
    with doors.activated(site) as door:
        wires = [door.connect() for _ in range(3)]
        greetings = sorted(wire.line()[:4] for wire in wires)
        assert greetings == [b"+OK ", b"+OK ", b"-ERR"]
        for wire in wires:
            wire.close()

        def served():
            wire = door.connect()
            return (
                wire if wire.line().startswith(b"+OK") else None
            )  # the places may not be free yet

        wire = poll(served, "a place")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert wire.ask("STAT").startswith(b"+OK 2 ")
        assert wire.ask("QUIT").startswith(b"+OK")
        door.logs.wait_for("listening on 127.0.0.1:")


SOCKETS = {"connected": ["--accept"], "listening": []}


@pytest.fixture(params=SOCKETS)
def options(request, site):
    """Those of systemd-socket-activate for connected sockets, and for listening ones."""
    site.add("anna", SPOOL)
    return SOCKETS[request.param]


def check(wire):
    wire.login("anna")
    assert wire.ask("STAT").startswith(b"+OK 2 ")
    assert wire.ask("QUIT").startswith(b"+OK")
    assert wire.line() == b""


@pytest.mark.parametrize("how", ["name", "option"])
def test_a_socket_for_tls_is_served_with_tls(site, options, how):
    tlskit.secure(site)
    by_name, arguments = (["--fdname=pop3s"], []) if how == "name" else ([], ["--tls"])
    with doors.activated(site, *options, *by_name, arguments=arguments) as door:
        check(tlskit.wrap(door.connect()))
        door.logs.wait_for("session rip=127.0.0.1 user=anna .* tls=TLSv1.3 .*end=quit")


@pytest.mark.parametrize("mode", ["none", "stls", "immediate"])
def test_a_socket_with_another_name_is_served_as_tls_mode_says(site, options, mode):
    tlskit.secure(site, **{"tls-mode": mode})
    with doors.activated(site, *options, "--fdname=pop3") as door:
        wire = door.connect()
        if mode == "immediate":
            tlskit.wrap(wire)
        else:
            assert wire.line().startswith(b"+OK")
            assert (b"STLS\r\n" in wire.ask_long("CAPA")[1]) == (mode == "stls")
            wire.close()
            wire = door.connect()
        check(wire)


@pytest.mark.parametrize("how", [["--fdname=pop3s"], []])
def test_a_socket_for_tls_without_a_certificate_is_not_served(site, options, how):
    with doors.activated(site, *options, *how, arguments=[] if how else ["--tls"]) as door:
        connection = socket.create_connection((door.host, door.port), PATIENCE)
        line = door.logs.wait_for("wants TLS|TLS is asked for")
        assert "tls-certificate" in line
        wire = doors.Wire.on(connection)
        try:
            assert wire.line() in (b"", b"-ERR [SYS/PERM] server is not configured\r\n")
        except ConnectionResetError:
            pass  # never accepted, by a listener that did not start
        wire.close()


def test_the_option_for_tls_without_a_socket_is_wrong_use(site):
    """The listener's addresses say for themselves how they are served."""
    tlskit.secure(site, **{"listen-address": "127.0.0.1:1"})
    done = subprocess.run(
        [*doors.SERVER, "-d", "--tls", "-f", site.conf],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "tls-mode: immediate" in done.stderr


def launch(site, sockets, **options):
    """The server with these sockets from systemd."""
    fds = [one.fileno() for one in sockets]
    command = [sys.executable, "-c", LAUNCHER, str(len(fds)), *map(str, fds)]
    command += [*doors.SERVER[1:], "-f", str(site.conf)]
    return subprocess.Popen(
        command,
        **{"stdin": subprocess.DEVNULL, "pass_fds": fds, "env": ENVIRONMENT, "cwd": "/"} | options,
    )


def listening(address=("127.0.0.1", 0), family=socket.AF_INET):
    one = socket.socket(family)
    one.bind(address)
    one.listen()
    return one


def datagrams():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def connected(kind=socket.SOCK_STREAM):
    """One end of a connection, whose other end is gone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.close()
    return ours


def packets():
    return connected(socket.SOCK_SEQPACKET)


def a_file():
    return tempfile.TemporaryFile()


WRONG = {
    "a connected and a listening one": ([connected, listening], "connected socket"),
    "a listening and a connected one": ([listening, connected], "connected socket"),
    "two connected ones": ([connected, connected], "must pass one connected socket"),
    "datagrams": ([datagrams], "descriptor 3 from systemd is no stream socket"),
    "datagrams after a listening one": ([listening, datagrams], "descriptor 4 from systemd is no"),
    "packets": ([packets], "descriptor 3 from systemd is no stream socket"),
    "a file": ([a_file], "descriptor 3 from systemd is no stream socket"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_can_be_no_pop3_is_one_clear_line(site, what):
    makers, complaint = WRONG[what]
    with ExitStack() as stack:
        made = [stack.enter_context(make()) for make in makers]
        server = stack.enter_context(launch(site, made, stderr=subprocess.PIPE, text=True))
        stack.callback(server.kill)
        stderr = server.communicate(timeout=PATIENCE)[1]
        assert server.returncode == 1
    assert stderr.count("\n") == 1
    assert stderr.startswith("tpop3d: ")
    assert complaint in stderr


def test_several_listening_sockets_are_all_the_listeners(site):
    site.add("anna", SPOOL)
    path = str(site.path / "socket")
    places = [(("127.0.0.1", 0), socket.AF_INET), (path, socket.AF_UNIX)]
    if has_ipv6():
        places.append((("::1", 0), socket.AF_INET6))
    logs = doors.Logs(site.path / "stderr")
    with ExitStack() as stack:
        made = [stack.enter_context(listening(*place)) for place in places]
        stderr = stack.enter_context(logs.path.open("wb"))
        server = stack.enter_context(launch(site, made, stderr=stderr))
        stack.callback(end, server)
        for one in made:
            client = stack.enter_context(socket.socket(one.family))
            client.connect(one.getsockname())
            wire = doors.Wire.on(client)
            wire.login("anna")
            assert wire.ask("STAT").startswith(b"+OK 2 ")
            assert wire.ask("QUIT").startswith(b"+OK")
            wire.close()
        for source in ("127.0.0.1", "unix", "::1")[: len(made)]:
            logs.wait_for(f"session rip={source} user=anna .*end=quit")
