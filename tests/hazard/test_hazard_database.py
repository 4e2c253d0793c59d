"""A database that is down, dead, slow or wrong: whoever cannot be checked is not refused."""

import contextlib
import os
import signal
import socket
import subprocess
import threading

import pytest

import doors
from databases import DATABASE, USERNAME, decide
from mailsite import MAIL_USER
from samples import MESSAGES, on_the_wire
from tpop3d.auth import mysql_database as asked
from tpop3d.auth.driver import CANNOT_SAY, NO, YES

ROW = f"'/var/mail/ann', '{{plaintext}}secret', '{MAIL_USER.pw_name}', 'bsd'"
HELLO = b"220 mail.example.org ESMTP\r\n"


# Down


def kill(server):
    """As a machine dies: without a word to anybody."""
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    server.process = None


def attempt(client):
    client.ask("USER ann@example.org")
    return client.ask("PASS secret")


def test_a_session_does_not_need_the_database_any_more(mail_site, database):
    with doors.standalone(mail_site) as door:
        client = door.connect()
        client.login("ann@example.org")
        kill(database)
        for number, message in enumerate(MESSAGES, 1):
            assert client.ask_long(f"RETR {number}")[1] == on_the_wire(message)
            assert client.ask(f"DELE {number}").startswith(b"+OK")
        assert client.ask("QUIT").startswith(b"+OK")
    assert mail_site.spool("ann").read_bytes() == b""


def test_while_the_database_is_down_nobody_is_told_that_a_password_is_wrong(mail_site, database):
    kill(database)
    with doors.standalone(mail_site) as door:
        client = door.connect()
        assert client.line().startswith(b"+OK")
        for _ in range(4):  # as many wrong passwords would have ended the connection
            assert attempt(client).startswith(b"-ERR [SYS/TEMP]")
        line = door.logs.wait_for("driver undecided driver=mysql")
        assert str(database.socket) in line
        assert "(2002)" in line
        database.start()
        assert attempt(client).startswith(b"+OK")
        assert client.ask("STAT").startswith(b"+OK %d " % len(MESSAGES))


# Two hosts


