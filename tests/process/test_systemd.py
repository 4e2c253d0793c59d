"""The unit files under a real systemd: every style serves mail, and keeps its limits."""

from itertools import permutations

import pytest

from mailsite import poll
from samples import MESSAGES, on_the_wire, spool_of

EACH = "tpop3d.socket"  # one process for each connection
LISTENER = "tpop3d-listener.socket"
DAEMON = "tpop3d.service"
STYLES = [EACH, LISTENER, DAEMON]
SERVICE = {LISTENER: "tpop3d-listener.service", DAEMON: DAEMON}


@pytest.fixture(params=STYLES)
def style(request, box):
    """The box with one of the units started, and mail for ann."""
    box.add("ann", spool_of(MESSAGES))
    box.systemctl("start", request.param)
    return request.param


def test_poplib_takes_all_and_removes_one(box, style):
    client = box.poplib()
    client.user("ann")
    client.pass_("secret")
    for n, message in enumerate(MESSAGES, 1):
        assert b"\r\n".join(client.retr(n)[1]) + b"\r\n" == on_the_wire(message)
    client.dele(1)
    client.quit()
    poll(lambda: box.spool("ann").read_bytes() == spool_of(MESSAGES[1:]), "the spool")
    box.wait_for_journal("session rip=127.0.0.1 user=ann ")


def test_curl_takes_one(box, style):
    fetched = box.run("curl", "-s", "-u", "ann:secret", "pop3://127.0.0.1/1", text=False)
    assert (fetched.returncode, fetched.stdout) == (0, on_the_wire(MESSAGES[0]))
    refused = box.run("curl", "-s", "-u", "ann:wrong", "pop3://127.0.0.1/1")
    assert refused.returncode == 67  # CURLE_LOGIN_DENIED
    box.wait_for_journal("session rip=127.0.0.1 user=ann ")


@pytest.mark.parametrize("unit", [EACH, LISTENER])
def test_ipv6(box, unit):
    box.add("ann", spool_of(MESSAGES))
    box.systemctl("start", unit)
    client = box.wire("::1")
    client.login("ann")
    assert client.ask("QUIT").startswith(b"+OK")
    box.wait_for_journal("session rip=::1 user=ann ")


def test_mail_in_a_home_directory(box, style):
    # What ProtectHome= would hide, and ProtectSystem=strict make read-only.
    box.configure({"mailbox": "bsd:$(home)/mbox"})
    box.systemctl("restart", style)
    box.spool("ann").rename(box.path("/home/ann/mbox"))
    client = box.wire()
    client.login("ann")
    client.ask("DELE 1")
    assert client.ask("QUIT").startswith(b"+OK")
    assert box.path("/home/ann/mbox").read_bytes() == spool_of(MESSAGES[1:])


def test_the_connection_as_a_passed_socket(box):
    """Accept=yes without StandardInput=socket: the connection is in LISTEN_FDS."""
    box.add("ann", spool_of(MESSAGES))
    command = "/usr/local/bin/tpop3d"
    box.adapt("tpop3d@.service", Service_StandardInput="null", Service_ExecStart=command)
    box.systemctl("start", EACH)
    client = box.wire()
    client.login("ann")
    assert client.ask_long("RETR 1")[1] == on_the_wire(MESSAGES[0])
    assert client.ask("QUIT").startswith(b"+OK")
    assert client.line() == b""
    box.wait_for_journal("session rip=127.0.0.1 user=ann ")


def test_a_service_for_one_connection_gets_the_socket_of_all(box):
    """Accept=no where Accept=yes is wanted: each client is refused once, and the log says why."""
    listening = "\nListenStream=0.0.0.0:110"  # only one can be stdin
    box.adapt(LISTENER, Socket_ListenStream=listening, Socket_TriggerLimitIntervalSec=0)
    box.adapt(
        SERVICE[LISTENER],
        Service_ExecStart="/usr/local/bin/tpop3d --inetd",
        Service_StandardInput="socket",
        Service_Type="exec",
        Service_Restart="no",
    )
    box.systemctl("start", LISTENER)
    for _ in range(3):
        wire = box.wire()
        assert wire.line() == b"-ERR [SYS/PERM] server is not configured\r\n"
        assert wire.line() == b""
    box.wait_for_journal("Accept=yes")
    assert 1 <= box.journal().count("stdin is a listening socket") <= 3


