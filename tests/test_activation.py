"""Sockets passed by systemd's own socket-activate: connected ones and listening ones."""

import importlib.util
import socket

import pytest

import doors
from mailsite import ENVIRONMENT, PATIENCE, need
from spools import mbox

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")
# The folder of unit files is called systemd, too, and has no daemon.
has_package = importlib.util.find_spec("systemd") and importlib.util.find_spec("systemd.daemon")
pytestmark = pytest.mark.skipif(
    not has_package, reason="systemd-python is not installed in this Python"
)


def activated(site, *options):
    """systemd-socket-activate with these options; its stderr is the server's, too."""
    program = need("systemd-socket-activate")
    logs = doors.Logs(site.path / "stderr")

    def command(port):
        variables = [f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()]
        listen = ["-l", f"{doors.Door.host}:{port}", *options]
        return [program, *listen, *variables, *doors.SERVER, "-f", site.conf]

    return doors.door_of(*doors.listening(command, logs), logs)


def test_a_connected_socket_is_one_session(site):
    site.add("anna", SPOOL)
    with activated(site, "--accept") as door:
        for _ in range(2):
            wire = door.connect()
            wire.login("anna")
            assert wire.ask("STAT").startswith(b"+OK 2 ")
            assert wire.ask("QUIT").startswith(b"+OK")
            assert wire.line() == b""
        door.logs.wait_for("session user=anna rip=127.0.0.1 .*end=quit")


def test_a_listening_socket_is_the_listeners(site):
    site.add("anna", SPOOL)
    site.configure({"max-children": 2, "max-children-per-source": 0})
    with activated(site) as door:
        wires = [door.connect() for _ in range(3)]
        greetings = sorted(wire.line()[:4] for wire in wires)
        assert greetings == [b"+OK ", b"+OK ", b"-ERR"]
        for wire in wires:
            wire.close()
        client = door.poplib()
        client.user("anna")
        client.pass_("secret")
        assert client.stat()[0] == 2
        client.quit()
        door.logs.wait_for("listening on 127.0.0.1:")


@pytest.mark.parametrize("options", [["--accept", "--fdname=pop3s"], ["--fdname=pop3s"]])
def test_a_socket_for_tls_is_not_served_in_the_clear(site, options):
    site.add("anna", SPOOL)
    with activated(site, *options) as door:
        connection = socket.create_connection((door.host, door.port), PATIENCE)
        door.logs.wait_for("a socket named pop3s wants TLS, which this version does not speak")
        wire = doors.Wire.on(connection)
        try:
            assert wire.line() == b""
        except ConnectionResetError:
            pass  # never accepted, by a listener that did not start
        wire.close()
