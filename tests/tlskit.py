"""Certificates of an authority that only the tests know, and clients that trust it."""

import functools
import os
import ssl

import trustme

from mailsite import PATIENCE

HOST = "127.0.0.1"
NAME = "mail.example.org"


@functools.cache
def authority():
    return trustme.CA()


def certify(site, *names, file="server", **more):
    """A certificate for these names and its key, in files of root's; returns both paths."""
    made = authority().issue_cert(*(names or (HOST, NAME)), **more)
    certificate, key = site.path / f"{file}.pem", site.path / f"{file}.key"
    install(made, certificate, key)
    return certificate, key


def install(made, certificate, key):
    """Write a certificate and its key, as programs that renew them do: beside, and rename."""
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    for path, content in ((key, made.private_key_pem.bytes()), (certificate, chain)):
        beside = path.with_suffix(".new")
        beside.touch(mode=0o600)
        beside.write_bytes(content)
        os.rename(beside, path)


def secure(site, *names, **settings):
    """Give a site a certificate, and what else is to be configured."""
    certificate, key = certify(site, *names)
    site.configure({"tls-certificate": certificate, "tls-private-key": key} | settings)


def context(**settings):
    """A client's context that trusts the authority."""
    made = ssl.create_default_context()
    authority().configure_trust(made)
    for key, value in settings.items():
        setattr(made, key, value)
    return made


def wrap(wire, using=None, name=HOST, **more):
    """TLS on the connection of a wire, from now on."""
    wire.connection.settimeout(PATIENCE)
    secured = (using or context()).wrap_socket(wire.connection, server_hostname=name, **more)
    wire.reader, wire.writer = secured.makefile("rb"), secured.makefile("wb")
    wire.connection = secured
    return wire


def stls(wire, using=None, name=HOST):
    """The same after STLS."""
    assert wire.ask("STLS").startswith(b"+OK")
    return wrap(wire, using, name)
