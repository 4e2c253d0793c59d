"""auth-mysql-password-file: the password of a database, alone in a file, or given by systemd."""

import contextlib
import os

import pytest

import doors
import test_readme
from authkit import NO_TLS, converse, errors_in, tpop3d
from databases import PASSWORD, USERNAME, connections
from mailsite import ENVIRONMENT, poll
from samples import MESSAGES, spool_of
from test_hazard_database_secrets import LOGIN, assert_silent
from test_hazard_secrets import memory_of
from tpop3d.config.password_file import MAX_PASSWORD, PasswordFile, UnusablePasswordFile

NAME = "$CREDENTIALS_DIRECTORY/database"
NEW = "new-" + PASSWORD
database_in = test_readme.database_in  # a fixture


def written(path, octets=PASSWORD, mode=0o600):
    path.unlink(missing_ok=True)
    path.touch(mode=mode)
    path.write_bytes(octets.encode() if isinstance(octets, str) else octets)
    path.chmod(mode)
    return path


@pytest.fixture
def mail_site(database, site):
    """A site that serves ann@example.org, with the database's password in `site.secret`."""
    site.secret = written(site.path / "secret", PASSWORD + "\n")
    return database.serve(site, spool_of(MESSAGES), password=None, password_file=site.secret)


def let_in(wire):
    wire.login("ann@example.org")
    assert wire.ask("STAT").startswith(b"+OK %d " % len(MESSAGES))
    assert wire.ask("QUIT").startswith(b"+OK")


def refused(wire):
    assert wire.line().startswith(b"+OK")
    wire.send(LOGIN)
    assert wire.line().startswith(b"+OK")
    assert wire.line().startswith(b"-ERR [SYS/TEMP]")


# The file


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("password", ["x", " with blanks ", "# '\"\\", "x" * (MAX_PASSWORD - 2)])
def test_the_newline_at_its_end_is_not_the_passwords(tmp_path, password, end):
    file = written(tmp_path / "secret", password + end)
    assert PasswordFile(str(file)).read() == password


def test_octets_stay_octets(tmp_path):
    assert os.fsencode(PasswordFile(str(written(tmp_path / "x", b"\xff\n"))).read()) == b"\xff"


ONE_LINE = "must hold one line, the password, and nothing else"


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        ("", "holds no password"),
        ("\n", "holds no password"),
        (f"{PASSWORD}\n\n", ONE_LINE),
        (f"password: {PASSWORD}\nuser: x\n", ONE_LINE),
        (f"{PASSWORD}\0", ONE_LINE),
        ("x" * (MAX_PASSWORD + 1), ONE_LINE),
    ],
)
def test_what_is_no_password_is_refused_and_not_quoted(tmp_path, octets, why):
    file = written(tmp_path / "secret", octets)
    with pytest.raises(UnusablePasswordFile) as caught:
        PasswordFile(str(file)).read()
    assert str(caught.value) == f"{file}: {why}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o444])
def test_a_file_that_every_user_can_read_is_refused(tmp_path, mode):
    file = written(tmp_path / "secret", PASSWORD, mode)
    with pytest.raises(UnusablePasswordFile) as caught:
        PasswordFile(str(file)).read()
    assert str(caught.value) == f"{file}: every user can read this password: chmod o-r {file}"
    file.chmod(0o640)
    assert PasswordFile(str(file)).read() == PASSWORD


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UnusablePasswordFile, match="holds no password"):
        PasswordFile(f"{tmp_path}/pipe").read()


def test_a_directory_and_nothing_are_no_file(tmp_path):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "x", "No such file or directory")):
        with pytest.raises(UnusablePasswordFile, match=why):
            PasswordFile(str(path)).read()


# The configuration


def test_one_of_both_is_enough(mail_site):
    mail_site.configure({"auth-mysql-password": PASSWORD})
    (error,) = errors_in(mail_site.conf)
    assert error.endswith(
        "auth-mysql-enable: auth-mysql-password and auth-mysql-password-file are both given"
    )


@pytest.mark.parametrize("path", ["secret", "./secret", "$HOME/secret", ""])
def test_the_path_is_absolute(mail_site, path):
    mail_site.configure({"auth-mysql-password-file": path})
    errors = errors_in(mail_site.conf)
    assert "auth-mysql-password-file: must be an absolute path, or $CRED" in errors[0]


def test_the_configuration_is_checked_with_it(mail_site):
    done = tpop3d("--check-config", "-f", mail_site.conf)
    assert (done.returncode, done.stderr.decode()) == (0, NO_TLS)
    assert f"auth-mysql-password-file: {mail_site.secret}\n" in done.stdout.decode()
    assert_silent(done.stdout)
    mail_site.secret.chmod(0o644)
    done = tpop3d("--check-config", "-f", mail_site.conf)
    assert (done.returncode, done.stdout) == (2, b"")
    why = f"{mail_site.secret}: every user can read this password: chmod o-r {mail_site.secret}\n"
    assert done.stderr.decode().splitlines(keepends=True)[0].endswith(why)
    mail_site.secret.unlink()
    done = tpop3d("--check-config", "-f", mail_site.conf)
    assert done.returncode == 2
    why = f": auth-mysql-password-file: {mail_site.secret}: No such file or directory"
    assert done.stderr.decode().splitlines()[0].endswith(why)


def test_what_only_systemd_provides_is_a_warning(mail_site):
    mail_site.configure({"auth-mysql-password-file": NAME})
    done = tpop3d("--check-config", "-f", mail_site.conf)
    assert done.returncode == 0
    key = "auth-mysql-password-file"
    keys = [one for one, value in mail_site.settings.items() if value is not None]
    where = f"warning: {mail_site.conf}:{keys.index(key) + 1}: {key}"
    assert f"{where}: {NAME}: systemd has set no" in done.stderr.decode()
    assert "see LoadCredential=; it cannot be checked here" in done.stderr.decode()
    mail_site.secret.rename(mail_site.path / "database")
    given = ENVIRONMENT | {"CREDENTIALS_DIRECTORY": str(mail_site.path)}
    done = tpop3d("--check-config", "-f", mail_site.conf, env=given)
    assert (done.returncode, done.stderr.decode()) == (0, NO_TLS)


