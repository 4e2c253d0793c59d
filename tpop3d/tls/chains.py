"""What keeps clients away though a certificate can be used: for `--check-config`."""

from __future__ import annotations

import os
import ssl
from itertools import pairwise
from time import time

from tpop3d.config.addresses import located
from tpop3d.tls import certificates
from tpop3d.tls.pem import Certificate, certificates_in, name_of

# X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, ..._LOCALLY, X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
NO_ISSUER = (2, 20, 21)
FULL = "fullchain.pem"  # as ACME clients name what has the chain, beside what has not


def doubts(pair: tuple[str, str], min_version: str, ciphers: str) -> list[str]:
    """Say what is doubtful about a certificate that can be used, each with its file or directive.
    Raises `certificates.UnusableCertificate`."""
    context = certificates.serving((pair,), min_version, ciphers, tickets=False, look=False).context
    path = located(pair[0])
    try:
        with open(path, "rb") as file:
            chain = certificates_in(file.read())
        found = [f"{pair[0]}: {why}" for why in _of_chain(path, chain, context)]
    except ValueError:
        found = []  # OpenSSL understands more than we do
    return found + _of_ciphers(pair[0], context, min_version)


def _of_chain(path: str, chain: list[Certificate], context: ssl.SSLContext) -> list[str]:
    """Say what is doubtful about the way from a certificate to its root."""
    found = []
    for one, following in pairwise(chain):
        if one.issuer != following.subject:
            told = f"{name_of(one.subject)}, of {name_of(one.issuer)}"
            next_one = name_of(following.subject)
            found.append(f"its certificates are no chain: behind {told}, comes {next_one}")
            break
    now = time()
    for one in chain[1:]:
        if one.end < now + certificates.SOON:
            verb = "has expired" if one.end < now else "expires"
            end = certificates.date(one.end)
            found.append(
                f"the certificate of an issuer in it, {name_of(one.subject)}, {verb} on {end}"
            )
    first = chain[0]
    if len(chain) == 1 and not first.is_self_signed and not _is_trusted(context):
        why = f"has no chain: clients must know its issuer, {name_of(first.issuer)}, themselves"
        beside = os.path.join(os.path.dirname(path), FULL)
        if path != beside and os.path.exists(beside):
            why += f"; is {beside} meant?"
        found.append(why)
    return found


def _is_trusted(context: ssl.SSLContext) -> bool:
    """Does a client that trusts whom this system trusts find the way to a root?"""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= certificates.NO_CHECK_TIME
    client.load_default_certs(ssl.Purpose.SERVER_AUTH)
    try:
        certificates.shake_hands(context, client)
    except ssl.SSLCertVerificationError as error:
        return error.verify_code not in NO_ISSUER
    except ssl.SSLError:
        pass  # it is told elsewhere
    return True


def _of_ciphers(certificate: str, context: ssl.SSLContext, min_version: str) -> list[str]:
    """Say what is doubtful about `tls-ciphers`."""
    found = []
    idle = [str(one["name"]) for one in context.get_ciphers() if one.get("kea") == "kx-dhe"]
    if idle:
        why = "of DHE are never used: there are no parameters for them here"
        found.append(f"tls-ciphers: those {why}: {' '.join(idle)}")
    if min_version != "1.2":
        return found
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ALL:@SECLEVEL=0")
    try:
        certificates.shake_hands(context, client)
    except ssl.SSLError:
        found.append(f"tls-ciphers: has none with which TLS 1.2 could use {certificate}")
    return found
