"""Certificates that are bad, that change, and of which there are several."""

import datetime
import re
import ssl
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

import doors
import tlskit
from authkit import tpop3d
from mailsite import IS_ROOT, need, poll
from spools import mbox
from test_hazard_stls_injection import greeted
from test_listener import children_of
from test_listener_signals import free_port, reload
from tlskit import HOST, NAME, in_both_doors

SPOOL = mbox(b"Subject: one\n\n1\n")
READ_AGAIN = "tls: the certificates are read again"
KEPT = "what was read before is kept"


@pytest.fixture
def site(site):
    site.configure({"auth-failure-delay-seconds": 0, "tls-mode": "immediate"})
    site.add("anna", SPOOL)
    return site


def made(*names, **more):
    return tlskit.authority().issue_cert(*(names or (HOST, NAME)), **more)


def files_of(site):
    return site.path / "server.pem", site.path / "server.key"


def connected(door, using=None, name=HOST, **more):
    wire = tlskit.wrap(door.connect(), using, name, **more)
    assert wire.line().startswith(b"+OK")
    return wire


def served(door, name=HOST):
    """The number of the certificate that a client of this name gets."""
    using = tlskit.context(check_hostname=False)
    wire = connected(door, using, name)
    number = wire.connection.getpeercert()["serialNumber"]
    wire.close()
    return int(number, 16)


def number_of(certificate):
    """That of a certificate in a file."""
    program = [need("openssl"), "x509", "-noout", "-serial", "-in", certificate]
    return int(subprocess.check_output(program, text=True).partition("=")[2], 16)


# Bad ones


def expired():
    return {"not_after": datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)}


def test_an_expired_certificate_is_served_warned_of_and_refused_by_clients(site):
    certificate, key = tlskit.certify(site, **expired())
    site.configure({"tls-certificate": certificate, "tls-private-key": key})
    with doors.standalone(site) as door:
        assert f"{certificate}: has expired on " in tlskit.wait_for_line(door, "tls: ")
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            tlskit.wrap(door.connect())
        line = tlskit.wait_for_line(door, "tls failed")
        # In TLS 1.3 the server has made its handshake when a client refuses its certificate.
        assert line.endswith('rip=127.0.0.1 reason="sslv3 alert certificate expired"')
        using = tlskit.context(check_hostname=False, verify_mode=ssl.CERT_NONE)
        connected(door, using)


def test_one_that_expires_soon_is_warned_of(site):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    certificate, key = tlskit.certify(site, not_after=soon)
    site.configure({"tls-certificate": certificate, "tls-private-key": key})
    with doors.standalone(site) as door:
        assert f"{certificate}: expires on " in tlskit.wait_for_line(door, "tls: ")
        connected(door)


def of_another(certificate, key):
    key.write_bytes(made().private_key_pem.bytes())


def missing_key(certificate, key):
    key.unlink()


def missing_certificate(certificate, key):
    certificate.unlink()


def empty(certificate, key):
    certificate.write_bytes(b"")


def half_written(certificate, key):
    certificate.write_bytes(certificate.read_bytes()[:300])


def encrypted(certificate, key):
    program = [need("openssl"), "ec", "-aes128", "-passout", "pass:secret", "-in", key]
    key.write_bytes(subprocess.check_output(program, stderr=subprocess.DEVNULL))


def readable(certificate, key):
    key.chmod(0o644)


def directory(certificate, key):
    key.unlink()
    key.mkdir()


def pkcs12(certificate, key):
    program = [need("openssl"), "pkcs12", "-export", "-in", certificate, "-inkey", key]
    certificate.write_bytes(subprocess.check_output([*program, "-passout", "pass:"]))


def reversed_order(certificate, key):
    certificate.write_bytes(tlskit.authority().cert_pem.bytes() + certificate.read_bytes())


BAD = {
    pkcs12: "{certificate}: is PKCS#12; PEM is what openssl pkcs12 -nodes -in {certificate} writes",
    reversed_order: "{certificate}: is in the wrong order: the server's own certificate must come",
    of_another: "{key}: is not the private key of {certificate}",
    missing_key: "{key}: No such file or directory",
    missing_certificate: "{certificate}: No such file or directory",
    empty: "{certificate}: is empty",
    half_written: "{certificate}: a certificate in it is cut off",
    encrypted: "{key}: is encrypted, and nobody is here to give the passphrase",
    readable: "{key}: every user can read this private key: chmod o-r {key}",
    directory: "{key}: Is a directory",
}
each_that_is_bad = pytest.mark.parametrize("spoil", BAD, ids=lambda one: one.__name__)


def spoiled(site, spoil):
    """A certificate that cannot be used, and what the log must say."""
    tlskit.secure(site)
    certificate, key = files_of(site)
    spoil(certificate, key)
    return BAD[spoil].format(certificate=certificate, key=key)


