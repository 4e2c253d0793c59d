"""What is wrong with a file of a certificate or a key is said as what it is, with the file's name;
and what is doubtful about one that can be used."""

import functools
import os
import ssl
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

import tlskit
from authkit import tpop3d
from mailsite import need
from test_certificates import CIPHERS, serving
from tpop3d.tls import certificates, chains, pem

RSA, ECDSA = trustme.KeyType.RSA, trustme.KeyType.ECDSA
NAME = "a.example"


def openssl(*arguments, **options):
    words = [need("openssl"), *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, **options).stdout


@functools.cache
def authorities(kind):
    """A root, and who is in the middle."""
    root = trustme.CA(key_type=kind)
    return root, root.create_child_ca(key_type=kind)


class Files:
    """A certificate, its key and its chain, and what may be made of them."""

    def __init__(self, directory, kind=ECDSA, root_kind=RSA):
        self.root, self.middle = authorities(root_kind)
        self.made = self.middle.issue_cert(NAME, key_type=kind)
        self.pem = [one.bytes() for one in self.made.cert_chain_pems]  # without the root
        self.pem += [self.root.cert_pem.bytes()]
        self.certificate, self.key = directory / "x.pem", directory / "x.key"
        self.key.touch(0o600)
        self.certificate.write_bytes(b"".join(self.pem))
        self.key.write_bytes(self.made.private_key_pem.bytes())

    @property
    def pair(self):
        return str(self.certificate), str(self.key)

    def chain(self, *numbers):
        self.certificate.write_bytes(b"".join(self.pem[number] for number in numbers))


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def refused(pair):
    with pytest.raises(certificates.UnusableCertificate) as raised:
        serving(pair, look=False)
    assert raised.value.pair == pair
    return str(raised.value)


# Of the certificate's file


def as_der(files):
    files.certificate.write_bytes(openssl("x509", "-outform", "der", input=files.pem[0]))


def as_pkcs12(files):
    written = openssl("pkcs12", "-export", "-in", files.certificate, "-inkey", files.key,
                      "-passout", "pass:")  # fmt: skip
    files.certificate.write_bytes(written)


def as_pkcs7(files):
    arguments = ("crl2pkcs7", "-nocrl", "-certfile", files.certificate)
    files.certificate.write_bytes(openssl(*arguments))


def as_pkcs7_der(files):
    arguments = ("crl2pkcs7", "-nocrl", "-outform", "der", "-certfile", files.certificate)
    files.certificate.write_bytes(openssl(*arguments))


def as_request(files):
    subject = ("-new", "-subj", f"/CN={NAME}", "-key", files.key)
    files.certificate.write_bytes(openssl("req", *subject))


def as_key(files):
    files.certificate.write_bytes(files.key.read_bytes())


def as_key_der(files):
    files.certificate.write_bytes(openssl("pkey", "-in", files.key, "-outform", "der"))


def in_each_others_place(files):
    content = files.certificate.read_bytes()
    files.certificate.write_bytes(files.key.read_bytes())
    files.key.write_bytes(content)


def empty(files):
    files.certificate.write_bytes(b"\n")


def cut_off(files):
    files.certificate.write_bytes(files.certificate.read_bytes()[:-100])


def damaged(files):
    files.certificate.write_bytes(files.pem[0][:200] + files.pem[0][260:])


def indented(files):
    files.certificate.write_bytes(b"    " + files.pem[0].replace(b"\n", b"\n    "))


def in_utf_16(files):
    files.certificate.write_bytes(files.pem[0].decode().encode("utf-16"))


def nonsense(files):
    files.certificate.write_bytes(b"no certificate at all\n")


def reversed_order(files):
    files.chain(2, 1, 0)


def issuer_first(files):
    files.chain(1, 0)


CERTIFICATE_IS = {
    as_der: "is a certificate in DER form; PEM is what openssl x509 -inform der -in {0} writes",
    as_pkcs12: "is PKCS#12; PEM is what openssl pkcs12 -nodes -in {0} writes",
    as_pkcs7: "is PKCS#7; PEM is what openssl pkcs7 -print_certs -in {0} writes",
    as_pkcs7_der: "is PKCS#7; PEM is what openssl pkcs7 -print_certs -in {0} writes",
    as_request: "is a request for a certificate, and no certificate",
    as_key: "is a private key, and no certificate",
    as_key_der: "is a private key, and no certificate",
    in_each_others_place: "is a private key, and no certificate, which {1} is: they are in each"
    " other's place",
    empty: "is empty",
    cut_off: "a certificate in it is cut off",
    indented: "something stands before -----BEGIN in its line",
    in_utf_16: "is text in UTF-16, and must be ASCII",
    nonsense: "is no certificate in PEM form",
    reversed_order: "is in the wrong order: the server's own certificate must come first, and"
    " behind each that of its issuer",
    issuer_first: "is in the wrong order: the server's own certificate must come first, and"
    " behind each that of its issuer",
}


