"""Certificates and private keys, from files to what OpenSSL serves with.

Only processes that speak TLS import this: it brings OpenSSL with it.
"""

from __future__ import annotations

import os
import ssl
import stat
from time import gmtime, strftime, time

from tpop3d.config.addresses import located
from tpop3d.system import reasons

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tpop3d.config.addresses import Pairs

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; ssl has no name for it
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# What OpenSSL says where key and certificate do not belong together; first, of keys of one kind.
OF_ANOTHER = ("key values mismatch", "no certificate assigned", "key type mismatch")
NOT_PEM = ("", "pem lib", "no start line")  # what OpenSSL says then
SOON = 7 * 86400  # seconds before a certificate's end in which that is worth a word


class UnusableCertificate(Exception):
    """A certificate, a key or a setting cannot be used: the text says which, and why. `pair` are
    the files of certificate and key, if it is known which."""

    pair: tuple[str, str] | None = None


class CertificateNotGiven(UnusableCertificate):
    """A file that systemd would provide is missing: systemd has not started us."""


class Serving:
    """What one address serves with: `context`, and `warnings` about its certificates."""

    def __init__(self, context: ssl.SSLContext, warnings: list[str]) -> None:
        self.context = context
        self.warnings = warnings


def serving(pairs: Pairs, min_version: str, ciphers: str, *, tickets: bool, look: bool) -> Serving:
    """Load certificates and keys. Raises `UnusableCertificate`.

    `tickets`: may clients resume their sessions? That needs a context that outlives a connection.
    `look`: is there time to look into a lone certificate, too?
    """
    how = min_version, ciphers
    loaded = [_alone(pair, *how, tickets=tickets) for pair in pairs]
    if not look and len(pairs) == 1:
        return Serving(loaded[0], [])
    found = [_inspect(*one) for one in zip(loaded, pairs, strict=True)]
    warnings = [one.warning for one in found if one.warning]
    if len(pairs) == 1:
        return Serving(loaded[0], warnings)
    made: dict[tuple[int, ...], ssl.SSLContext]
    made = {(number,): context for number, context in enumerate(loaded)}

    def together(numbers: list[int]) -> ssl.SSLContext:
        """Make a context with the first of these for each kind of key: OpenSSL takes the one that
        the client can use."""
        kinds: dict[bytes, int] = {}
        for number in numbers:
            kinds.setdefault(found[number].kind, number)
        chosen = tuple(kinds.values())
        if chosen not in made:
            made[chosen] = _context([pairs[number] for number in chosen], *how, tickets=tickets)
        return made[chosen]

    def of(name: str) -> list[int]:
        """The certificates for a host: first those with its name, then those with an asterisk."""
        return [
            number
            for wanted in (name, _with_asterisk(name))
            for number, one in enumerate(found)
            if wanted in one.names
        ]

    by_name = {name: together(of(name)) for name in {name for one in found for name in one.names}}
    # Whoever names no host gets no certificate that has less than the first.
    first = together([n for n, one in enumerate(found) if one.identities >= found[0].identities])

    # With a callback OpenSSL asks for every name that a client gives (RFC 6066 section 3).
    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        context = _find(by_name, name)
        if context is not None:
            connection.context = context

    first.sni_callback = choose
    return Serving(first, warnings)


def _find(by_name: dict[str, ssl.SSLContext], name: str | None) -> ssl.SSLContext | None:
    """The context for a host: by its name, or by an asterisk for its first label."""
    if name is None:
        return None
    name = name.lower().rstrip(".")
    return by_name.get(name) or by_name.get(_with_asterisk(name))


def _with_asterisk(name: str) -> str:
    return "*." + name.partition(".")[2]


def _alone(
    pair: tuple[str, str], min_version: str, ciphers: str, *, tickets: bool
) -> ssl.SSLContext:
    """Make the context of one certificate."""
    try:
        return _context([pair], min_version, ciphers, tickets=tickets)
    except UnusableCertificate as error:
        error.pair = pair
        raise


def _context(
    pairs: list[tuple[str, str]], min_version: str, ciphers: str, *, tickets: bool
) -> ssl.SSLContext:
    """Make the context of certificates with keys of different kinds."""
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
        raise UnusableCertificate(f"tls-ciphers: OpenSSL knows no cipher in {ciphers!r}") from None
    for pair in pairs:
        _load(context, *pair)
    return context


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load one more certificate into a context."""
    try:
        files = located(certificate), located(key)
    except ValueError as error:
        raise CertificateNotGiven(str(error)) from None
    for path in files:
        _check_readable(path)
    if os.stat(files[1]).st_mode & 0o004:
        why = f"every user can read this private key: chmod o-r {files[1]}"
        raise UnusableCertificate(f"{files[1]}: {why}")
    try:
        context.load_cert_chain(*files, password=_no_passphrase)
    except (ssl.SSLError, ValueError) as error:
        raise UnusableCertificate(_why_not_loaded(error, *files)) from None


def _check_readable(path: str) -> None:
    """Raise `UnusableCertificate` where a file cannot be read: OpenSSL would not say which, and
    would wait for somebody to write to a pipe."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnusableCertificate(f"{path}: is no regular file")
    except OSError as error:
        raise UnusableCertificate(f"{path}: {reasons.why(error)}") from None


