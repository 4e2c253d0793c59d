"""Debian's own mysqlclient, 1.4.6, which knows neither `multi_statements` nor `ssl_mode`."""

import socket
import threading
from contextlib import contextmanager

import pytest

from databases import USERNAME, Library
from mailsite import CHECKOUT, MAIL_USER, need
from tpop3d.auth.driver import CANNOT_SAY, NO, YES

PACKAGES = "usr/lib/python3/dist-packages"
NO_TLS = "TLS needs mysqlclient 2.1 or later: pip install 'mysqlclient>=2.1'"
OFF = b"\3\0\0\0\x1b\1\0"  # COM_SET_OPTION, MYSQL_OPTION_MULTI_STATEMENTS_OFF
ROW = f"'/var/mail/ann', '{{plaintext}}secret', '{MAIL_USER.pw_name}', 'bsd'"


def this_machines():
    """That of the Debian which the tests run on, with its own Python."""
    unpacked = CHECKOUT / ".unpacked/python3-mysqldb" / PACKAGES
    if not unpacked.is_dir():
        pytest.skip("tests/run has not unpacked python3-mysqldb")
    need("/usr/bin/python3")
    return Library(["/usr/bin/python3"], f"{CHECKOUT}:{unpacked}")


def debian_13s():
    trixie = pytest.importorskip("trixie", reason="there is no Debian 13 here")
    trixie.require()
    return Library(trixie.command("python3"), "/mnt")


@pytest.fixture(params=[this_machines, debian_13s], ids=["this machine's", "Debian 13's"])
def library(request):
    """What a Debian 13 sees of this machine is its network."""
    made = request.param()
    yield made
    assert made.versions[1] == [1, 4]


def test_names_are_looked_up(library, vmail):
    hostname = f"127.0.0.1:{vmail.port}"
    names = ("ann@example.org", "ann@example.net", "bert@example.org", "o'hara@example.org", "ann")
    said = library.decide(vmail, *names, hostname=hostname)
    assert [one[0] for one in said] == [YES, NO, NO, NO, NO]
    assert said[0][2] == "/var/mail/example.org/ann"
    assert said[1][1] == "wrong password"
    assert library.problems == [[], []]


@pytest.mark.parametrize(
    ("kind", "query"), [("pass", f"SELECT {ROW}; SELECT {ROW}"), ("onlogin", "DO 1; DO 2")]
)
def test_a_query_is_one_statement(library, vmail, kind, query):
    """A name never is a part of it; but whoever writes queries is not to be surprised either."""
    more = {"hostname": f"127.0.0.1:{vmail.port}", f"{kind}_query": query}
    ((answer, *_),) = library.decide(vmail, "ann@example.org", **more)
    assert answer == (YES if kind == "onlogin" else CANNOT_SAY)
    what = "driver not told" if kind == "onlogin" else "driver undecided"
    assert [line for line in library.log.splitlines() if what in line and "SQL syntax" in line]


def test_the_server_is_told_so(library, vmail):
    """To this package a library of MySQL's would allow more, and MariaDB's would not."""
    with between(vmail.port) as (port, sent):
        ((answer, *_),) = library.decide(vmail, "ann@example.org", hostname=f"127.0.0.1:{port}")
        assert answer == YES
        assert OFF in b"".join(sent)


@contextmanager
def between(port):
    """A port before another one, and what a client sends there."""
    sent = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def carry(source, target, seen):
            while octets := source.recv(65536):
                seen.append(octets)
                target.sendall(octets)
            target.shutdown(socket.SHUT_WR)

        def serve():
            client, _ = listening.accept()
            with client, socket.create_connection(("127.0.0.1", port)) as server:
                back = threading.Thread(target=carry, args=(server, client, []))
                back.start()
                carry(client, server, sent)
                back.join()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1], sent
        thread.join()


def test_tls_is_refused_and_not_left_out(library, vmail):
    hostname = f"127.0.0.1:{vmail.port}"
    for more in ({"ssl": "yes"}, {"ssl_ca": "/etc/ssl/certs/ca-certificates.crt"}):
        ((answer, reason),) = library.decide(vmail, "ann@example.org", hostname=hostname, **more)
        assert (answer, reason) == (CANNOT_SAY, f"{hostname}: {NO_TLS}")
        assert f"auth-mysql-ssl: {NO_TLS}" in library.problems[0]


def test_a_password_that_is_wrong_is_told_as_ever(library, vmail):
    hostname = f"127.0.0.1:{vmail.port}"
    ((answer, reason),) = library.decide(vmail, "ann", hostname=hostname, password="another")
    assert answer == CANNOT_SAY
    assert reason.startswith(f"{hostname}: Access denied")
    assert USERNAME not in reason