@pytest.mark.parametrize("spoil", CERTIFICATE_IS, ids=lambda one: one.__name__)
def test_what_a_certificates_file_is_instead(files, spoil):
    spoil(files)
    why = CERTIFICATE_IS[spoil].format(*files.pair)
    assert refused(files.pair) == f"{files.certificate}: {why}"


@pytest.mark.parametrize("kinds", [(RSA, RSA), (RSA, ECDSA), (ECDSA, ECDSA), (ECDSA, RSA)])
def test_a_chain_in_the_wrong_order_is_told_from_a_key_of_another(tmp_path, kinds):
    files = Files(tmp_path, *kinds)
    reversed_order(files)
    assert "is in the wrong order" in refused(files.pair)
    for other in kinds:
        files.chain(0, 1, 2)
        key = files.middle.issue_cert(NAME, key_type=other).private_key_pem
        files.key.write_bytes(key.bytes())
        assert refused(files.pair) == f"{files.key}: is not the private key of {files.certificate}"


def test_a_damaged_certificate_names_its_file(files):
    damaged(files)
    assert refused(files.pair) == f"{files.certificate}: a certificate in it is damaged"


# Of the key's file


def key_encrypted(files):
    key = files.key.read_bytes()
    openssl("pkey", "-aes128", "-passout", "pass:x", "-out", files.key, input=key)


def key_encrypted_in_the_old_form(files):
    key = files.key.read_bytes()
    openssl("ec", "-aes128", "-passout", "pass:x", "-out", files.key, input=key)


def key_as_der(files):
    files.key.write_bytes(openssl("pkey", "-in", files.key, "-outform", "der"))


def key_as_old_der(files):
    files.key.write_bytes(openssl("ec", "-in", files.key, "-outform", "der"))


def key_as_certificate(files):
    files.key.write_bytes(files.pem[0])


def key_as_certificate_der(files):
    files.key.write_bytes(openssl("x509", "-outform", "der", input=files.pem[0]))


def key_as_request(files):
    files.key.write_bytes(openssl("req", "-new", "-subj", f"/CN={NAME}", "-key", files.key))


def key_as_public_key(files):
    files.key.write_bytes(openssl("pkey", "-in", files.key, "-pubout"))


def key_of_openssh(files):
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    form = serialization.PrivateFormat.OpenSSH
    encoding = serialization.Encoding.PEM
    files.key.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))


def key_empty(files):
    files.key.write_bytes(b"")


def key_cut_off(files):
    files.key.write_bytes(files.key.read_bytes()[:80])


def key_indented(files):
    files.key.write_bytes(b"\t" + files.key.read_bytes().replace(b"\n", b"\n\t"))


def key_missing(files):
    files.key.unlink()


def key_a_pipe(files):
    key_missing(files)
    os.mkfifo(files.key, 0o600)


KEY_IS = {
    key_encrypted: "is encrypted, and nobody is here to give the passphrase",
    key_encrypted_in_the_old_form: "is encrypted, and nobody is here to give the passphrase",
    key_as_der: "is a private key in DER form; PEM is what openssl pkey -inform der -in {1} writes",
    key_as_old_der: "is a private key in DER form; PEM is what openssl pkey -inform der -in {1}"
    " writes",
    key_as_certificate: "is a certificate, and no private key",
    key_as_certificate_der: "is a certificate, and no private key",
    key_as_request: "is a request for a certificate, and no private key",
    key_as_public_key: "is a public key, and no private key",
    key_of_openssh: "is a private key of OpenSSH's; ssh-keygen -p -m pem -f {1} changes that",
    key_empty: "is empty",
    key_cut_off: "the private key in it is cut off",
    key_indented: "something stands before -----BEGIN in its line",
    key_missing: "No such file or directory",
    key_a_pipe: "is no regular file",
}


