"""TLS to the database: with a CA given, nothing is said to anybody whom it does not vouch for, and
where TLS is wanted, nothing is asked in the clear."""

import shutil
import subprocess
import sys

import pytest

from databases import DATABASE, PASSWORD, USERNAME, Library, decide
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
    certificate(directory, "tpop3d", "ours", "DNS:pop.example.org")
    certificate(directory, "stranger", "theirs", "DNS:pop.example.org")
    both = (directory / "tpop3d.pem").read_text() + (directory / "tpop3d.key").read_text()
    (directory / "both.pem").touch(mode=0o600)
    (directory / "both.pem").write_text(both)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def tls(vmail, keys):
    """Start the server anew with the certificate of that name, or without any."""

    def start(name):
        vmail.stop()
        files = {"cert": keys / f"{name}.pem", "key": keys / f"{name}.key"}
        files["ca"] = keys / "ours.pem"  # who vouches for clients
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


# Without an authority


@pytest.mark.parametrize("certificate", ["database", "elsewhere"])
def test_without_an_authority_it_is_encrypted_whoever_it_is(tls, keys, tmp_path, certificate):
    server = tls(certificate)
    settings = {"hostname": f"127.0.0.1:{server.port}", "ssl": "yes", "pass_query": QUERY}
    verdict = decide(server.config(tmp_path, **settings), "ann")
    assert verdict.answer == YES, verdict.reason
    assert verdict.account.mailboxes[0].startswith("/TLS")


def test_a_server_without_tls_is_asked_nothing_where_tls_is_wanted(tls, tmp_path):
    """MariaDB's library would go on in the clear. The next host, a socket, crosses no network."""
    server = tls(None)
    hosts = [f"127.0.0.1:{server.port}", str(server.socket)]
    server.sql("SET GLOBAL general_log_file = 'queries', GLOBAL general_log = 1")
    verdict = decide(server.config(tmp_path, hostname=hosts[0], ssl="yes"), "ann@example.org")
    server.sql("SET GLOBAL general_log = 0")
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, f"{hosts[0]}: the server offers no TLS")
    log = server.data / "queries"
    assert "popbox" not in log.read_text()
    log.unlink()
    config = server.config(tmp_path, hostname=" ".join(hosts), ssl="yes")
    assert decide(config, "ann@example.org").answer == YES


# A certificate of ours


@pytest.mark.parametrize(
    "files",
    [
        {"ssl_cert": "tpop3d.pem", "ssl_key": "tpop3d.key", "ssl_ca": "ours.pem"},
        {"ssl_cert": "tpop3d.pem", "ssl_key": "tpop3d.key"},
        {"ssl_cert": "both.pem", "ssl": "yes"},
    ],
)
def test_a_server_knows_us_by_our_certificate(tls, keys, tmp_path, files):
    server = tls("database")
    server.sql(f"ALTER USER '{USERNAME}'@'127.0.0.1' REQUIRE X509")
    files = {key: keys / file if "." in file else file for key, file in files.items()}
    hostname = f"127.0.0.1:{server.port}"
    config = server.config(tmp_path, hostname=hostname, pass_query=QUERY, **files)
    errors, warnings = config.drivers["mysql"].check()
    assert errors == []
    assert not [one for one in warnings if "ssl" in one]
    verdict = decide(config, "ann")
    assert verdict.answer == YES, verdict.reason
    assert verdict.account.mailboxes[0].startswith("/TLS")
    without = server.config(tmp_path, hostname=hostname, ssl="yes")
    assert decide(without, "ann@example.org").answer == CANNOT_SAY
    strange = {"ssl_cert": keys / "stranger.pem", "ssl_key": keys / "stranger.key"}
    verdict = decide(server.config(tmp_path, hostname=hostname, **strange), "ann@example.org")
    assert verdict.answer == CANNOT_SAY
    assert USERNAME not in verdict.reason


def test_our_certificate_may_come_from_systemd(tls, keys, tmp_path, monkeypatch):
    server = tls("database")
    server.sql(f"ALTER USER '{USERNAME}'@'127.0.0.1' REQUIRE X509")
    config = server.config(
        tmp_path,
        hostname=f"127.0.0.1:{server.port}",
        ssl_cert="$CREDENTIALS_DIRECTORY/tpop3d.pem",
        ssl_key="$CREDENTIALS_DIRECTORY/tpop3d.key",
    )
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "systemd has set no $CREDENTIALS_DIRECTORY" in decide(config, "ann").reason
    errors, (warning,) = config.drivers["mysql"].check()
    assert errors == []
    assert warning.endswith("it cannot be checked here")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(keys))
    assert decide(config, "ann@example.org").answer == YES


# What --check-config sees