# Logins


@pytest.mark.parametrize("door", ["systemd-socket-activate", "listener"])
def test_a_renewed_password_is_used_at_the_next_login(mail_site, database, door):
    """In a listener, too, and without being told."""
    with doors.TCP_DOORS[door](mail_site) as tcp:
        let_in(tcp.connect())
        database.sql(f"SET PASSWORD FOR '{USERNAME}'@'localhost' = PASSWORD('{NEW}')")
        refused(tcp.connect())
        written(mail_site.secret, NEW)
        let_in(tcp.connect())
        assert_silent(tcp.logs.text().encode())


BROKEN = {
    "missing": (None, "No such file or directory"),
    "empty": (b"\n", "holds no password"),
    "two lines": (f"{PASSWORD}\n{PASSWORD}\n", "must hold one line"),
    "wrong": (f"{PASSWORD}-wrong", "Access denied for user"),
    "not UTF-8": (PASSWORD.encode() + b"\xff", "what it says is not text"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_password_that_is_not_to_be_had_is_no_refusal(mail_site, how):
    octets, why = BROKEN[how]
    mail_site.secret.unlink()
    if octets is not None:
        written(mail_site.secret, octets)
    ended = converse(mail_site.conf, LOGIN + b"QUIT\r\n", "-v")
    assert ended.lines[2].startswith(b"-ERR [SYS/TEMP]")
    assert b"driver undecided driver=mysql" in ended.stderr
    assert why.encode() in ended.stderr
    assert_silent(ended.client, ended.stderr)


def test_a_password_that_all_can_read_opens_nothing(mail_site):
    mail_site.secret.chmod(0o644)
    ended = converse(mail_site.conf, LOGIN + b"QUIT\r\n", "-v")
    assert ended.lines[2].startswith(b"-ERR [SYS/TEMP]")
    assert f"chmod o-r {mail_site.secret}".encode() in ended.stderr
    assert_silent(ended.client, ended.stderr)


def test_in_what_systemd_provides(mail_site):
    mail_site.configure({"auth-mysql-password-file": NAME})
    mail_site.secret.rename(mail_site.path / "database")
    given = {"CREDENTIALS_DIRECTORY": str(mail_site.path)}
    ended = converse(mail_site.conf, LOGIN + b"QUIT\r\n", env=given)
    assert ended.lines[2].startswith(b"+OK")
    ended = converse(mail_site.conf, LOGIN + b"QUIT\r\n")
    assert ended.lines[2].startswith(b"-ERR [SYS/TEMP]")
    assert b"see LoadCredential=" in ended.stderr


@pytest.mark.parametrize("listener", [True, False], ids=["listener", "inetd"])
def test_no_process_that_stays_has_it_in_its_memory(mail_site, database, listener):
    with contextlib.ExitStack() as stack:
        if listener:
            client = stack.enter_context(doors.standalone(mail_site)).connect()
        else:
            client = stack.enter_context(doors.inetd(mail_site))
        client.login("ann@example.org")
        poll(lambda: not connections(database), "the connection to be closed")
        for pid in poll(mail_site.processes, "the server's processes"):
            memory = memory_of(pid)
            # Not the memory itself, or a failure would report megabytes.
            is_read, has_it = str(mail_site.conf).encode() in memory, PASSWORD.encode() in memory
            assert (is_read, has_it) == (True, False)


# Under systemd

COMMANDS = """\
mariadb -e "CREATE DATABASE mail; CREATE USER tpop3d@localhost IDENTIFIED BY '{password}'"
mariadb -e "GRANT SELECT ON mail.* TO tpop3d@localhost"
mariadb mail < tpop3d/auth/vmail-sql.sql
mariadb mail -e "INSERT INTO domain VALUES ('example.org', '/var/mail', 'ann', NULL, NULL)"
mariadb mail -e "INSERT INTO popbox VALUES ('anna', 'example.org', '{{plaintext}}secret', 'ann')"
"""
SETTINGS = {
    "auth-mysql-enable": "yes",
    "auth-mysql-database": "mail",
    "auth-mysql-username": "tpop3d",
    "auth-mysql-password-file": NAME,
}
SERVICES = {"tpop3d.socket": "tpop3d@.service", "tpop3d-listener.socket": "tpop3d-listener.service"}


@pytest.mark.usefixtures("database_in")
def test_systemd_hands_it_to_the_service_alone(box):
    """And where it is from the service cannot look."""
    done = box.run(
        "/bin/sh", "-ec", "cd /opt/tpop3d/checkout\n" + COMMANDS.format(password=PASSWORD)
    )
    assert done.returncode == 0, done.stderr
    hidden = written(box.path("/etc/database-password"), PASSWORD + "\n")
    box.add("ann", spool_of(MESSAGES))
    box.configure(SETTINGS)
    for socket, service in SERVICES.items():
        box.adapt(
            service,
            Service_LoadCredential="database:/etc/database-password",
            Service_InaccessiblePaths="/etc/database-password",
        )
        box.systemctl("start", socket)
        client = box.wire()
        client.login("anna@example.org")
        assert client.ask("STAT").startswith(b"+OK %d " % len(MESSAGES))
        assert client.ask("QUIT").startswith(b"+OK")
        box.systemctl("stop", socket)
    assert PASSWORD not in box.journal()
    hidden.unlink()