@pytest.mark.parametrize("spoil", KEY_IS, ids=lambda one: one.__name__)
def test_what_a_keys_file_is_instead(files, spoil):
    spoil(files)
    assert refused(files.pair) == f"{files.key}: {KEY_IS[spoil].format(*files.pair)}"


def test_a_file_for_both_without_a_key(files):
    why = "holds no private key; tls-private-key must name the file of one"
    one = str(files.certificate)
    files.certificate.chmod(0o600)
    assert refused((one, one)) == f"{one}: {why}"


@given(
    st.binary(max_size=200) | st.binary(max_size=40).map(lambda octets: b"0\x82\x00\x30" + octets)
)
def test_whatever_is_in_a_file_something_is_said(octets):
    assert pem.wrong_with_certificate("/x", octets).startswith("/x: ")
    assert pem.wrong_with_key("/x", octets, "/y").startswith("/x: ")


@pytest.mark.parametrize("der", [b"", b"0\x00", b"0\x02\x30\x00", b"0\x04\x30\x02\xa0\x00"])
def test_what_is_too_short_is_damaged(der):
    with pytest.raises(ValueError):
        pem.Certificate(der)


@given(st.data())
def test_a_certificate_that_is_changed_is_read_or_damaged(data):
    der = bytearray(DER)
    for _ in range(3):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = pem.Certificate(bytes(der[: data.draw(st.integers(0, len(der)))]))
        pem.name_of(made.issuer)
    except ValueError:
        pass


DER = ssl.PEM_cert_to_DER_cert(trustme.CA().cert_pem.bytes().decode())


def test_what_is_known_of_a_certificate(files):
    leaf, middle, root = pem.certificates_in(files.certificate.read_bytes())
    assert leaf.issuer == middle.subject
    assert middle.issuer == root.subject == root.issuer
    assert [one.is_self_signed for one in (leaf, middle, root)] == [False, False, True]
    assert leaf.kind != middle.kind == root.kind
    assert pem.name_of(root.subject).startswith("trustme ")
    shown = openssl("x509", "-noout", "-enddate", input=files.pem[0], text=False).decode()
    assert shown.strip() == f"notAfter={certificates.date(leaf.end)}"


# What is doubtful


def doubts(pair, ciphers=CIPHERS, version="1.2"):
    return chains.doubts(pair, version, ciphers)


def test_lines_of_windows_and_text_around_are_good(files):
    octets = b"The certificate:\r\n" + files.certificate.read_bytes().replace(b"\n", b"\r\n")
    files.certificate.write_bytes(octets)
    assert doubts(files.pair) == []
    # Nor does a byte order mark matter, and it is not what is told of another mistake.
    octets = b"\xef\xbb\xbf" + files.certificate.read_bytes().partition(b"\n")[2]
    files.certificate.write_bytes(octets)
    assert doubts(files.pair) == []
    key_as_public_key(files)
    assert refused(files.pair) == f"{files.key}: is a public key, and no private key"


def test_a_chain_with_or_without_its_root_is_good(files):
    assert doubts(files.pair) == []
    files.chain(0, 1)
    assert doubts(files.pair) == []


def test_a_leaf_without_its_chain(files, tmp_path, monkeypatch):
    files.chain(0)
    (why,) = doubts(files.pair)
    issuer = pem.name_of(pem.certificates_in(files.pem[0])[0].issuer)
    assert (
        why
        == f"{files.certificate}: has no chain: clients must know its issuer, {issuer}, themselves"
    )
    (tmp_path / "fullchain.pem").touch()
    assert doubts(files.pair) == [f"{why}; is {tmp_path}/fullchain.pem meant?"]
    # Whose issuer is a root that the system trusts needs none.
    trusted = tmp_path / "trusted.pem"
    files.middle.cert_pem.write_to_path(trusted)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    files.root.cert_pem.write_to_path(trusted)
    made = files.root.issue_cert(NAME)
    tlskit.install(made, files.certificate, files.key)
    assert doubts(files.pair) == []


def test_one_that_is_its_own_issuer_needs_no_chain(tmp_path):
    path = tmp_path / "own.pem"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={NAME}", "-keyout", path, "-out", tmp_path / "c")  # fmt: skip
    path.write_bytes(path.read_bytes() + (tmp_path / "c").read_bytes())
    assert doubts((str(path), str(path))) == []


