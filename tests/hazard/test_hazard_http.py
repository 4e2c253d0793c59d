"""A browser that was sent here: none of what a page has it send is a command (ALPACA)."""

import pytest

import doors
import tlskit
from clients import Client
from samples import MESSAGES, spool_of

COMMANDS = "USER ann\r\nPASS secret\r\nDELE 1\r\nRETR 2\r\nQUIT\r\n"
TOLD = b"-ERR this is no web server\r\n"
REQUESTS = {
    "GET": [],
    "POST": ["--data-binary", COMMANDS, "--header", "Expect:"],
    "a method of its own": ["--request", "USER"],
    "a long path": ["--get", "--data", "x" * 9000],
    "a long path, and commands": ["--url-query", "x" * 300, "--data-binary", COMMANDS],
}  # fmt: skip


@pytest.fixture
def filled(site):
    site.add("ann", spool_of(MESSAGES))
    tlskit.secure(site, **{"plaintext-logins": "yes"})
    return site


def curl(site, door, scheme, *more):
    client = Client(site, door)
    url = f"{scheme}://{door.host}:{door.port}/"
    return client.run("curl", "--silent", "--insecure", "--http0.9", *more, url)


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", doors.TLS_DOORS)
def test_nothing_in_a_request_is_a_command(filled, kind, scheme, what):
    mode = {"http": "stls", "https": "immediate"}[scheme]
    with doors.TLS_DOORS[kind](filled, mode) as door:
        done = curl(filled, door, scheme, *REQUESTS[what])
        greeting, _, rest = done.stdout.partition(b"\r\n")
        assert greeting.startswith(b"+OK POP3")
        assert rest in (b"", TOLD)
        if kind == "listener":
            door.logs.wait_for("session .*user=- .*end=http")
            assert "login" not in door.logs.text()
    assert filled.spool("ann").read_bytes() == spool_of(MESSAGES)


def test_behind_stls_too(filled):
    with doors.standalone(filled) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        tlskit.stls(wire)
        wire.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + COMMANDS.encode())
        assert wire.line() == TOLD
        assert wire.line() == b""
        door.logs.wait_for("session .*user=- .*tls=.*end=http")


def test_what_looks_so_later_is_a_bad_command_as_ever(filled):
    with doors.standalone(filled) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        assert wire.ask("NOOP").startswith(b"-ERR")
        assert wire.ask("GET / HTTP/1.1").startswith(b"-ERR unknown command")
        assert wire.ask("USER ann").startswith(b"+OK")
