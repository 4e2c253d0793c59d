"""Clients behind haproxy and curl, which say who they are: in every door, with TLS and without."""

import re
from contextlib import contextmanager

import pytest

import doors
import tlskit
from authkit import recorded_syslog
from balancers import SENDS, haproxy
from clients import Client
from mailsite import poll
from samples import MESSAGES, on_the_wire, spool_of
from spools import mbox
from test_hazard_plaintext_logins import must_refuse, must_serve
from test_listener import FULL
from test_listener_signals import reload

CLIENT, CLIENT6 = "192.0.2.7", "2001:db8::7"
PLACE6 = "2001:db8::5"
BALANCER = "127.0.0.1"
FROM = {
    CLIENT: [f"tcp-request connection set-src ipv4({CLIENT})"],
    CLIENT6: [
        f"tcp-request content set-src ipv6({CLIENT6})",
        f"tcp-request content set-dst ipv6({PLACE6})",
    ],
}
ONE = mbox(b"Subject: one\n\n1\n")
in_all_versions = pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)


@pytest.fixture
def site(site):
    site.add("anna", spool_of(MESSAGES))
    site.configure(
        {
            "proxy-protocol-from": f"{BALANCER} 198.51.100.0/24",
            "plaintext-logins": "yes",
            "auth-failure-delay-seconds": 0,
        }
    )
    return site


@contextmanager
def opened(site, monkeypatch, open_door, *arguments):
    """A door whose log can be read, also where stderr is the client's."""
    environment, record = recorded_syslog(site.path)
    monkeypatch.setattr(doors, "CHECKOUT", environment["PYTHONPATH"])
    with open_door(site, *arguments) as door:
        if "xinetd" in open_door.__name__:
            door.logs = doors.Logs(record)
        yield door


@pytest.fixture(params=doors.TCP_DOORS)
def door(request, site, monkeypatch):
    with opened(site, monkeypatch, doors.TCP_DOORS[request.param]) as door:
        yield door


def ends(door, rip):
    """Wait for the log to say how the session of anna ended, and from where it came."""
    return door.logs.wait_for(f"session rip={re.escape(rip)} user=anna .* end=quit")


@in_all_versions
@pytest.mark.parametrize("client", FROM)
def test_the_log_has_the_client(site, door, send, client):
    with haproxy(site, door.port, send, more=FROM[client]) as balancer:
        wire = balancer.connect()
        wire.login("anna")
        for number, message in enumerate(MESSAGES, 1):
            assert wire.ask_long(f"RETR {number}")[1] == on_the_wire(message)
        assert wire.ask("QUIT").startswith(b"+OK")
        assert wire.line() == b""
        ends(door, client)
        failing = balancer.connect()
        assert failing.line().startswith(b"+OK")
        failing.send(b"USER anna\r\nPASS wrong\r\n")
        door.logs.wait_for(f"login failed rip={re.escape(client)} user=anna ")
    assert f"rip={BALANCER} " not in door.logs.text()


def test_curl_says_it_itself(site, door):
    url = f"pop3://{door.host}:{door.port}/1"
    done = Client(site, door).run("curl", "-sS", "--haproxy-protocol", "-u", "anna:secret", url)
    assert done.stdout == on_the_wire(MESSAGES[0]), done.stderr
    ends(door, "127.0.0.1")


def test_curl_without_a_header_is_not_served(site, door):
    url = f"pop3://{door.host}:{door.port}/1"
    site.configure({"login-seconds": 1})
    if door.process.args[0] == doors.SERVER[0]:
        reload(door)
    done = Client(site, door).run("curl", "-sS", "-u", "anna:secret", url)
    assert done.returncode
    door.logs.wait_for(f"proxy header missing rip={BALANCER} reason=timeout")
    assert "session" not in door.logs.text()