@each_that_is_bad
def test_a_listener_does_not_start_with(site, spoil):
    why = spoiled(site, spoil)
    site.configure({"listen-address": f"127.0.0.1:{free_port()}"})
    done = tpop3d("-d", "-f", site.conf)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert why in line


@each_that_is_bad
def test_a_connection_of_its_own_goes_on_in_the_clear_with(site, spoil):
    """Or ends, where TLS was to come first."""
    why = spoiled(site, spoil)
    site.configure({"tls-mode": "stls"})
    with doors.systemd_accept(site) as door:
        wire = greeted(door)
        assert wire.ask("STLS").startswith(b"-ERR [SYS/TEMP] ")
        assert why in tlskit.wait_for_line(door, "tls: ")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
        wire.close()
    if spoil is not of_another:
        return  # it is the same code
    for settings, arguments in (({}, ["--tls"]), ({"tls-mode": "immediate"}, [])):
        site.configure(settings)
        arguments = ["--inetd", *arguments]
        with doors.activated(site, "--accept", "--inetd", arguments=arguments) as door:
            assert door.connect().reader.read() == b""
            assert why in tlskit.wait_for_line(door, "tls: ")


# Those that change

OFTEN = "from tpop3d.listener import relays\nrelays.LOOK = 0.3"


def replace(site, **more):
    """A new certificate in the place of the old one; returns its number."""
    tlskit.certify(site, **more)
    return number_of(files_of(site)[0])


def test_a_renewed_certificate_is_served_soon_and_sessions_go_on(site, monkeypatch):
    monkeypatch.setattr(doors, "SERVER", tlskit.server_with(OFTEN))
    tlskit.secure(site)
    with doors.standalone(site) as door:
        wire = connected(door)
        first = served(door)
        second = replace(site)
        assert first != second
        poll(lambda: served(door) == second, "the new certificate")
        assert tlskit.wait_for_line(door, READ_AGAIN)
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        # A bad one: the old one does it.
        certificate, _ = files_of(site)
        whole = certificate.read_bytes()
        certificate.write_bytes(whole[:300])
        door.logs.wait_for(KEPT)
        why = f"tls: {certificate}: a certificate in it is cut off; "
        assert why in tlskit.wait_for_line(door, KEPT)
        assert served(door) == second
        assert wire.ask("STAT").startswith(b"+OK 1 ")
        time.sleep(1)  # in which there would be more such lines
        # And a good one again.
        third = replace(site)
        poll(lambda: served(door) == third, "the third certificate")
        assert wire.ask("QUIT").startswith(b"+OK")
        assert len(tlskit.lines_of(door, KEPT)) == 1
        poll(lambda: not IS_ROOT or len(keyholders(door)) == 1, "the old keys to go")


def keyholders(door):
    """Processes of root's that the listener has forked."""
    found = []
    for pid in children_of(door.process.pid):
        with suppress(OSError):  # it has ended
            status = Path(f"/proc/{pid}/status").read_text()
            found += [pid] if re.search(r"^Uid:\s+0\s", status, re.M) else []
    return found


def test_at_a_reload_it_is_served_at_once_unless_it_is_bad(site):
    tlskit.secure(site)
    with doors.standalone(site) as door:
        wire = connected(door)
        second = replace(site)
        reload(door, "reload: the configuration is read again")
        assert served(door) == second
        certificate, key = files_of(site)
        of_another(certificate, key)
        reload(door, "the configuration is kept as it was")
        assert f"{key}: is not the private key of" in door.logs.text()
        assert served(door) == second
        # With a reload that takes the certificates away, nobody loses a session.
        site.configure({"tls-certificate": None, "tls-private-key": None, "tls-mode": "none"})
        reload(door, "reload: the configuration is read again")
        assert door.connect().line().startswith(b"+OK")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
        poll(lambda: not keyholders(door), "the old keys to go")


def test_a_door_for_each_connection_reads_the_files_for_each(site):
    tlskit.secure(site)
    with doors.systemd_accept(site) as door:
        assert served(door) == number_of(files_of(site)[0])
        second = replace(site)
        assert served(door) == second


# Several


@in_both_doors
def test_a_certificate_is_chosen_by_name(site, opens):
    pairs = [
        tlskit.certify(site, HOST, NAME, file="first"),
        tlskit.certify(site, "pop.example.net", "Second.Example.COM", file="second"),
        tlskit.certify(site, "*.example.net", NAME, file="third"),
    ]
    site.configure({"tls-certificate": " ".join(str(one) for one, _ in pairs)})
    site.configure({"tls-private-key": " ".join(str(key) for _, key in pairs)})
    first, second, third = (number_of(certificate) for certificate, _ in pairs)
    with opens(site) as door:
        wanted = {
            NAME: first,  # the first of two that have it
            "pop.example.net": second,  # the name itself before the asterisk
            "POP.Example.NET": second,
            "second.example.com": second,
            "any.example.net": third,
            "an.y.example.net": first,  # an asterisk is one label (RFC 9525 section 6.3)
            "example.net": first,
            "unknown.example": first,
            None: first,
        }
        assert {name: served(door, name) for name in wanted} == wanted


