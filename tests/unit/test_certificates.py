"""Certificates and keys, from files to what OpenSSL serves with: what is good, chosen, refused."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import tlskit
from tpop3d.settings import DIRECTIVES
from tpop3d.tls import certificates

CIPHERS = DIRECTIVES["tls-ciphers"].default


@pytest.fixture
def files(tmp_path):
    """Makes a certificate and its key; returns both paths, as the configuration has them."""

    def make(*names, **more):
        made = tlskit.authority().issue_cert(*names, **more)
        count = len(list(tmp_path.iterdir()))
        paths = tmp_path / f"{count}.pem", tmp_path / f"{count}.key"
        tlskit.install(made, *paths)
        return tuple(map(str, paths))

    return make


def serving(*pairs, version="1.2", ciphers=CIPHERS, tickets=False, look=True):
    return certificates.serving(tuple(pairs), version, ciphers, tickets=tickets, look=look)


def trusting_nobody(**settings):
    """A client that makes a handshake with whoever has any certificate."""
    return tlskit.context(check_hostname=False, verify_mode=ssl.CERT_NONE, **settings)


def shake_hands(server, client=None, name=None, session=None):
    """A handshake in memory, and an octet for the client; returns both sides.

    What the server says of it is raised, not what the client makes of that.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client or trusting_nobody()
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    ours.write(b"x")
    assert theirs.read() == b"x"
    return theirs, ours


def der_of(certificate):
    with open(certificate) as file:
        return ssl.PEM_cert_to_DER_cert(
            file.read().split("-----END")[0] + "-----END CERTIFICATE-----\n"
        )


# What cannot be used


