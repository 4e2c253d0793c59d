"""sslscan finds nothing weak: old versions, old ciphers, or what was a hole once."""

import subprocess
from xml.etree import ElementTree

import pytest
import trustme

import doors
import tlskit
from mailsite import PATIENCE, need

# With forward secrecy, and no message authentication of their own.
ECDHE = {"AES256-GCM-SHA384", "AES128-GCM-SHA256", "CHACHA20-POLY1305"}
TLS13 = {"TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"}
KINDS = {"ECDSA": trustme.KeyType.ECDSA, "RSA": trustme.KeyType.RSA}


def scan(site, port, *options):
    """What it finds, for programs and for people."""
    file = site.path / "scan.xml"
    done = subprocess.run(
        [need("sslscan"), "--no-colour", f"--xml={file}", *options, f"{doors.Door.host}:{port}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return ElementTree.parse(file).find("ssltest"), done.stdout


@pytest.mark.parametrize("mode", doors.MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_weak(site, kind, mode):
    certificate, key = tlskit.certify(site, key_type=KINDS[kind])
    site.configure({"tls-certificate": certificate, "tls-private-key": key})
    with doors.standalone_tls(site, mode) as door:
        found, told = scan(site, door.port, *(["--starttls-pop3"] if mode == "stls" else []))
    versions = {
        (one.get("type"), one.get("version"))
        for one in found.iter("protocol")
        if one.get("enabled") == "1"
    }
    assert versions == {("tls", "1.2"), ("tls", "1.3")}
    ciphers = {(one.get("sslversion"), one.get("cipher")) for one in found.iter("cipher")}
    wanted = {("TLSv1.2", f"ECDHE-{kind}-{name}") for name in ECDHE}
    assert ciphers == wanted | {("TLSv1.3", name) for name in TLS13}
    assert {one.get("strength") for one in found.iter("cipher")} <= {"strong", "acceptable"}
    assert min(int(one.get("bits")) for one in found.iter("group")) >= 112
    # By a client's wish a server could be kept busy with handshakes.
    assert found.find("renegotiation").get("supported") == "0"
    assert {one.get("vulnerable") for one in found.iter("heartbleed")} == {"0"}
    # An sslscan that knows no compression says nothing of it here.
    assert {one.get("supported") for one in found.iter("compression")} <= {"0"}
    assert "Server supports TLS Fallback SCSV" in told
    assert found.find(".//pk").get("error") == "false"
