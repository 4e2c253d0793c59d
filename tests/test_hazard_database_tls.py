"""TLS to the database: with a CA given, nothing is said to anybody whom it does not vouch for."""

import shutil
import subprocess

import pytest

from databases import DATABASE, USERNAME, decide
from mailsite import MAIL_USER, need, open_directory
from tpop3d.auth.driver import CANNOT_SAY, YES

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
# The mailbox is the name of the cipher: relative, and refused, where there is none.
QUERY = (
    "SELECT CONCAT(IF(VARIABLE_VALUE = '', '', '/'), VARIABLE_VALUE), '{plaintext}secret',"
    f" '{MAIL_USER.pw_name}', 'bsd'"
    " FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'Ssl_cipher'"
)


def openssl(directory, *arguments):
    command = [need("openssl"), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def authority(directory, name):
    files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
    openssl(directory, "req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={name}", *files)


def certificate(directory, name, authority, names):
    extension = ["-addext", f"subjectAltName={names}"]
    files = ["-keyout", f"{name}.key", "-out", f"{name}.csr"]
    openssl(directory, "req", *KEY, "-subj", "/CN=database", *extension, *files)
    signer = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-copy_extensions", "copy"]
    files = ["-in", f"{name}.csr", "-out", f"{name}.pem"]
    openssl(directory, "x509", "-req", "-days", "2", *signer, *files)


@pytest.fixture(scope="module")
def keys():
    directory = open_directory()
    for name in ("ours", "theirs"):
        authority(directory, name)
    certificate(directory, "database", "ours", "IP:127.0.0.1")
    certificate(directory, "elsewhere", "ours", "DNS:db.example.org,IP:192.0.2.1")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def tls(vmail, keys):
    """Start the server anew with the certificate of that name, or without any."""

    def start(name):
        vmail.stop()
        files = {"cert": keys / f"{name}.pem", "key": keys / f"{name}.key"}
        vmail.options = [f"--ssl-{kind}={file}" for kind, file in files.items() if name]
        vmail.start()
        return vmail

    yield start
    vmail.stop()
    vmail.options = []


def config_of(server, keys, directory, authority="ours", **more):
    settings = {"hostname": f"127.0.0.1:{server.port}", "ssl_ca": keys / f"{authority}.pem"}
    return server.config(directory, **settings | more)


def test_what_crosses_the_network_is_encrypted(tls, keys, tmp_path):
    server = tls("database")
    verdict = decide(config_of(server, keys, tmp_path, pass_query=QUERY), "ann")
    assert verdict.answer == YES, verdict.reason
    assert verdict.account.mailboxes[0].startswith("/TLS")
    # The server's own view: who must use TLS gets in with it, and not without.
    server.sql(f"ALTER USER '{USERNAME}'@'127.0.0.1' REQUIRE SSL")
    assert decide(config_of(server, keys, tmp_path), "ann@example.org").answer == YES
    without = server.config(tmp_path, hostname=f"127.0.0.1:{server.port}")
    verdict = decide(without, "ann@example.org")
    assert verdict.answer == CANNOT_SAY
    assert USERNAME not in verdict.reason


@pytest.mark.parametrize(
    ("certificate", "authority"),
    [
        ("database", "theirs"),
        ("database", "missing"),
        ("database", "database.key"),  # no certificate at all
        ("elsewhere", "ours"),  # it is good, and another host's
        (None, "ours"),  # no TLS: as a server would be, or who stands between and takes it away
    ],
)
def test_nobody_else_is_spoken_to(tls, keys, tmp_path, certificate, authority):
    server = tls(certificate)
    config = config_of(server, keys, tmp_path, authority, pass_query=QUERY)
    verdict = decide(config, "ann")
    assert verdict.answer == CANNOT_SAY
    assert "(2026)" in verdict.reason
    assert USERNAME not in verdict.reason


def test_the_next_host_is_asked_instead(tls, keys, tmp_path):
    """A socket crosses no network, and needs no TLS."""
    server = tls(None)
    hosts = f"127.0.0.1:{server.port} {server.socket}"
    config = config_of(server, keys, tmp_path, hostname=hosts)
    assert decide(config, "ann@example.org").answer == YES
    assert server.sql("SELECT COUNT(*) FROM popbox", DATABASE) == ["2"]
