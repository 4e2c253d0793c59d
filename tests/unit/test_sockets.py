"""The listening sockets: what a reload binds, keeps and refuses."""

import socket

import pytest

from authkit import config_of
from tpop3d.config import directive
from tpop3d.config.addresses import IMMEDIATE, STLS
from tpop3d.listener import sockets
from tpop3d.listener.sockets import PassedSockets, Sockets
from tpop3d.system.refusal import Refusal


@pytest.fixture
def bound():
    """What binds, and closes all in the end."""
    made = []
    own = Sockets()

    def bind(addresses):
        listening = own.bind(config_of({"listen-address": addresses}))
        if not isinstance(listening, Refusal):
            made.extend(listening)
        return listening

    bind.look_up = lambda addresses: own.look_up(config_of({"listen-address": addresses}))
    yield bind
    for one in made:
        one.close()


def connects(address):
    try:
        socket.create_connection(address, 30).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_socket_that_is_bound_stays_the_same(bound):
    (first,) = bound("127.0.0.1:0")
    assert {first} < {*bound("127.0.0.1:0 127.0.0.2:0")}


def test_when_one_address_is_refused_all_is_as_before(bound):
    (first,) = bound("127.0.0.1:0")
    with socket.create_server(("127.0.0.3", 0)) as taken:
        port = taken.getsockname()[1]
        refused = bound(f"127.0.0.2:{port} 127.0.0.3:{port}")
        assert isinstance(refused, Refusal)
        assert refused.reason.startswith(f"cannot listen on 127.0.0.3:{port}: ")
        assert not connects(("127.0.0.2", port))  # it was bound, and is closed again
        assert connects(first.getsockname())
        # Nobody else may share its port.
        assert not first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    assert [*bound("127.0.0.1:0")] == [first]


def test_a_port_moves_from_one_address_to_all_of_them(bound):
    (first,) = bound("127.0.0.1:0")
    port = first.getsockname()[1]
    (other,) = bound(f"0.0.0.0:{port}")
    assert other is not first
    assert connects(("127.0.0.1", port))


def test_without_an_address_there_is_nothing_to_listen_on(bound):
    assert "give listen-address" in bound("").reason


def test_only_what_is_not_bound_is_looked_up(bound, monkeypatch):
    """Whatever is bound has its addresses; a nameserver may have others by now."""
    asked = []
    assert not isinstance(bound("127.0.0.1:0"), Refusal)
    monkeypatch.setattr(sockets, "_addresses_of", lambda host, port: asked.append((host, port)))
    bound.look_up("127.0.0.1:0 127.0.0.2:1110 127.0.0.1:0(a.example)")
    assert sorted(asked) == [("127.0.0.1", 0), ("127.0.0.2", 1110)]
    assert directive.answers is None


@pytest.fixture
def passed():
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        yield one, other


def test_passed_sockets_that_are_named_so_begin_with_tls(passed):
    own = PassedSockets([*passed], {passed[1].fileno()})
    config = config_of(tls_certificate="/x.pem")
    listening = own.bind(config)
    assert [*listening] == [*passed]
    assert [tls.mode for tls in listening.values()] == [STLS, IMMEDIATE]
    wanted = own.tls_of(config)  # what keys are read for, before anything is bound
    assert [one.is_like(tls) for one, tls in zip(wanted, listening.values(), strict=True)] == [
        True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("is_named", [True, False])
def test_passed_sockets_that_want_tls_want_a_certificate(passed, is_named):
    own = PassedSockets([*passed], {passed[0].fileno()} if is_named else set())
    listening = own.bind(config_of())
    if is_named:
        assert listening.reason.endswith("there is no tls-certificate")
    else:
        assert {tls.mode for tls in listening.values()} == {"none"}
