"""RSA and ECDSA certificates for one name: each client gets what it can use, however it comes."""

import ssl

import pytest
import trustme

import tlskit
from test_hazard_stls_injection import greeted
from test_hazard_tls_certificates import number_of
from test_pem import openssl
from tlskit import HOST, NAME, in_both_doors

KINDS = {"RSA": trustme.KeyType.RSA, "ECDSA": trustme.KeyType.ECDSA}


@pytest.fixture
def site(site):
    """First RSA, then ECDSA of the same name; and one more name, of RSA alone."""
    names = {"rsa": (HOST, NAME), "ecdsa": (NAME, HOST), "other": ("other.example",)}
    made = {
        file: tlskit.certify(
            site, *names[file], file=file, key_type=KINDS["ECDSA" if file == "ecdsa" else "RSA"]
        )
        for file in names
    }
    site.numbers = {file: number_of(certificate) for file, (certificate, _) in made.items()}
    site.configure(
        {
            "auth-failure-delay-seconds": 0,
            "tls-certificate": " ".join(str(one) for one, _ in made.values()),
            "tls-private-key": " ".join(str(key) for _, key in made.values()),
        }
    )
    site.add("anna", b"")
    return site


def client(kind, version):
    """One that knows one kind of key only."""
    made = tlskit.context(check_hostname=False, maximum_version=ssl.TLSVersion[version])
    if kind == "both":
        return made
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(f"ECDHE-{kind}-AES256-GCM-SHA384")
    return made


@pytest.mark.parametrize("mode", ["stls", "immediate"])
@in_both_doors
def test_each_client_gets_the_one_that_it_can_use(site, opens, mode):
    site.configure({"tls-mode": mode})
    with opens(site) as door:

        def served(kind, name, version="TLSv1_3"):
            using = client(kind, version)
            if mode == "stls":
                wire = tlskit.stls(greeted(door), using, name)
            else:
                wire = tlskit.wrap(door.connect(), using, name)
                assert wire.line().startswith(b"+OK")
            number = int(wire.connection.getpeercert()["serialNumber"], 16)
            assert wire.ask("USER anna").startswith(b"+OK")
            assert wire.ask("PASS secret").startswith(b"+OK")
            assert wire.ask("QUIT").startswith(b"+OK")
            wire.close()
            return next(file for file, one in site.numbers.items() if one == number)

        for name in (NAME, None, "unknown.example"):
            assert served("RSA", name) == "rsa"
            assert served("ECDSA", name) == "ecdsa"
            for version in ("TLSv1_2", "TLSv1_3"):
                assert served("both", name, version) == "ecdsa"
        assert served("RSA", "other.example") == "other"
        assert served("both", "other.example") == "other"


@in_both_doors
def test_openssl_itself_finds_both(site, opens):
    """As an administrator looks: with the signature algorithms that a client offers."""
    site.configure({"tls-mode": "immediate"})
    with opens(site) as door:
        for sigalgs, file in (("RSA-PSS+SHA256", "rsa"), ("ECDSA+SHA256", "ecdsa")):
            shown = openssl(
                "s_client", "-connect", f"{door.host}:{door.port}", "-servername", NAME,
                "-sigalgs", sigalgs, input=b"",
            )  # fmt: skip
            (site.path / "shown.pem").write_bytes(shown)
            assert number_of(site.path / "shown.pem") == site.numbers[file]
