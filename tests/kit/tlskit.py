"""Certificates of an authority that only the tests know, and clients that trust it."""

import datetime
import functools
import os
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict, Unpack

import pytest
import trustme

import doors
from mailsite import ENVIRONMENT, PATIENCE, Site

HOST = "127.0.0.1"
NAME = "mail.example.org"


class Certified(TypedDict, total=False):
    """What else a certificate can say, and the kind of its key."""

    common_name: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    key_type: trustme.KeyType


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def certify(
    site: Site, *names: str, file: str = "server", **more: Unpack[Certified]
) -> tuple[Path, Path]:
    """A certificate for these names and its key, in files of root's; returns both paths."""
    made = authority().issue_cert(*(names or (HOST, NAME)), **more)
    certificate, key = site.path / f"{file}.pem", site.path / f"{file}.key"
    install(made, certificate, key)
    return certificate, key


def install(made: trustme.LeafCert, certificate: Path, key: Path) -> None:
    """Write a certificate and its key, as programs that renew them do: beside, and rename."""
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    for path, content in ((key, made.private_key_pem.bytes()), (certificate, chain)):
        beside = path.with_suffix(".new")
        beside.touch(mode=0o600)
        beside.write_bytes(content)
        os.rename(beside, path)


def trusting_system(site: Site) -> dict[str, str]:
    """The environment in which OpenSSL takes the authority for one that the system trusts."""
    path = site.path / "authority.pem"
    authority().cert_pem.write_to_path(path)
    return ENVIRONMENT | {"SSL_CERT_FILE": str(path)}


def secure(site: Site, *names: str, **settings: object) -> None:
    """Give a site a certificate, and what else is to be configured."""
    certificate, key = certify(site, *names)
    site.configure({"tls-certificate": certificate, "tls-private-key": key, **settings})


def context(**settings: object) -> ssl.SSLContext:
    """A client's context that trusts the authority."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # see `suppress_ragged_eofs`
    authority().configure_trust(made)
    for key, value in settings.items():
        setattr(made, key, value)
    return made


def wrap(
    wire: doors.Wire,
    using: ssl.SSLContext | None = None,
    name: str | None = HOST,
    *,
    suppress_ragged_eofs: bool = True,
    session: ssl.SSLSession | None = None,
) -> doors.Wire:
    """TLS on the connection of a wire, from now on."""
    assert wire.connection is not None
    wire.connection.settimeout(PATIENCE)
    secured = (using or context()).wrap_socket(
        wire.connection,
        server_hostname=name,
        suppress_ragged_eofs=suppress_ragged_eofs,
        session=session,
    )
    wire.reader, wire.writer = secured.makefile("rb"), secured.makefile("wb")
    wire.connection = secured
    return wire


def stls(
    wire: doors.Wire, using: ssl.SSLContext | None = None, name: str | None = HOST
) -> doors.Wire:
    """The same after STLS."""
    assert wire.ask("STLS").startswith(b"+OK")
    return wrap(wire, using, name)


# Of both kinds: where each connection has a server of its own, and the listener.
DOORS: dict[str, Callable[[Site], AbstractContextManager[doors.Door]]] = {
    "per connection": doors.systemd_accept,
    "listener": doors.standalone,
}
in_both_doors = pytest.mark.parametrize("opens", DOORS.values(), ids=DOORS)


def server_with(change: str) -> list[str]:
    """The server, with something of its modules changed first."""
    run = "from tpop3d.cli import main\nraise SystemExit(main(sys.argv[1:]))"
    return [sys.executable, "-c", f"import sys\n{change}\n{run}"]


def beneath(wire: doors.Wire) -> socket.socket:
    """The connection below its TLS."""
    assert wire.connection is not None
    return socket.socket(fileno=os.dup(wire.connection.fileno()))


class Handshake:
    """A client's side of a handshake, in memory: `hello` is what it begins with."""

    def __init__(self, using: ssl.SSLContext | None = None, name: str = HOST) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        made = using or context()
        self.tls = made.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.hello = self.outgoing.read()

    def finish(self, wire: doors.Wire) -> None:
        """Make it on a wire, the hello included; what goes out later is in `outgoing`."""
        wire.send(self.hello)
        while True:
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                wire.send(self.outgoing.read())
                received = wire.reader.read1()
                assert received, "the connection ended in the handshake"
                self.incoming.write(received)
            finally:
                wire.send(self.outgoing.read())


def lines_of(door: doors.Door, what: str) -> list[str]:
    """All lines of the log that are about this."""
    return [line for line in door.logs.lines() if what in line]


def wait_for_line(door: doors.Door, what: str) -> str:
    """The one line about this; more would be a failure."""
    door.logs.wait_for(what)
    (line,) = lines_of(door, what)
    return line