@in_all_versions
@pytest.mark.parametrize("mode", doors.MODES)
@pytest.mark.parametrize("name", doors.TLS_DOORS)
def test_tls_through_haproxy(site, monkeypatch, name, mode, send):
    tlskit.secure(site, **{"plaintext-logins": "no"})
    with (
        opened(site, monkeypatch, doors.TLS_DOORS[name], mode) as door,
        haproxy(site, door.port, send, more=FROM[CLIENT]) as balancer,
    ):
        wire = balancer.connect()
        if mode == "immediate":
            tlskit.wrap(wire)
        greeting = wire.line()
        if mode == "stls":
            tlskit.stls(wire)
        assert greeting.startswith(b"+OK")
        must_serve_mail(wire)
        assert " tls=TLSv1.3 " in ends(door, CLIENT)


@tlskit.in_both_doors
def test_a_handshake_that_fails_is_the_clients(site, opens):
    tlskit.secure(site, **{"tls-mode": "immediate"})
    with opens(site) as door, haproxy(site, door.port, more=FROM[CLIENT]) as balancer:
        balancer.connect().send(b"USER anna\r\n")
        door.logs.wait_for(f'tls failed rip={CLIENT} reason="no tls"')


def must_serve_mail(wire):
    assert wire.ask("USER anna").startswith(b"+OK")
    assert wire.ask("PASS secret").startswith(b"+OK")
    assert wire.ask_long("RETR 1")[1] == on_the_wire(MESSAGES[0])
    assert wire.ask("QUIT").startswith(b"+OK")


@tlskit.in_both_doors
@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
def test_tls_that_ends_at_haproxy(site, opens, send):
    """Then the server has none, whatever haproxy says of it, and goes by plaintext-logins."""
    certificate, key = tlskit.certify(site)
    both = site.path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    bind = f"ssl crt {both}"
    for plaintext in ("local", "yes"):
        site.configure({"plaintext-logins": plaintext})
        with (
            opens(site) as door,
            haproxy(site, door.port, send, bind=bind, more=FROM[CLIENT]) as balancer,
        ):
            wire = tlskit.wrap(balancer.connect())
            greeting = wire.line()
            if plaintext == "local":
                must_refuse(wire, greeting, b"TLS")
            else:
                must_serve_mail(wire)
                ends(door, CLIENT)


@tlskit.in_both_doors
def test_who_is_local_is_said_by_the_header(site, opens):
    site.add("anna", ONE)
    site.configure({"plaintext-logins": "local"})
    with opens(site) as door:
        with haproxy(site, door.port) as balancer:
            wire = balancer.connect("127.0.0.9")
            assert wire.line().startswith(b"+OK")
            must_serve(wire, "USER anna", "PASS secret")
            ends(door, "127.0.0.9")
        with haproxy(site, door.port, more=FROM[CLIENT]) as balancer:
            wire = balancer.connect("127.0.0.9")
            must_refuse(wire, wire.line(), b"TLS")


@tlskit.in_both_doors
@pytest.mark.parametrize("plaintext", ["local", "no"])
def test_behind_a_forwarder_that_says_nothing_everybody_is_local(site, opens, plaintext):
    """So that "no" is needed, as tpop3d.conf(5) says."""
    site.add("anna", ONE)
    site.configure({"plaintext-logins": plaintext, "proxy-protocol-from": ""})
    with opens(site) as door, haproxy(site, door.port, send="") as forwarder:
        wire = forwarder.connect("127.0.0.9")
        greeting = wire.line()
        if plaintext == "local":
            must_serve(wire, "USER anna", "PASS secret")
            ends(door, "127.0.0.1")
        else:
            must_refuse(wire, greeting, b"TLS")


@in_all_versions
def test_the_domain_is_that_of_the_address_at_the_balancer(site, send):
    site.add("carl@one.example", ONE)
    site.add("carl@two.example", ONE + ONE)
    site.configure(
        {
            "append-domain": "yes",
            "listen-address": "203.0.113.1:110(one.example) 203.0.113.2:110(two.example)",
            "auth-flatfile-mailbox": f"bsd:{site.spools}/$(user)",
        }
    )
    with doors.systemd_accept(site) as door:
        for place, count in (("203.0.113.1", b"1"), ("203.0.113.2", b"2")):
            to = [
                f"tcp-request content set-dst ipv4({place})",
                "tcp-request content set-dst-port int(110)",
            ]
            with haproxy(site, door.port, send, more=to) as balancer:
                wire = balancer.connect()
                wire.login("carl")
                assert wire.ask("STAT").startswith(b"+OK " + count)
                assert wire.ask("QUIT").startswith(b"+OK")


