"""`listen-address` with port 0: any free port, and the log says which."""

import re
from contextlib import contextmanager

import pytest

import doors
import tlskit
from authkit import tpop3d
from mailsite import has_ipv6
from spools import mbox
from test_listener_signals import reload

SPOOL = mbox(b"Subject: one\n\n1\n")
LISTENING = "listening on (.*)"


@contextmanager
def listener(site, addresses):
    """The listener on these. `places` are those that its log names, without their ports, and
    `ports` are these, in that order."""
    site.configure({"listen-address": addresses, "auth-failure-delay-seconds": 0})
    logs = doors.Logs(site.path / "stderr")
    command = [*doors.SERVER, "-d", "-f", str(site.conf)]
    process, _ = doors.listening(lambda port: command, logs, LISTENING)
    line = logs.wait_for(LISTENING)
    found = re.findall(r"(\S+):(\d+)( \(TLS\))?", line.partition("listening on ")[2])
    with doors.door_of(process, 0, logs) as door:
        door.places = [host + tls for host, _, tls in found]
        door.ports = [int(port) for _, port, _ in found]
        yield door


def at(door, port):
    door.port = port
    return door.connect()


def test_the_log_names_it_and_it_serves(site):
    site.add("anna", SPOOL)
    with listener(site, "127.0.0.1:0") as door:
        assert door.places == ["127.0.0.1"]
        wire = at(door, door.ports[0])
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")


def test_each_with_its_own_tls_and_domain(site):
    site.add("anna@one.example", SPOOL)
    site.add("anna@two.example", SPOOL + SPOOL)
    site.configure({"append-domain": "yes", "auth-flatfile-mailbox": f"bsd:{site.spools}/$(user)"})
    tlskit.secure(site)
    words = "127.0.0.1:0(one.example) 127.0.0.1:0(two.example);tls=none"
    with listener(site, f"{words} 127.0.0.1:0(two.example);tls=immediate") as door:
        assert door.places == ["127.0.0.1", "127.0.0.1", "127.0.0.1 (TLS)"]
        assert len(set(door.ports)) == 3
        first, second, third = (at(door, port) for port in door.ports)
        assert first.line().startswith(b"+OK")
        tlskit.stls(first)
        assert first.ask("USER anna").startswith(b"+OK")
        assert first.ask("PASS secret").startswith(b"+OK maildrop has 1 ")
        second.login("anna")
        assert second.ask("STAT").startswith(b"+OK 2 ")
        assert second.ask("QUIT").startswith(b"+OK")
        tlskit.wrap(third)
        assert third.line().startswith(b"+OK")
        assert third.ask("CAPA").startswith(b"+OK")


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_of_both_families(site):
    with listener(site, "127.0.0.1:0 [::1]:0") as door:
        assert door.places == ["127.0.0.1", "[::1]"]
        door.host = "::1"
        assert at(door, door.ports[1]).line().startswith(b"+OK")


def test_a_reload_keeps_it(site):
    with listener(site, "127.0.0.1:0") as door:
        (port,) = door.ports
        before = at(door, port)
        assert before.line().startswith(b"+OK")
        site.configure({"login-seconds": 77})
        reload(door)
        assert at(door, port).line().startswith(b"+OK")
        # One that is new is another.
        site.configure({"listen-address": "127.0.0.1:0 127.0.0.1:0(one.example)"})
        reload(door)
        assert at(door, port).line().startswith(b"+OK")
        line = door.logs.wait_for(r"listening on .*:\d+, ")
        new = int(line.rpartition(":")[2])
        assert new != port
        assert at(door, new).line().startswith(b"+OK")
        assert before.ask("QUIT").startswith(b"+OK")


def test_check_config_takes_it(site):
    site.configure({"listen-address": "127.0.0.1:0 [::1]:0;tls=none"})
    done = tpop3d("-f", site.conf, "--check-config")
    assert done.returncode == 0
    assert "listen-address" not in done.stderr.decode()
    assert b"listen-address: 127.0.0.1:0 [::1]:0;tls=none\n" in done.stdout
