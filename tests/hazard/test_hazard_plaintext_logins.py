"""Who may log in without TLS, from where: what is refused is hidden, and nobody is led astray."""

import hashlib
from contextlib import closing, contextmanager

import pytest

import doors
import tlskit
from network import OUTSIDE, network
from spools import mbox
from test_hazard_stls_injection import capabilities
from test_listener_signals import reload

SPOOL = mbox(b"Subject: one\n\n1\n")
LOOPBACK = ("127.0.0.1", "127.9.9.9", "::1")
PEERS = LOOPBACK + OUTSIDE
TAKEN = {"yes": PEERS, "local": LOOPBACK, "no": ()}
PLAINTEXT = {b"USER", b"SASL PLAIN"}
PLAIN = "AGFubmEAc2VjcmV0"
NO_PLACE = " can log in there; give tls-certificate"


@pytest.fixture(scope="module")
def elsewhere():
    with network() as made:
        yield made


@pytest.fixture
def site(site):
    site.configure({"auth-failure-delay-seconds": 0})
    site.add("anna", SPOOL)
    return site


@pytest.fixture(params=["per connection", "listener"])
def serving(request, site, elsewhere, monkeypatch):
    """A way to be served: `with serving() as connect`, and then `with connect(peer) as wire`."""

    @contextmanager
    def listener():
        monkeypatch.setattr(doors, "SERVER", elsewhere.command(*doors.SERVER))
        # "[::]" and 0.0.0.0 are two addresses of the same port.
        with doors.standalone(site, host="0.0.0.0") as door:
            both = f"0.0.0.0:{door.port} [::]:{door.port}"
            site.configure({"listen-address": both})
            reload(door, "reload: the configuration is read again")

            @contextmanager
            def connect(peer):
                with closing(elsewhere.connect(peer, door.port)) as wire:
                    yield wire

            yield connect

    @contextmanager
    def per_connection():
        yield lambda peer: elsewhere.inetd(site, peer)

    return listener if request.param == "listener" else per_connection


def apop(greeting):
    digest = hashlib.md5(greeting.split()[-1] + b"secret", usedforsecurity=False).hexdigest()
    return f"APOP anna {digest}"


def must_refuse(wire, greeting, instead):
    """Every login, in words that say what to use instead, with no response code."""
    assert b"<" not in greeting
    assert not PLAINTEXT & capabilities(wire)
    commands = ["USER anna", "PASS secret", apop(greeting), "AUTH PLAIN", f"AUTH PLAIN {PLAIN}"]
    for command in [*commands, "USER", "PASS", "auth plain ="]:
        answer = wire.ask(command)
        assert answer.startswith(b"-ERR plaintext logins are not allowed here, use "), command
        assert answer.endswith(b"use %b\r\n" % instead), command
    assert wire.ask_long("AUTH") == (b"+OK\r\n", b"")


def must_serve(wire, *commands):
    for command in commands:
        assert wire.ask(command).startswith(b"+OK"), command
    assert wire.ask("STAT").startswith(b"+OK 1 ")
    assert wire.ask("QUIT").startswith(b"+OK")
    assert wire.line() == b""


@pytest.mark.parametrize("plaintext", ["yes", "local", "no"])
def test_without_a_certificate(site, serving, plaintext):
    site.configure({"plaintext-logins": plaintext})
    with serving() as connect:
        for peer in PEERS:
            with connect(peer) as wire:
                greeting = wire.line()
                assert wire.ask("STLS") == b"-ERR TLS is not available here\r\n"
                assert b"STLS" not in capabilities(wire)
                if peer in TAKEN[plaintext]:
                    assert capabilities(wire) >= PLAINTEXT
                    must_serve(wire, apop(greeting))
                else:
                    must_refuse(wire, greeting, b"TLS")


@pytest.mark.parametrize("plaintext", ["yes", "local", "no"])
def test_with_a_certificate(site, serving, plaintext):
    tlskit.secure(site)
    site.configure({"plaintext-logins": plaintext})
    with serving() as connect:
        for peer in PEERS:
            with connect(peer) as wire:
                greeting = wire.line()
                assert b"STLS" in capabilities(wire)
                if peer in TAKEN[plaintext]:
                    assert capabilities(wire) >= PLAINTEXT
                    must_serve(wire, f"AUTH PLAIN {PLAIN}")
                else:
                    must_refuse(wire, greeting, b"STLS first")
                    tlskit.stls(wire)
                    assert capabilities(wire) >= PLAINTEXT
                    must_serve(wire, "USER anna", "PASS secret")


def test_with_tls_from_the_first_octet_on_nobody_is_refused(site, serving):
    tlskit.secure(site)
    site.configure({"plaintext-logins": "no", "tls-mode": "immediate"})
    with serving() as connect:
        for peer in PEERS:
            with connect(peer) as wire:
                tlskit.wrap(wire)
                greeting = wire.line()
                assert capabilities(wire) >= PLAINTEXT
                must_serve(wire, apop(greeting))


def test_apop_only_is_about_the_clear(site, serving):
    tlskit.secure(site)
    site.configure({"plaintext-logins": "local", "apop-only": "yes"})
    near, far = "127.0.0.1", OUTSIDE[0]
    with serving() as connect:
        with connect(near) as wire:
            greeting = wire.line()
            assert not PLAINTEXT & capabilities(wire)
            assert wire.ask("USER anna").startswith(b"-ERR plaintext logins are not allowed here,")
            must_serve(wire, apop(greeting))
        with connect(far) as wire:
            must_refuse(wire, wire.line(), b"STLS first")
        with connect(near) as wire:
            assert wire.line().startswith(b"+OK")
            tlskit.stls(wire)
            must_serve(wire, "USER anna", "PASS secret")


def test_a_pipe_and_a_socket_of_the_file_system_are_local(site, inetd):
    assert b"<" in inetd.line()
    must_serve(inetd, "USER anna", "PASS secret")


@pytest.mark.parametrize("pipes", [False, True])
def test_but_not_where_nobody_may(site, pipes):
    site.configure({"plaintext-logins": "no"})
    with doors.inetd(site, pipes=pipes) as wire:
        must_refuse(wire, wire.line(), b"TLS")


def test_a_listener_warns_where_nobody_could_log_in(site, elsewhere, monkeypatch):
    monkeypatch.setattr(doors, "SERVER", elsewhere.command(*doors.SERVER))
    with doors.standalone(site) as door:
        port = door.port

        def warnings(plaintext, *hosts, **more):
            addresses = " ".join(f"{host}:{port}" for host in hosts)
            site.configure({"plaintext-logins": plaintext, "listen-address": addresses} | more)
            before = len(door.logs.lines())
            reload(door, "reload: the configuration is read again")
            return [line for line in door.logs.lines()[before:] if NO_PLACE in line]

        assert warnings("local", "127.0.0.1", "[::1]") == []
        (line,) = warnings("local", "127.0.0.1", OUTSIDE[0])
        assert f" {OUTSIDE[0]}:{port} has no TLS, and plaintext-logins is local: only " in line
        (line,) = warnings("local", "0.0.0.0")
        assert "0.0.0.0" in line
        assert len(warnings("local", "0.0.0.0", "[::]")) == 2
        (line,) = warnings("no", "127.0.0.1")
        assert f" 127.0.0.1:{port} has no TLS, and plaintext-logins is no: nobody can" in line
        assert warnings("yes", "0.0.0.0") == []
        tlskit.secure(site)
        assert warnings("no", "0.0.0.0") == []
        (line,) = warnings("no", "0.0.0.0", **{"tls-mode": "none"})
        assert "nobody can" in line