WRONG_FILES = {
    "no such file": ({"ssl_cert": "nothing.pem"}, "nothing.pem: No such file"),
    "another's key": (
        {"ssl_cert": "tpop3d.pem", "ssl_key": "database.key"},
        "database.key: is not the private key of ",
    ),
    "no key": ({"ssl_cert": "tpop3d.pem"}, "tpop3d.pem: must hold a certificate and its private"),
    "a key for all": (
        {"ssl_cert": "tpop3d.pem", "ssl_key": "open.key"},
        "open.key: every user can read this private key: chmod o-r ",
    ),
    "a passphrase": (
        {"ssl_cert": "tpop3d.pem", "ssl_key": "locked.key"},
        "locked.key: is encrypted, and nobody is here to give the passphrase",
    ),
    "no authority": ({"ssl_ca": "tpop3d.key"}, "tpop3d.key: holds no certificate in PEM form"),
}


@pytest.mark.parametrize(("files", "why"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_files_are_tried_before_anybody_needs_them(vmail, keys, tmp_path, files, why):
    key = (keys / "tpop3d.key").read_text()
    (keys / "open.key").write_text(key)
    (keys / "open.key").chmod(0o644)
    openssl(
        keys, "pkey", "-in", "tpop3d.key", "-aes256", "-passout", "pass:x", "-out", "locked.key"
    )
    files = {key: keys / file for key, file in files.items()}
    errors, _ = vmail.config(tmp_path, **files).drivers["mysql"].check()
    assert any(f"/{why}" in error for error in errors), errors
    assert all(error.startswith("auth-mysql-ssl-") for error in errors), errors


# Debian 13's library, under the same Python and the same mysqlclient


@pytest.fixture
def debian_13s():
    """Its loader, and what that finds there. A newer one than ours runs what ours does."""
    trixie = pytest.importorskip("trixie", reason="there is no Debian 13 here")
    trixie.require()
    (loader,) = trixie.ROOT.glob("usr/lib*/ld-linux-*.so.*")
    (library,) = trixie.ROOT.glob("usr/lib/*/libmariadb.so.3")
    made = Library([loader, "--library-path", library.parent, sys.executable])
    yield made
    assert made.versions[2].startswith("3.4.")


@pytest.fixture
def served(tls, keys):
    """Start the server with a certificate, or none, on two addresses, the second of which no
    library takes for this machine's. Gives what a library says of ann there."""
    certificate(keys, "second", "ours", "IP:127.0.0.2")
    certificate(keys, "theirs-here", "theirs", "IP:127.0.0.1,IP:127.0.0.2")

    def start(name):
        server = tls(name)
        server.stop()
        server.options.append("--bind-address=127.0.0.1,127.0.0.2")
        server.start()
        user = f"'{USERNAME}'@'127.0.0.2'"
        server.sql(
            f"CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{PASSWORD}';"
            f"GRANT SELECT ON {DATABASE}.* TO {user}"
        )
        return server

    return start


def said_by(library, server, host, **more):
    settings = {"hostname": f"{host}:{server.port}", "pass_query": QUERY}
    ((answer, reason, *mailboxes),) = library.decide(server, "ann", **settings | more)
    if answer == YES:
        assert mailboxes[0].startswith("/TLS")
    return answer, reason


def test_debian_13_knows_a_server_as_the_page_says(served, keys, debian_13s):
    """Signed by the authority it must be everywhere; the name is not looked at on this machine."""
    ours = {"ssl_ca": keys / "ours.pem"}
    server = served("elsewhere")
    assert said_by(debian_13s, server, "127.0.0.1", **ours)[0] == YES
    answer, reason = said_by(debian_13s, server, "127.0.0.2", **ours)
    assert (answer, reason) == (
        CANNOT_SAY,
        f"127.0.0.2:{server.port}: TLS/SSL error: Hostname verification failed (2026)",
    )
    server = served("theirs-here")
    for host in ("127.0.0.1", "127.0.0.2"):
        answer, reason = said_by(debian_13s, server, host, **ours)
        assert answer == CANNOT_SAY
        assert "(2026)" in reason
        assert said_by(debian_13s, server, host, ssl="yes")[0] == YES
    server = served("second")
    assert said_by(debian_13s, server, "127.0.0.2", **ours)[0] == YES


def test_debian_13_asks_nothing_in_the_clear_where_tls_is_wanted(served, keys, debian_13s):
    server = served(None)
    for host in ("127.0.0.1", "127.0.0.2"):
        where = f"{host}:{server.port}: "
        answer, reason = said_by(debian_13s, server, host, ssl="yes")
        assert (answer, reason) == (CANNOT_SAY, f"{where}the server offers no TLS")
        answer, reason = said_by(debian_13s, server, host, ssl_ca=keys / "ours.pem")
        assert answer == CANNOT_SAY
        assert "SSL is required, but the server does not support it" in reason
    ((answer, *_),) = debian_13s.decide(
        server, "ann@example.org", hostname=f"127.0.0.2:{server.port}"
    )
    assert answer == YES