def test_an_address_may_have_a_certificate_of_its_own(site):
    tlskit.secure(site)
    certificate, key = tlskit.certify(site, "127.0.0.2", file="second")
    both = made("127.0.0.3", NAME)
    one_file = site.path / "both.pem"
    one_file.touch(0o600)
    one_file.write_bytes(both.private_key_and_cert_chain_pem.bytes())
    own = [f"127.0.0.2:{{}};tls=immediate,{certificate},{key}"]
    own += [f"127.0.0.3:{{}};tls=stls,{one_file}", "127.0.0.4:{};tls=none"]
    with doors.standalone(site) as door:
        addresses = [f"127.0.0.1:{door.port}", *(one.format(door.port) for one in own)]
        site.configure({"listen-address": " ".join(addresses)})
        reload(door, "reload: the configuration is read again")
        assert served(door) == number_of(files_of(site)[0])
        door.host = "127.0.0.2"
        assert served(door) == number_of(certificate)
        connected(door, name="127.0.0.2")
        # Who asks there for a name of the configuration's other certificate gets that one.
        assert served(door, NAME) == number_of(files_of(site)[0])
        door.host = "127.0.0.3"
        wire = tlskit.stls(greeted(door), name="127.0.0.3")
        assert int(wire.connection.getpeercert()["serialNumber"], 16) == number_of(one_file)
        door.host = "127.0.0.4"
        assert greeted(door).ask("STLS").startswith(b"-ERR")


@in_both_doors
def test_certificate_and_key_may_be_in_one_file(site, opens):
    one_file = site.path / "both.pem"
    one_file.touch(0o600)
    one_file.write_bytes(made().private_key_and_cert_chain_pem.bytes())
    site.configure({"tls-certificate": one_file})
    with opens(site) as door:
        connected(door)


@pytest.mark.parametrize("door", ["inetd", "listener"])
def test_the_key_may_be_a_credential_of_systemds(site, monkeypatch, door):
    certificate, key = tlskit.certify(site)
    credentials = site.path / "credentials"
    credentials.mkdir()
    key.rename(credentials / "tls")
    name = "$CREDENTIALS_DIRECTORY/tls"
    site.configure({"tls-certificate": certificate, "tls-private-key": name})
    why = f"{name}: systemd has set no $CREDENTIALS_DIRECTORY; see LoadCredential="
    if door == "listener":
        site.configure({"listen-address": f"127.0.0.1:{free_port()}"})
        assert why in tpop3d("-d", "-f", site.conf).stderr.decode()
    else:
        with doors.inetd(site) as wire:
            assert wire.reader.read() == b""
            assert why in wire.logs.wait_for("tls: ")
    monkeypatch.setitem(doors.ENVIRONMENT, "CREDENTIALS_DIRECTORY", str(credentials))
    if door == "listener":
        with doors.standalone(site) as one:
            connected(one)
    else:
        with doors.inetd(site) as wire:
            assert tlskit.wrap(wire).line().startswith(b"+OK")


# Sessions that are resumed


def resumed(door, using, session=None):
    """Connect once more; was the session resumed, the next one, and which relay served it?"""
    wire = connected(door, using, session=session)
    was_resumed, following = wire.connection.session_reused, wire.connection.session
    assert wire.ask("QUIT").startswith(b"+OK")
    wire.close()
    return was_resumed, following


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_session_is_resumed_by_another_relay_but_not_under_another_certificate(site, version):
    """Each relay serves one connection."""
    tlskit.secure(site)
    one = ssl.TLSVersion[version]
    using = tlskit.context(minimum_version=one, maximum_version=one)
    with doors.standalone(site) as door:
        was_resumed, session = resumed(door, using)
        assert not was_resumed
        for _ in range(4):  # more than the spares
            was_resumed, session = resumed(door, using, session)
            assert was_resumed
        second = replace(site)
        reload(door, "reload: the configuration is read again")
        was_resumed, session = resumed(door, using, session)
        assert not was_resumed
        assert served(door) == second
        was_resumed, session = resumed(door, using, session)
        assert was_resumed


def test_where_a_server_serves_one_connection_no_session_is_promised(site):
    tlskit.secure(site)
    using = tlskit.context()
    with doors.systemd_accept(site) as door:
        wire = connected(door, using)
        assert wire.ask("CAPA").startswith(b"+OK")
        assert wire.connection.session is None or not wire.connection.session.has_ticket