@contextlib.contextmanager
def host_that(answer=None):
    """The address of a host that answers each connection with these octets, and then no more;
    with None it does not even accept."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        kept = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    kept.append(listening.accept()[0])
                    kept[-1].sendall(answer)

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("first", ["closed", "no socket", "no host"])
def test_a_dead_host_is_passed_over_at_once(vmail, tmp_path, first):
    dead = {"closed": closed_port(), "no socket": tmp_path / "x", "no host": "db.invalid"}[first]
    config = vmail.config(tmp_path, hostname=f"{dead} {vmail.socket}")
    assert decide(config, "ann@example.org").answer == YES
    assert decide(config, "ann@example.org", b"wrong").answer == NO
    assert decide(config, "bert@example.org").answer == NO
    config = vmail.config(tmp_path, hostname=f"{dead} {tmp_path}/none")
    verdict = decide(config, "ann@example.org")
    assert verdict.answer == CANNOT_SAY
    assert verdict.reason.startswith(f"{dead}: ")  # each host is named
    assert f"; {tmp_path}/none: " in verdict.reason


SILENT = {
    "does not accept": None,
    "says nothing": b"",
    "says half of it": b"\x4a\0\0\0\x0a5.5",
    "is no database": HELLO,
    "has too many connections": b"\x17\0\0\0\xff\x10\x04Too many connections",
    # The exception for this one has a hole in it, and to look there ends the process.
    "says what is not UTF-8": b"\x08\0\0\0\xff\x10\x04caf\xe9\xff",
}


@pytest.mark.parametrize("answer", SILENT.values(), ids=SILENT)
def test_a_host_that_does_not_answer_is_passed_over_in_time(vmail, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(asked, "CONNECT_SECONDS", 1)
    with host_that(answer) as first:
        config = vmail.config(tmp_path, hostname=f"{first} {vmail.socket}")
        assert decide(config, "ann@example.org").answer == YES


def test_the_program_gives_a_host_5_seconds():
    assert asked.CONNECT_SECONDS == 5


def test_a_host_that_lets_us_in_and_then_hangs_is_passed_over(vmail, tmp_path, monkeypatch):
    """The same server, slow for whoever comes by TCP."""
    monkeypatch.setattr(asked, "ANSWER_SECONDS", 1)
    query = f"SELECT {ROW} WHERE SLEEP(8 * (CURRENT_USER() LIKE '%@127.0.0.1')) = 0"
    hosts = f"127.0.0.1:{vmail.port} {vmail.socket}"
    config = vmail.config(tmp_path, hostname=hosts, pass_query=query)
    assert decide(config, "ann").answer == YES
    config = vmail.config(tmp_path, hostname=hosts.split()[0], pass_query=query)
    assert decide(config, "ann").answer == CANNOT_SAY


def test_a_slow_query_is_cut_off(vmail, tmp_path):
    general = {"auth-timeout-seconds": "1"}
    config = vmail.config(tmp_path, general, pass_query=f"SELECT {ROW} WHERE SLEEP(8) = 0")
    verdict = decide(config, "ann")
    why = f"driver gave no answer in 1 seconds: it waited for {vmail.socket}"
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, why)
    # Ours is gone; others are served.
    assert decide(vmail.config(tmp_path, general), "ann@example.org").answer == YES


# Wrong

WRONG_QUERIES = {
    "three columns": ("SELECT '/x', '{plaintext}secret', 'nobody'", "gives 3 columns"),
    "six columns": (f"SELECT {ROW}, 1, 2", "gives 6 columns"),
    "three columns, no rows": ("SELECT 1, 2, 3 FROM DUAL WHERE 0", "gives 3 columns"),
    "two rows": (f"SELECT {ROW} UNION ALL SELECT {ROW}", "gives 2 rows for one name"),
    "many rows": (f"SELECT {ROW} FROM seq_1_to_10000", "gives 10000 rows for one name"),
    "no SELECT": ("DO 1", "gives 0 columns"),
    "SET": ("SET @x = $(user)", "gives 0 columns"),
    "two queries": ("SELECT 1; SELECT 2", "SQL syntax"),
    "no SQL": ("please let $(user) in", "SQL syntax"),
    "table missing": (f"SELECT {ROW} FROM no_such_table", "doesn't exist"),
    "column missing": ("SELECT no_such_column FROM popbox", "Unknown column"),
    "no right to": ("DELETE FROM popbox", "denied"),
    "no right to files": ("SELECT LOAD_FILE('/etc/passwd'), 1, 2 INTO OUTFILE '/x'", "denied"),
}


@pytest.mark.parametrize(("query", "why"), WRONG_QUERIES.values(), ids=WRONG_QUERIES)
def test_a_wrong_query_is_cannot_say(vmail, tmp_path, capfd, query, why):
    verdict = decide(vmail.config(tmp_path, pass_query=query), "ann")
    assert verdict.answer == CANNOT_SAY
    assert why in verdict.reason
    assert "driver undecided driver=mysql" in capfd.readouterr().err
    assert decide(vmail.config(tmp_path), "ann@example.org").answer == YES


@pytest.mark.parametrize("column", range(4))
def test_a_null_lets_nobody_in(vmail, tmp_path, column):
    values = ROW.split(", ")
    values[column] = "NULL"
    config = vmail.config(tmp_path, pass_query=f"SELECT {', '.join(values)}")
    verdict = decide(config, "ann")
    assert verdict.answer == NO
    assert verdict.reason.endswith(" is NULL")
    assert decide(config, "ann", b"").answer == NO


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE popbox",
        "RENAME TABLE domain TO domains",
        "ALTER TABLE popbox DROP password_hash",
        f"DROP DATABASE {DATABASE}",
        f"SET PASSWORD FOR '{USERNAME}'@'localhost' = PASSWORD('another')",
        f"DROP USER '{USERNAME}'@'localhost'",
        f"ALTER USER '{USERNAME}'@'localhost' ACCOUNT LOCK",
        f"REVOKE SELECT ON {DATABASE}.* FROM '{USERNAME}'@'localhost'",
        f"ALTER USER '{USERNAME}'@'localhost' PASSWORD EXPIRE",
    ],
)
def test_a_database_that_is_not_as_it_was_is_cannot_say(vmail, tmp_path, capfd, change):
    config = vmail.config(tmp_path)
    assert decide(config, "ann@example.org").answer == YES
    vmail.sql(change)
    verdict = decide(config, "ann@example.org")
    assert verdict.answer == CANNOT_SAY
    assert USERNAME not in verdict.reason + capfd.readouterr().err
    vmail.furnish()
    assert decide(config, "ann@example.org").answer == NO  # the tables are empty now


def test_a_locked_table_is_waited_for(vmail, tmp_path):
    config = vmail.config(tmp_path)
    command = vmail.command(DATABASE)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        locker.stdin.write(b"LOCK TABLES popbox WRITE; SELECT 'locked'; SELECT SLEEP(0.5);\n")
        locker.stdin.close()
        assert locker.stdout.readline() == b"locked\n"
        assert decide(config, "ann@example.org").answer == YES
        assert locker.stdout.read() == b"0\n"


def test_a_server_that_is_full_is_cannot_say(vmail, tmp_path):
    config = vmail.config(tmp_path)
    vmail.sql(f"ALTER USER '{USERNAME}'@'localhost' WITH MAX_CONNECTIONS_PER_HOUR 1")
    assert decide(config, "ann@example.org").answer == YES
    verdict = decide(config, "ann@example.org")
    assert verdict.answer == CANNOT_SAY
    assert "exceeded" in verdict.reason
    assert USERNAME not in verdict.reason


def test_no_file_of_ours_is_read_for_a_server(vmail, tmp_path):
    """A server may ask for any, whatever the query was. Ours would take them, as its own client
    shows."""
    file = tmp_path / "file"
    file.write_text("a line\n")
    vmail.sql("CREATE TABLE stolen (line TEXT)")
    vmail.sql(f"GRANT INSERT ON {DATABASE}.stolen TO '{USERNAME}'@'localhost'")
    load = f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE stolen"
    verdict = decide(vmail.config(tmp_path, pass_query=load), "ann")
    assert verdict.answer == CANNOT_SAY
    assert vmail.sql("SELECT COUNT(*) FROM stolen") == ["0"]
    vmail.sql(load)
    assert vmail.sql("SELECT line FROM stolen") == ["a line"]


def test_a_driver_that_is_killed_is_cannot_say(vmail, tmp_path, monkeypatch):
    """The library may crash: its process alone is gone."""
    config = vmail.config(tmp_path)
    monkeypatch.setattr(
        type(config.drivers["mysql"]), "_account", lambda *_: os.kill(os.getpid(), signal.SIGSEGV)
    )
    verdict = decide(config, "ann@example.org")
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, "driver was ended by signal 11")