class _Encrypted(ValueError):
    """The private key needs a passphrase."""


def _no_passphrase() -> str:
    raise _Encrypted


def _why_not_loaded(error: ssl.SSLError | ValueError, certificate: str, key: str) -> str:
    """Say what is wrong with these two files, each of which can be read."""
    from tpop3d.tls.pem import certificates_in, wrong_with_certificate, wrong_with_key

    with open(certificate, "rb") as file, open(key, "rb") as other:
        octets, key_octets = file.read(), other.read()
    wrong = wrong_with_certificate(certificate, octets)
    wrong_key = wrong_with_key(key, key_octets, certificate)
    is_key_certificate = not wrong_with_certificate(key, key_octets)
    if wrong and wrong_key and is_key_certificate and not wrong_with_key(certificate, octets, key):
        wrong += f", which {key} is: they are in each other's place"
    if wrong or wrong_key:
        return wrong or wrong_key
    if isinstance(error, _Encrypted):
        return f"{key}: is encrypted, and nobody is here to give the passphrase"
    reason = reason_of(error) if isinstance(error, ssl.SSLError) and error.reason else ""
    if reason in OF_ANOTHER:
        first, *others = certificates_in(octets)
        if any(one.issuer == first.subject for one in others):
            why = "is in the wrong order: the server's own certificate must come first"
            return f"{certificate}: {why}, and behind each that of its issuer"
        return f"{key}: is not the private key of {certificate}"
    why = "no certificate and private key in PEM form" if reason in NOT_PEM else reason
    return f"{certificate} and {key}: cannot be used: {why}"


def reason_of(error: ssl.SSLError) -> str:
    """Write what OpenSSL says as words: its own vocabulary, nothing from the network."""
    return (error.reason or type(error).__name__).replace("_", " ").lower()


class _Found:
    """What is in a certificate: the `names` of hosts, all `identities`, the `kind` of its key, and
    what is worth a `warning`."""

    __slots__ = ("identities", "kind", "names", "warning")

    def __init__(
        self, names: list[str], identities: set[tuple[str, str]], kind: bytes, warning: str
    ) -> None:
        self.names = names
        self.identities = identities
        self.kind = kind
        self.warning = warning


def _inspect(context: ssl.SSLContext, pair: tuple[str, str]) -> _Found:
    """Look into a certificate, by a handshake with ourselves: the client trusts this very
    certificate. Raises `UnusableCertificate` where no client could use it."""
    from tpop3d.tls.pem import Certificate

    certificate = pair[0]
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    try:
        trusting.load_verify_locations(located(certificate))
        client = shake_hands(context, trusting)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or reason_of(error)
        unusable = UnusableCertificate(f"{certificate}: no client could use it ({why})")
        unusable.pair = pair
        raise unusable from None
    found: dict[str, Any] = client.getpeercert() or {}
    identities = {(kind, str(name).lower()) for kind, name in found.get("subjectAltName", ())}
    names = [name for kind, name in identities if kind == "DNS"]
    if not names:
        subject = [entry for group in found.get("subject", ()) for entry in group]
        names = [value.lower() for key, value in subject if key == "commonName"]
        identities |= {("DNS", name) for name in names}
    try:
        kind = Certificate(client.getpeercert(binary_form=True) or b"").kind
    except ValueError:
        kind = b""  # OpenSSL understands more than we do
    warning = _about_time(found["notBefore"], found["notAfter"], certificate)
    return _Found(names, identities, kind, warning)


def date(seconds: float) -> str:
    """Write a moment as OpenSSL does."""
    return strftime("%b %e %H:%M:%S %Y GMT", gmtime(seconds))


def _about_time(start: str, end: str, certificate: str) -> str:
    now = time()
    if ssl.cert_time_to_seconds(end) < now:
        return f"{certificate}: has expired on {end}"
    if ssl.cert_time_to_seconds(end) < now + SOON:
        return f"{certificate}: expires on {end}"
    if ssl.cert_time_to_seconds(start) > now:
        return f"{certificate}: is not valid before {start}"
    return ""


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Make a handshake in memory; returns the client's side. Raises ssl.SSLError."""
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
