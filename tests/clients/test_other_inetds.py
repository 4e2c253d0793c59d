"""Two more super-servers: openbsd-inetd, and tcpserver of ucspi-tcp."""

import os
import shutil
import socket

import pytest

import doors
from authkit import recorded_syslog, tpop3d
from doors import SERVER, Logs
from mailsite import CHECKOUT, ENVIRONMENT, IS_ROOT, PATIENCE, need, poll
from samples import MESSAGES, on_the_wire, spool_of

UNPACKED = CHECKOUT / ".unpacked" / "openbsd-inetd" / "usr" / "sbin" / "inetd"


def openbsd_inetd(site, wait="nowait", path=CHECKOUT):
    """It conflicts with xinetd, so tests/run has it unpacked; stderr is the connection."""
    program = str(UNPACKED) if UNPACKED.exists() else shutil.which("inetd", path="/usr/sbin")
    if not program:
        pytest.skip("inetd is neither unpacked nor installed")
    conf, logs = site.path / "inetd.conf", Logs(site.path / "inetd.log")

    def command(port):
        words = [SERVER[0], SERVER[0], *SERVER[1:], "--inetd", "-f", str(site.conf)]
        where = f"{doors.Door.host}:{port}"
        words = ["/usr/bin/env", "env", f"PYTHONPATH={path}", *words[1:]]
        conf.write_text(f"{where} stream tcp {wait} root {' '.join(words)}\n")
        return [program, "-i", "-d", conf]

    return doors.door_of(*doors.listening(command, logs, "ADD"), logs)


def tcpserver(site):
    """stderr is that of tcpserver."""
    program, logs = need("tcpserver"), Logs(site.path / "tcpserver.log")

    def command(port):
        # Without a look at DNS, at the client's own, or at ident.
        options = ["-v", "-H", "-R", "-l0"]
        return [program, *options, doors.Door.host, str(port), *SERVER, "--inetd", "-f", site.conf]

    return doors.door_of(*doors.listening(command, logs, "status: 0/"), logs)


@pytest.mark.parametrize("door", [openbsd_inetd, tcpserver])
def test_a_login_and_all_mail(site, door):
    if not IS_ROOT:
        pytest.skip("only root can start services as root")
    site.add("ann", spool_of(MESSAGES))
    with door(site) as port:
        client = port.poplib()
        assert client.user("ann").startswith(b"+OK")
        assert client.pass_("secret").startswith(b"+OK")
        for n, message in enumerate(MESSAGES, 1):
            lines = client.retr(n)[1]
            assert b"\r\n".join(lines) + b"\r\n" == on_the_wire(message)
        client.dele(1)
        assert client.quit().startswith(b"+OK")
        assert site.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
        refused = port.connect()
        assert refused.line().startswith(b"+OK")
        refused.ask("USER ann")
        assert refused.ask("PASS wrong").startswith(b"-ERR [AUTH] ")
        assert refused.ask("QUIT").startswith(b"+OK")
        assert refused.line() == b""


def test_with_wait_inetd_has_each_client_refused_once(site):
    """inetd starts the server again as long as anybody waits on the socket."""
    if not IS_ROOT:
        pytest.skip("only root can start services as root")
    environment, record = recorded_syslog(site.path)
    with openbsd_inetd(site, "wait", environment["PYTHONPATH"]) as port:
        for _ in range(3):
            assert port.connect().line() == b"-ERR [SYS/PERM] server is not configured\r\n"
        poll(lambda: site.processes() in ([], [port.process.pid]), "the end of all")
    told = record.read_text().splitlines()
    assert 1 <= len(told) <= 3
    assert all("stdin is a listening socket" in line for line in told)


@pytest.mark.parametrize("arguments", [["--inetd"], ["--inetd", "--tls"], ["-v", "--inetd"]])
def test_a_listening_socket_on_stdin_is_one_line_and_the_end(site, arguments):
    """As with Accept=no and StandardInput=socket; stderr is elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        waiting = [socket.create_connection(listening.getsockname(), PATIENCE) for _ in range(2)]
        done = tpop3d(*arguments, "-f", site.conf, stdin=listening, env=ENVIRONMENT)
        assert os.get_blocking(listening.fileno()) == listening.getblocking()
        for one in waiting:
            with one:
                assert one.recv(100) == b"-ERR [SYS/PERM] server is not configured\r\n"
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("tpop3d: stdin is a listening socket")
    assert "Accept=yes" in line