def test_more_sockets_for_the_listener(box):
    """What `systemctl edit` adds is served, too; a unix socket has no address."""
    box.add("ann", spool_of(MESSAGES))
    more = "127.0.0.1:1110\nListenStream=/run/pop3"
    box.adapt(LISTENER, Socket_ListenStream=more)
    box.systemctl("start", LISTENER)
    for where in (("127.0.0.1", 110), ("127.0.0.1", 1110), ("::1", 110)):
        client = box.wire(*where)
        client.login("ann")
        assert client.ask("QUIT").startswith(b"+OK")
    talk = "import socket as s; c = s.socket(s.AF_UNIX); c.connect('/run/pop3'); print(c.recv(99))"
    assert box.do("/usr/bin/python3", "-c", talk).startswith("b'+OK ")


def test_sessions_side_by_side(box, style):
    box.add("bob", b"")
    ann, bob = box.wire(), box.wire()
    ann.login("ann")
    bob.login("bob")
    assert ann.ask("STAT").startswith(b"+OK %d " % len(MESSAGES))
    assert bob.ask("STAT") == b"+OK 0 0\r\n"


class TestLimitsOfTheSocket:
    """What is over them gets nothing but the end of the connection."""

    def test_max_connections(self, box):
        box.adapt(EACH, Socket_MaxConnections=2)
        box.systemctl("start", EACH)
        self.check(box, "127.0.0.3")

    def test_max_connections_per_source(self, box):
        box.adapt(EACH, Socket_MaxConnectionsPerSource=2)
        box.systemctl("start", EACH)
        other = box.wire(source="127.0.0.2")
        assert other.line().startswith(b"+OK")
        self.check(box, "127.0.0.1")

    def check(self, box, source):
        """Two connections are let in, a third when one of them has left."""
        inside = [box.wire(source=source) for _ in range(2)]
        assert all(client.line().startswith(b"+OK") for client in inside)
        for refused in range(1, 4):
            assert box.wire(source=source).line() == b""
            assert int(box.show(EACH, "NRefused")) == refused
        assert inside[1].ask("CAPA").startswith(b"+OK")
        assert inside[0].ask("QUIT").startswith(b"+OK")
        poll(lambda: not box.is_full(source=source), "the place to be free")

    def test_many_connections_do_not_stop_it(self, box):
        # 200 within 2 seconds would, if the unit did not say otherwise.
        box.adapt(EACH, Socket_MaxConnections=1)
        box.systemctl("start", EACH)
        first = box.wire()
        assert first.line().startswith(b"+OK")
        for _ in range(300):
            box.connect().close()
        poll(lambda: int(box.show(EACH, "NRefused")) == 300, "all to be refused")
        assert box.show(EACH, "ActiveState") == "active"
        assert first.ask("QUIT").startswith(b"+OK")
        poll(lambda: not box.is_full(), "the place to be free")


@pytest.mark.parametrize("unit", [LISTENER, DAEMON])
class TestListenersLimits:
    """What is over them is told so."""

    def test_max_children(self, box, unit):
        box.configure({"max-children": 2, "max-children-per-source": 0})
        box.systemctl("start", unit)
        self.check(box)

    def test_max_children_per_source(self, box, unit):
        box.configure({"max-children": 10, "max-children-per-source": 2})
        box.systemctl("start", unit)
        other = box.wire(source="127.0.0.2")
        assert other.line().startswith(b"+OK")
        self.check(box)

    def check(self, box):
        inside = [box.wire() for _ in range(2)]
        assert all(client.line().startswith(b"+OK") for client in inside)
        refused = box.wire()
        assert refused.line() == b"-ERR [SYS/TEMP] too many connections, try again later\r\n"
        assert refused.line() == b""
        assert inside[0].ask("QUIT").startswith(b"+OK")
        poll(lambda: not box.is_full(), "the place to be free")
        assert inside[1].ask("CAPA").startswith(b"+OK")


@pytest.mark.parametrize(("before", "after"), list(permutations(STYLES, 2)))
def test_starting_one_stops_the_other(box, before, after):
    for unit in (before, after):
        box.systemctl("start", unit)
        client = box.wire()
        assert client.line().startswith(b"+OK")
        assert client.ask("QUIT").startswith(b"+OK")
    assert box.show(after, "ActiveState") == "active"
    assert box.show(before, "ActiveState") == "inactive"
    if after != LISTENER:
        assert box.show(SERVICE[LISTENER], "ActiveState") == "inactive"
