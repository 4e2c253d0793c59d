"""Two more super-servers: openbsd-inetd, and tcpserver of ucspi-tcp."""

import shutil

import pytest

import doors
from doors import SERVER, Logs
from mailsite import CHECKOUT, IS_ROOT, need
from samples import MESSAGES, on_the_wire, spool_of

UNPACKED = CHECKOUT / ".unpacked" / "openbsd-inetd" / "usr" / "sbin" / "inetd"


def openbsd_inetd(site):
    """It conflicts with xinetd, so tests/run has it unpacked; stderr is the connection."""
    program = str(UNPACKED) if UNPACKED.exists() else shutil.which("inetd", path="/usr/sbin")
    if not program:
        pytest.skip("inetd is neither unpacked nor installed")
    conf, logs = site.path / "inetd.conf", Logs(site.path / "inetd.log")

    def command(port):
        words = [SERVER[0], SERVER[0], *SERVER[1:], "--inetd", "-f", str(site.conf)]
        where = f"{doors.Door.host}:{port}"
        conf.write_text(f"{where} stream tcp nowait root {' '.join(words)}\n")
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
