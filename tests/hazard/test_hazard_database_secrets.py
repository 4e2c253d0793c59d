"""The database's user name and password are in no log, and in no process that stays."""

import contextlib

import pytest

import doors
from authkit import converse, tpop3d
from databases import PASSWORD, USERNAME, connections
from mailsite import IS_ROOT, poll
from test_hazard_secrets import memory_of

LOGIN = b"USER ann@example.org\r\nPASS secret\r\n"
NOT_UTF8 = "€"  # stands for an octet that is none
TELL = """
CREATE PROCEDURE tell() BEGIN
    DECLARE words VARCHAR(99) DEFAULT CONCAT('it is ', USER(), '!');
    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = words;
END
"""

# How the driver is brought to fail: by its directives, or by what is done to the server.
FAILURES = {
    "wrong password": ({"password": f"{PASSWORD}-wrong"}, ""),
    "wrong user name": ({"username": f"{USERNAME}-wrong"}, ""),
    "password not UTF-8": ({"password": f"{PASSWORD}{NOT_UTF8}"}, ""),
    "user name not UTF-8": ({"username": f"{USERNAME}{NOT_UTF8}"}, ""),
    "long user name": ({"username": USERNAME * 40}, ""),
    "odd user name": ({"username": f"{USERNAME}'%s{{}}\\\\1"}, ""),
    "no database": ({"database": "nowhere"}, ""),
    "no table": ({}, "DROP TABLE popbox"),
    "no right": ({}, "REVOKE SELECT ON mail.* FROM {user}"),
    "too many queries": ({}, "ALTER USER {user} WITH MAX_QUERIES_PER_HOUR 1"),
    "expired": ({}, "ALTER USER {user} PASSWORD EXPIRE"),
    "nobody of that name": ({}, "DROP USER {user}"),
    "who asks": ({"pass-query": "SELECT no_such_function(CURRENT_USER())"}, ""),
    "a query that fails": ({"pass-query": "SELECT $(user) FROM nowhere"}, ""),
    "a procedure that says it": (
        {"pass-query": "CALL tell()"},
        "GRANT EXECUTE ON mail.* TO {user}",
    ),
    "no socket": ({"hostname": "/nonexistent"}, ""),
    "on login": ({"onlogin-query": "DELETE FROM popbox"}, ""),
    "on login, saying it": ({"onlogin-query": "CALL tell()"}, "GRANT EXECUTE ON mail.* TO {user}"),
}


@pytest.mark.parametrize(("settings", "change"), FAILURES.values(), ids=FAILURES)
def test_no_failure_says_who_we_are(mail_site, database, settings, change):
    database.sql(f"DELIMITER //\n{TELL}//")
    database.sql(change.format(user=f"'{USERNAME}'@'localhost'"))
    mail_site.configure({f"auth-mysql-{key}": value for key, value in settings.items()})
    written = mail_site.conf.read_bytes()
    mail_site.conf.write_bytes(written.replace(NOT_UTF8.encode(), b"\xff"))
    ended = converse(mail_site.conf, LOGIN + b"QUIT\r\n", "-v")
    assert_silent(ended.client, ended.stderr)
    if "onlogin-query" in settings:
        assert b"driver not told" in ended.stderr
        assert ended.lines[2].startswith(b"+OK")
    else:
        assert b"driver undecided" in ended.stderr
        assert ended.lines[2].startswith(b"-ERR [SYS/TEMP]")
    shown = tpop3d("--check-config", "-f", mail_site.conf)
    assert shown.returncode == 0
    assert_silent(shown.stdout, shown.stderr)


def assert_silent(*outputs):
    for output in outputs:
        for secret in (USERNAME, PASSWORD):
            assert secret.encode() not in output


def test_neither_does_a_server_that_is_full(mail_site, database):
    """It says the name without quotes then."""
    MySQLdb = pytest.importorskip("MySQLdb")
    database.sql("SET GLOBAL max_user_connections = 1")
    try:
        ours = {"unix_socket": str(database.socket), "user": USERNAME, "password": PASSWORD}
        with contextlib.closing(MySQLdb.connect(**ours)):
            ended = converse(mail_site.conf, LOGIN, "-v")
    finally:
        database.sql("SET GLOBAL max_user_connections = DEFAULT")
    assert b"active connections" in ended.stderr
    assert_silent(ended.client, ended.stderr)


def test_a_secret_that_has_gone_from_the_file_is_not_missed_aloud(mail_site):
    """The file is read again for each login."""
    with doors.standalone(mail_site) as door:
        written = mail_site.conf.read_text()
        for content in (written.replace("auth-mysql-password: ", "auth-mysql-password "), ""):
            mail_site.conf.write_text(content)
            client = door.connect()
            client.line()
            client.send(LOGIN)
            assert client.line().startswith(b"+OK")
            assert client.line().startswith(b"-ERR [SYS/TEMP]")
        mail_site.conf.write_text(written)
        door.connect().login("ann@example.org")
        assert_silent(door.logs.text().encode())
        assert "Traceback" not in door.logs.text()


@pytest.mark.parametrize("listener", [True, False], ids=["listener", "inetd"])
def test_no_process_that_stays_has_a_secret_in_its_memory(mail_site, database, listener):
    mail_site.configure({"auth-mysql-onlogin-query": "DO $(user)"})
    with contextlib.ExitStack() as stack:
        if listener:
            door = stack.enter_context(doors.standalone(mail_site))
            failed, client = door.connect(), door.connect()
            failed.line()
            failed.send(LOGIN.replace(b"secret", b"wrong"))
            assert [failed.line()[:4] for _ in range(2)] == [b"+OK ", b"-ERR"]
            least = 3 if IS_ROOT else 2  # the listener, a gatekeeper, the session
        else:
            client, least = stack.enter_context(doors.inetd(mail_site)), 1
        client.login("ann@example.org")
        poll(lambda: not connections(database), "the connection to be closed")
        processes = poll(mail_site.processes, "the server's processes")
        assert len(processes) >= least
        for pid in processes:
            memory = memory_of(pid)
            # Not the memory itself, or a failure would report megabytes.
            read = str(mail_site.conf).encode() in memory
            found = [secret for secret in (USERNAME, PASSWORD) if secret.encode() in memory]
            assert read
            assert not found
        assert client.ask("STAT").startswith(b"+OK")