def test_certificates_that_are_no_chain(files):
    files.chain(0, 2, 1)
    (why,) = doubts(files.pair)
    assert why.startswith(f"{files.certificate}: its certificates are no chain: behind ")
    files.chain(0, 1)
    other = trustme.CA().cert_pem.bytes()
    files.certificate.write_bytes(files.certificate.read_bytes() + other)
    assert len(doubts(files.pair)) == 1


@pytest.mark.parametrize(("days", "told"), [(-1, "has expired on "), (3, "expires on "), (30, "")])
def test_an_intermediate_that_has_expired(files, days, told):
    end = datetime.now(UTC) + timedelta(days=days)
    middle = expiring(files, end)
    files.certificate.write_bytes(files.pem[0] + middle)
    found = doubts(files.pair)
    assert [told in one for one in found] == [True] * bool(told)
    assert all(f"{files.certificate}: the certificate of an issuer in it, " in one for one in found)


def expiring(files, end):
    """The intermediate certificate once more, up to another time."""
    old = x509.load_pem_x509_certificate(files.pem[1])
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), 7,
        datetime.now(UTC) - timedelta(days=99), end, list(old.extensions),
    )  # fmt: skip
    key = serialization.load_pem_private_key(files.root.private_key_pem.bytes(), None)
    made = builder.sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


CIPHER_DOUBTS = {
    "ECDHE+AESGCM:DHE-RSA-AES128-GCM-SHA256": [
        "tls-ciphers: those of DHE are never used: there are no parameters for them here:"
        " DHE-RSA-AES128-GCM-SHA256"
    ],
    "DHE-RSA-AES128-GCM-SHA256": ["tls-ciphers: those of DHE", "tls-ciphers: has none with which"],
    "ECDHE-RSA-AES128-GCM-SHA256": ["tls-ciphers: has none with which TLS 1.2 could use {0}"],
    "ECDHE-ECDSA-AES128-GCM-SHA256": [],
}


@pytest.mark.parametrize("ciphers", CIPHER_DOUBTS)
def test_ciphers_that_nobody_gets(files, ciphers):
    found = doubts(files.pair, ciphers)
    expected = [one.format(files.certificate) for one in CIPHER_DOUBTS[ciphers]]
    assert [one[: len(other)] for one, other in zip(found, expected, strict=True)] == expected
    newer = doubts(files.pair, ciphers, "1.3")
    assert not any("TLS 1.2" in one for one in newer)


def test_those_of_dhe_are_never_used_where_the_key_would_do(tmp_path):
    files = Files(tmp_path, RSA)
    assert doubts(files.pair, "ECDHE-RSA-AES128-GCM-SHA256") == []
    found = doubts(files.pair, "DHE-RSA-AES128-GCM-SHA256")
    assert ["those of DHE" in one for one in found] == [True, False]
    assert "has none with which TLS 1.2 could use" in found[1]


def test_they_are_warnings_of_check_config_with_line_and_directive(site):
    files = Files(site.path)
    files.chain(0)
    ciphers = "ECDHE+AESGCM:DHE+AESGCM"
    settings = {"tls-certificate": files.certificate, "tls-private-key": files.key}
    site.configure(settings | {"tls-ciphers": ciphers})
    done = tpop3d("--check-config", "-f", site.conf)
    assert done.returncode == 0
    keys = [key for key, value in site.settings.items() if value is not None]
    starts = [
        f"warning: {site.conf}:{keys.index('tls-certificate') + 1}: tls-certificate:"
        f" {files.certificate}: has no chain: ",
        f"warning: {site.conf}:{keys.index('tls-ciphers') + 1}: tls-ciphers: those of DHE ",
    ]
    lines = done.stderr.decode().splitlines()
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    as_pkcs12(files)
    files.certificate.chmod(0o600)
    done = tpop3d("--check-config", "-f", site.conf)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(
        starts[0].removeprefix("warning: ").partition("has no")[0] + "is PKCS#12"
    )


def test_of_an_address_of_its_own_the_directive_is_that(site):
    files = Files(site.path)
    site.configure({"listen-address": f"127.0.0.1;tls=stls,{files.certificate},{files.key}"})
    files.key.write_bytes(b"")
    done = tpop3d("--check-config", "-f", site.conf)
    number = list(site.settings).index("listen-address") + 1
    assert f"{site.conf}:{number}: listen-address: {files.key}: is empty\n" in done.stderr.decode()
