"""A site moves here, and its clients, real ones that leave mail on the server, fetch nothing twice.

They know what they have by its unique-id. qpopper is not in Debian: what it has written into the
messages is in test_moving_here.py.
"""

import pytest

import doors
import otherservers
import test_real_clients
from clients import Client
from mailsite import CHECKOUT
from samples import MESSAGES, message, spool_of
from tpop3d.mailspool.uidl_styles import DOVECOT, POPA3D

README = (CHECKOUT / "README").read_text()
NEW = message(100, b"new", b"Came after the move.\n")
SERVERS = {
    POPA3D: otherservers.popa3d_on_a_port,
    DOVECOT: otherservers.dovecot_on_a_port,
}


def mpop(client):
    return test_real_clients.TestMpop().mpop(client, "on", "user")


def getmail(client):
    return test_real_clients.TestGetmail().getmail(client, "false")


@pytest.fixture(autouse=True)
def one_port(monkeypatch):
    """All servers of a test, one after the other, have the same: getmail knows a server by it."""
    port = doors.free_port()
    monkeypatch.setattr(doors, "free_port", lambda: port)


@pytest.mark.parametrize("fetch", [mpop, getmail])
@pytest.mark.parametrize("style", SERVERS)
def test_a_client_that_has_all_fetches_nothing(site, style, fetch):
    site.add("ann", spool_of(MESSAGES[:-1]))
    with SERVERS[style](site) as door:
        client = Client(site, door)
        assert fetch(client).returncode == 0
        assert len(client.delivered()) == len(MESSAGES) - 1
    fetched = client.delivered()
    site.configure({"uidl-style": style})
    with doors.standalone(site) as client.door:
        assert fetch(client).returncode == 0
        assert client.delivered() == fetched
        with site.spool("ann").open("ab") as spool:
            spool.write(spool_of([NEW]))
        assert fetch(client).returncode == 0
        assert len(client.delivered()) == len(fetched) + 1
        assert NEW in client.delivered()
        assert fetch(client).returncode == 0
        assert len(client.delivered()) == len(fetched) + 1


@pytest.mark.parametrize("style", SERVERS)
def test_with_another_style_it_would_fetch_all(site, style):
    """What the test before this one would see."""
    site.add("ann", spool_of(MESSAGES[:-1]))
    with SERVERS[style](site) as door:
        client = Client(site, door)
        assert mpop(client).returncode == 0
    with doors.standalone(site) as client.door:
        assert mpop(client).returncode == 0
        assert len(client.delivered()) == 2 * (len(MESSAGES) - 1)


def uidl(client):
    """What README has an administrator type, before and after."""
    url = f"pop3://{client.door.host}:{client.door.port}/"
    command = "curl -s -u anna --request UIDL pop3://localhost/"
    assert f"    {command} > before\n" in README
    words = command.replace("anna", "ann:secret").replace("pop3://localhost/", url).split()
    done = client.run(*words)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("style", SERVERS)
def test_as_the_administrator_sees_it(site, style):
    site.add("ann", spool_of(MESSAGES[:-1]))
    with SERVERS[style](site) as door:
        client = Client(site, door)
        before = uidl(client)
    assert before.count(b"\r\n") == len(MESSAGES) - 1
    with doors.standalone(site) as client.door:
        assert uidl(client) != before
    site.configure({"uidl-style": style})
    with doors.standalone(site) as client.door:
        assert uidl(client) == before