CHECK = [
    "option tcp-check",
    "tcp-check expect string +OK",
    "tcp-check send QUIT\\r\\n",
    "tcp-check expect string +OK",
]


@in_all_versions
@tlskit.in_both_doors
def test_haproxy_sees_that_the_server_is_well(site, opens, send):
    site.configure({"plaintext-logins": "local"})
    with (
        opens(site) as door,
        haproxy(site, door.port, send, more=CHECK, check="check inter 100ms rise 1") as balancer,
    ):
        door.logs.wait_for(f"session rip={BALANCER} user=- .* end=quit")
        assert balancer.connect().line().startswith(b"+OK")
        assert " is DOWN" not in balancer.logs.text()


@tlskit.in_both_doors
def test_a_balancer_that_only_looks_is_no_news(site, opens):
    """One that connects, and goes: nobody wants a line of that every second."""
    site.configure({"log-level": "debug"})
    looks = f"proxy header missing rip={BALANCER} reason=eof"
    with opens(site) as door:
        for _ in range(3):
            door.connect().close()
        poll(lambda: door.logs.text().count(looks) == 3, "their lines")
    site.configure({"log-level": "info"})
    with opens(site) as door:
        for _ in range(3):
            door.connect().close()
        door.connect().send(b"QUIT\r\n")
        door.logs.wait_for("proxy header wrong")
    poll(lambda: not site.processes(), "all to end")
    assert looks not in door.logs.text()


def test_the_limit_of_a_source_is_the_clients(site):
    settings = {"max-children": 10, "max-children-per-source": 2}
    with (
        doors.standalone(site, settings=settings) as door,
        haproxy(site, door.port) as balancer,
    ):
        ann = [balancer.connect("127.0.0.2") for _ in range(2)]
        assert all(wire.line().startswith(b"+OK") for wire in ann)
        assert balancer.connect("127.0.0.2").line() == FULL
        others = [balancer.connect(f"127.0.0.{n}") for n in range(3, 9)]
        assert all(wire.line().startswith(b"+OK") for wire in others)
        ann[0].close()

        def served():
            wire = balancer.connect("127.0.0.2")
            return wire.line().startswith(b"+OK")

        poll(served, "a place for who has left one")
    (line,) = [line for line in door.logs.lines() if "connection refused" in line]
    assert 'rip=127.0.0.2 limit="max-children-per-source (2)"' in line


def test_when_all_places_are_taken(site):
    with (
        doors.standalone(site, settings={"max-children": 2}) as door,
        haproxy(site, door.port) as balancer,
    ):
        inside = [balancer.connect("127.0.0.2") for _ in range(2)]
        assert all(wire.line().startswith(b"+OK") for wire in inside)
        # One whose header was still on its way may find the connection reset.
        told = {balancer.connect("127.0.0.3").reader.read() for _ in range(5)}
        assert {FULL} <= told <= {FULL, b""}
        inside[0].close()
        poll(lambda: balancer.connect().line().startswith(b"+OK"), "a free place")
        door.logs.wait_for(r'connection refused rip=127.0.0.\d limit="max-children \(2\)"')


def test_a_reload_changes_who_is_a_balancer(site):
    with doors.standalone(site) as door, haproxy(site, door.port) as balancer:
        assert balancer.connect().line().startswith(b"+OK")
        site.configure({"proxy-protocol-from": None})
        reload(door)
        assert door.connect().line().startswith(b"+OK")
        wire = balancer.connect()
        assert wire.line().startswith(b"+OK")
        assert wire.line().startswith(b"-ERR")  # haproxy's header
        site.configure({"proxy-protocol-from": "127.0.0.0/8"})
        reload(door)
        assert balancer.connect().line().startswith(b"+OK")
        door.connect().send(b"CAPA\r\n")
        door.logs.wait_for("proxy header wrong")