def self_signed(path, usage):
    """A certificate for itself and its key in one file, for this purpose only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a.example")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now.replace(year=2100))
    made = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    octets = key.private_bytes(encoding, private, serialization.NoEncryption())
    path.touch(mode=0o600)
    path.write_bytes(octets + made.sign(key, hashes.SHA256()).public_bytes(encoding))
    return str(path), str(path)


def encrypt(key):
    with open(key, "rb") as file:
        loaded = serialization.load_pem_private_key(file.read(), None)
    with open(key, "wb") as file:
        file.write(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"swordfish"),
            )
        )


def write(path, octets):
    with open(path, "wb") as file:
        file.write(octets)


def test_what_is_no_certificate_or_key_is_refused_with_its_name(files):
    certificate, key = files("a.example")
    other = files("a.example")
    fresh = files("b.example")
    encrypt(fresh[1])
    empty, garbage, half = files("c.example"), files("d.example"), files("e.example")
    write(empty[0], b"")
    write(garbage[1], bytes(range(256)) * 20)
    with open(half[0], "rb") as file:
        octets = file.read()
    write(half[0], octets[: len(octets) // 4])
    refused = {
        (certificate + "x", key): f"{certificate}x: No such file or directory",
        (certificate, key + "x"): f"{key}x: No such file or directory",
        ("/etc", key): "/etc: Is a directory",
        (certificate, other[1]): f"{other[1]}: is not the private key of {certificate}",
        fresh: f"{fresh[1]}: is encrypted, and nobody is here to give the passphrase",
        empty: f"{empty[0]}: is empty",
        garbage: f"{garbage[1]}: is no private key in PEM form",
        half: f"{half[0]}: a certificate in it is cut off",
        (key, certificate): f"{key}: is a private key, and no certificate, which {certificate} is",
        (certificate, certificate): f"{certificate}: holds no private key; tls-private-key must",
    }
    for pair, text in refused.items():
        for look in (True, False):
            with pytest.raises(certificates.UnusableCertificate) as raised:
                serving(pair, look=look)
            assert str(raised.value).startswith(text)
    assert serving((certificate, key)).warnings == []


def test_a_good_certificate_behind_a_bad_one_is_no_help(files):
    good, bad = files("a.example"), files("b.example")
    write(bad[1], b"")
    for pairs in ((good, bad), (bad, good)):
        with pytest.raises(certificates.UnusableCertificate, match=f"{bad[1]}: is empty"):
            serving(*pairs)


def test_a_key_that_every_user_can_read_is_refused(files, tmp_path):
    pair = files("a.example")
    key = tmp_path / pair[1]
    key.chmod(0o640)
    assert serving(pair)
    key.chmod(0o604)
    with pytest.raises(certificates.UnusableCertificate) as raised:
        serving(pair)
    assert str(raised.value) == (f"{key}: every user can read this private key: chmod o-r {key}")


def test_a_credential_without_systemd_is_refused(files, monkeypatch, tmp_path):
    certificate, key = files("a.example")
    named = certificate, key.replace(str(tmp_path), "$CREDENTIALS_DIRECTORY")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(certificates.UnusableCertificate, match="systemd has set no "):
        serving(named)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert serving(named).warnings == []


@pytest.mark.parametrize("ciphers", ["", "no such", "TLS_AES_128_GCM_SHA256", "ECDHE+NOTHING"])
def test_ciphers_that_openssl_does_not_know_are_refused(files, ciphers):
    with pytest.raises(certificates.UnusableCertificate) as raised:
        serving(files("a.example"), ciphers=ciphers)
    assert str(raised.value) == f"tls-ciphers: OpenSSL knows no cipher in {ciphers!r}"


def test_a_certificate_that_is_not_for_servers_is_refused(tmp_path):
    usage = x509.ExtendedKeyUsageOID
    assert serving(self_signed(tmp_path / "good", usage.SERVER_AUTH)).warnings == []
    pair = self_signed(tmp_path / "bad", usage.CLIENT_AUTH)
    why = r"bad: no client could use it \(.*purpose"
    with pytest.raises(certificates.UnusableCertificate, match=why):
        serving(pair)


# What is worth a warning


def when(**delta):
    return datetime.now(UTC) + timedelta(**delta)


TIMES = {
    "expired": ({"not_before": when(days=-9), "not_after": when(days=-1)}, "has expired on "),
    "expires soon": ({"not_after": when(days=6)}, "expires on "),
    "is not valid yet": (
        {"not_before": when(days=1), "not_after": when(days=30)}, "is not valid before ",
    ),
    "is good": ({"not_after": when(days=8)}, None),
}  # fmt: skip


@pytest.mark.parametrize("what", TIMES)
def test_a_certificate_out_of_its_time_is_served_with_a_warning(files, what):
    """Whoever has only this one serves it: some clients do not look."""
    times, text = TIMES[what]
    pair = files("a.example", **times)
    found = serving(pair)
    expected = [f"{pair[0]}: {text}"] if text else []
    assert [one.partition(" GMT")[0][: len(expected[0])] for one in found.warnings] == expected
    assert shake_hands(found.context)[0].version() == "TLSv1.3"
    # A door that serves one connection has no time to look.
    assert serving(pair, look=False).warnings == []


def test_each_certificate_has_its_warning(files):
    pairs = [files(f"{n}.example", not_after=when(days=n)) for n in (3, 30, 5)]
    found = serving(*pairs, look=False).warnings
    assert [one.partition(":")[0] for one in found] == [pairs[0][0], pairs[2][0]]


# Which one


@pytest.fixture
def choice(files):
    """Says which of several certificates a client gets that names a host."""
    by_number = [
        files("first.example"),
        files("a.example", "B.Example"),
        files("*.wild.example"),
        files(common_name="common.example"),
        files("alone.example", common_name="ignored.example"),
        files("a.example", "x.wild.example"),
        files("127.0.0.1"),
    ]
    numbers = {der_of(certificate): number for number, (certificate, _) in enumerate(by_number)}
    context = serving(*by_number, look=False).context

    def chosen(name):
        client, _ = shake_hands(context, name=name)
        return numbers[client.getpeercert(binary_form=True)]

    return chosen


CHOSEN = {
    0: [None, "first.example", "unknown.example", "example", "127.0.0.1", "y.x.wild.example",
        "wild.example", "ignored.example", "a.example.com", "*.example"],
    1: ["a.example", "A.EXAMPLE", "b.example", "a.example."],
    2: ["y.wild.example", "Y.Wild.Example", "*.wild.example"],
    3: ["common.example"],
    4: ["alone.example"],
    5: ["x.wild.example"],
}  # fmt: skip


def test_the_certificate_is_that_of_the_name(choice):
    found = {name: choice(name) for names in CHOSEN.values() for name in names}
    assert found == {name: number for number, names in CHOSEN.items() for name in names}


def test_a_lone_certificate_is_for_every_name(files):
    pair = files("a.example")
    for name in (None, "a.example", "b.example"):
        client, _ = shake_hands(serving(pair).context, name=name)
        assert client.getpeercert(binary_form=True) == der_of(pair[0])


@pytest.mark.parametrize("kind", trustme.KeyType)
def test_keys_of_both_kinds_do(files, kind):
    found = serving(files("a.example", key_type=kind))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = tlskit.context(maximum_version=version)
        assert shake_hands(found.context, client, "a.example")[0].getpeercert()


RSA, ECDSA = trustme.KeyType.RSA, trustme.KeyType.ECDSA
# Certificates, and for a name which is given to clients of RSA, and of ECDSA.
OF_BOTH_KINDS = [
    ([(RSA, "a.example"), (ECDSA, "a.example")], {"a.example": (0, 1), None: (0, 1)}),
    ([(ECDSA, "a.example"), (RSA, "a.example")], {"a.example": (1, 0), None: (1, 0)}),
    (
        [(RSA, "a.example", "b.example"), (ECDSA, "a.example")],
        {"a.example": (0, 1), "b.example": (0, None), None: (0, None)},
    ),
    (
        [(RSA, "a.example"), (ECDSA, "a.example", "b.example")],
        {"a.example": (0, 1), "b.example": (None, 1), None: (0, 1), "c.example": (0, 1)},
    ),
    (
        [(RSA, "a.example"), (RSA, "a.example"), (ECDSA, "*.example")],
        {"a.example": (0, 2), "z.example": (None, 2), None: (0, None)},
    ),
    (
        [(RSA, "a.example"), (ECDSA, "b.example"), (ECDSA, "a.example"), (RSA, "b.example")],
        {"a.example": (0, 2), "b.example": (3, 1), None: (0, 2)},
    ),
]


@pytest.mark.parametrize(("made", "wanted"), OF_BOTH_KINDS)
def test_for_one_name_each_kind_of_key_is_served(files, made, wanted):
    pairs = [files(*names, key_type=kind) for kind, *names in made]
    numbers = {der_of(certificate): number for number, (certificate, _) in enumerate(pairs)}
    context = serving(*pairs, look=False).context

    def got(name, kind):
        using = speaking(f"ECDHE-{kind}-AES256-GCM-SHA384")
        if wanted[name][kind == "ECDSA"] is None:
            with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
                shake_hands(context, using, name)
            return None
        client, _ = shake_hands(context, using, name)
        return numbers[client.getpeercert(binary_form=True)]

    assert {name: (got(name, "RSA"), got(name, "ECDSA")) for name in wanted} == wanted


# How


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_with_tickets_a_client_goes_on_where_it_was(files, version):
    context = serving(files("a.example"), files("b.example"), tickets=True).context
    for name in (None, "a.example", "b.example"):
        client = trusting_nobody(maximum_version=version)
        first, _ = shake_hands(context, client, name)
        second, _ = shake_hands(context, client, name, session=first.session)
        assert not first.session_reused
        assert second.session_reused
        # The same under another context, which is a keyholder that was replaced: a new handshake.
        other = serving(files("a.example"), tickets=True).context
        assert not shake_hands(other, client, name, session=second.session)[0].session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tickets", [False, True])
def test_a_client_gets_a_ticket_where_it_is_worth_something(files, version, tickets):
    """Not from a process that serves one connection only."""
    context = serving(files("a.example"), tickets=tickets).context
    session = shake_hands(context, trusting_nobody(maximum_version=version))[0].session
    assert bool(session and session.has_ticket) is tickets


def old(version):
    """A client that speaks no newer version, with all that may keep it from an old one lifted."""
    with pytest.warns(DeprecationWarning, match="deprecated"):
        client = trusting_nobody(minimum_version=version, maximum_version=version)
    client.set_ciphers("ALL:@SECLEVEL=0")
    return client


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_versions_are_refused(files, version):
    with pytest.raises(ssl.SSLError) as raised:
        shake_hands(serving(files("a.example")).context, old(ssl.TLSVersion[version]))
    assert certificates.reason_of(raised.value) == "unsupported protocol"


def test_the_least_version_may_be_higher(files):
    pair = files("a.example")
    client = trusting_nobody(maximum_version=ssl.TLSVersion.TLSv1_2)
    assert shake_hands(serving(pair).context, client)[0].version() == "TLSv1.2"
    with pytest.raises(ssl.SSLError) as raised:
        shake_hands(serving(pair, version="1.3").context, client)
    assert certificates.reason_of(raised.value) == "unsupported protocol"
    assert shake_hands(serving(pair, version="1.3").context)[0].version() == "TLSv1.3"


def speaking(ciphers):
    client = trusting_nobody(maximum_version=ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(ciphers)
    return client


WEAK = ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA", "ECDHE-RSA-AES256-SHA384", "AES256-SHA",
        "DHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-NULL-SHA:@SECLEVEL=0"]  # fmt: skip


@pytest.mark.parametrize("cipher", WEAK)
def test_weak_ciphers_are_refused(files, cipher):
    pair = files("a.example", key_type=trustme.KeyType.RSA)
    with pytest.raises(ssl.SSLError) as raised:
        shake_hands(serving(pair).context, speaking(cipher))
    assert certificates.reason_of(raised.value) == "no shared cipher"
    if cipher == "AES128-GCM-SHA256":  # unless somebody wants them
        shake_hands(serving(pair, ciphers=cipher).context, speaking(cipher))


def test_the_server_prefers(files):
    context = serving(files("a.example")).context
    client = speaking("ECDHE+CHACHA20:ECDHE+AESGCM")
    assert "AES" in shake_hands(context, client)[0].cipher()[0]


def test_reasons_are_words():
    made = ssl.SSLEOFError(8, "EOF occurred in violation of protocol (_ssl.c:1000)")
    made.reason = None
    assert certificates.reason_of(made) == "ssleoferror"
    made.reason = "HTTP_REQUEST"
    assert certificates.reason_of(made) == "http request"
