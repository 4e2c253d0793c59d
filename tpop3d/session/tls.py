"""Certificates and private keys, from files to what OpenSSL serves with.

Only processes that speak TLS import this: it brings OpenSSL with it.
"""

from __future__ import annotations

import os
import ssl
from time import time

from tpop3d.addresses import located

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tpop3d.addresses import Pairs

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; ssl has no name for it
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
NOT_PEM = ("", "pem lib", "no start line")  # what OpenSSL says then
SOON = 7 * 86400  # seconds before a certificate's end in which that is worth a word


class Unusable(Exception):
    """A certificate, a key or a setting that cannot be used: the text says which, and why."""


class NotGiven(Unusable):
    """A file that systemd would have given, and we were not started by systemd."""


class Serving:
    """What one address serves with: `context`, and `warnings` about its certificates."""

    def __init__(self, context: ssl.SSLContext, warnings: list[str]) -> None:
        self.context = context
        self.warnings = warnings


def serving(pairs: Pairs, min_version: str, ciphers: str, *, tickets: bool, look: bool) -> Serving:
    """Load certificates and keys. Raises `Unusable`.

    `tickets`: clients may resume their sessions, which needs a context that lives longer than a
    connection. `look`: is there time to look at a lone certificate, too?
    """
    loaded = [_context(*pair, min_version, ciphers, tickets=tickets) for pair in pairs]
    warnings: list[str] = []
    by_name: dict[str, ssl.SSLContext] = {}
    if look or len(pairs) > 1:
        for context, (certificate, _) in zip(loaded, pairs, strict=True):
            names, warning = _inspect(context, certificate)
            warnings += [warning] if warning else []
            for name in names:
                by_name.setdefault(name, context)
    first = loaded[0]
    if len(pairs) > 1:
        # With a callback OpenSSL asks for every name that a client gives (RFC 6066 section 3).
        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            found = _find(by_name, name)
            if found is not None:
                connection.context = found

        first.sni_callback = choose
    return Serving(first, warnings)


def _find(by_name: dict[str, ssl.SSLContext], name: str | None) -> ssl.SSLContext | None:
    """The context for a host: by its name, or by an asterisk for its first label."""
    if name is None:
        return None
    name = name.lower().rstrip(".")
    return by_name.get(name) or by_name.get("*." + name.partition(".")[2])


def _context(
    certificate: str, key: str, min_version: str, ciphers: str, *, tickets: bool
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.options |= ssl.OP_NO_COMPRESSION
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        raise Unusable(f"tls-ciphers: OpenSSL knows no cipher in {ciphers!r}") from None
    try:
        files = located(certificate), located(key)
    except ValueError as error:
        raise NotGiven(str(error)) from None
    for path in files:
        _check_readable(path)
    if os.stat(files[1]).st_mode & 0o004:
        raise Unusable(f"{files[1]}: every user can read this private key: chmod o-r {files[1]}")
    try:
        context.load_cert_chain(*files, password=_no_passphrase)
    except (ssl.SSLError, ValueError) as error:
        raise Unusable(_why_not_loaded(error, *files)) from None
    return context


def _check_readable(path: str) -> None:
    """OpenSSL would not say which file it means."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None


class _Encrypted(ValueError):
    """A private key that wants a passphrase."""


def _no_passphrase() -> str:
    raise _Encrypted


def _why_not_loaded(error: ssl.SSLError | ValueError, certificate: str, key: str) -> str:
    if isinstance(error, _Encrypted):
        return f"{key}: is encrypted, and nobody is here to give the passphrase"
    reason = reason_of(error) if isinstance(error, ssl.SSLError) and error.reason else ""
    if reason == "key values mismatch":
        return f"{key}: is not the private key of {certificate}"
    why = "no certificate and private key in PEM form" if reason in NOT_PEM else reason
    return f"{certificate} and {key}: cannot be used: {why}"


def reason_of(error: ssl.SSLError) -> str:
    """What OpenSSL says, as words: of its own vocabulary, nothing from the network."""
    return (error.reason or type(error).__name__).replace("_", " ").lower()


def _inspect(context: ssl.SSLContext, certificate: str) -> tuple[list[str], str]:
    """The names of hosts in a certificate, and what is worth a warning about it.

    Both are found in a handshake with ourselves, by a client that trusts this very certificate.
    Raises `Unusable` where no client could make one.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    try:
        trusting.load_verify_locations(located(certificate))
        client = _shake_hands(context, trusting)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or reason_of(error)
        raise Unusable(f"{certificate}: no client could use it ({why})") from None
    found: dict[str, Any] = client.getpeercert() or {}
    names = [name.lower() for kind, name in found.get("subjectAltName", ()) if kind == "DNS"]
    if not names:
        subject = [entry for group in found.get("subject", ()) for entry in group]
        names = [value.lower() for key, value in subject if key == "commonName"]
    return names, _about_time(found["notBefore"], found["notAfter"], certificate)


def _about_time(start: str, end: str, certificate: str) -> str:
    now = time()
    if ssl.cert_time_to_seconds(end) < now:
        return f"{certificate}: has expired on {end}"
    if ssl.cert_time_to_seconds(end) < now + SOON:
        return f"{certificate}: expires on {end}"
    if ssl.cert_time_to_seconds(start) > now:
        return f"{certificate}: is not valid before {start}"
    return ""


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """A handshake in memory; returns the client's side. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [theirs, ours]
    while pending:
        side = pending.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pending.append(side)
    return theirs
