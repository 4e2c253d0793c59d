"""auth-mysql behind the real doors, beside other drivers, and what is told it of logins."""

import poplib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import doors
from databases import DATABASE, USERNAME, connections, decide
from mailsite import ENVIRONMENT, poll
from samples import MESSAGES, on_the_wire, spool_of
from tpop3d.auth.driver import CANNOT_SAY, NO, YES
from tpop3d.auth.mysql import VMAIL_SQL

ON_LOGIN = (
    "INSERT INTO logins"
    " VALUES ('$(user)', '$(local_part)', '$(domain)', \"$(clienthost)\", 'it''s')"
)


@pytest.fixture
def logins(database):
    """A table of logins that the driver may write to."""
    database.sql(
        "CREATE TABLE logins (user VARCHAR(99), local_part VARCHAR(99), domain VARCHAR(99),"
        " client VARCHAR(99), word VARCHAR(99))"
        " ENGINE=InnoDB CHARACTER SET utf8mb4"
    )
    for host in ("localhost", "127.0.0.1"):
        database.sql(f"GRANT INSERT ON {DATABASE}.logins TO '{USERNAME}'@'{host}'")
    return lambda: [tuple(row.split("\t")) for row in database.sql("SELECT * FROM logins")]


def flatfile_too(site, order=None):
    site.configure({"auth-flatfile-enable": "yes", "auth-drivers": order})


# Doors


@pytest.mark.parametrize("door", doors.TCP_DOORS)
def test_mail_is_read_behind_every_door(mail_site, database, door):
    hostname = f"127.0.0.1:{database.port}"
    mail_site.configure({"auth-mysql-hostname": hostname})
    with doors.TCP_DOORS[door](mail_site) as tcp:
        client = tcp.connect()
        client.login("ann@example.org")
        poll(lambda: not connections(database), "its connection to be closed")
        assert client.ask_long("RETR 1")[1] == on_the_wire(MESSAGES[0])
        assert client.ask("DELE 1").startswith(b"+OK")
        assert client.ask("QUIT").startswith(b"+OK")
        for name, password in (("ann@example.org", "wrong"), ("bert@example.org", "secret")):
            other = tcp.connect()
            assert other.line().startswith(b"+OK")
            assert other.ask(f"USER {name}").startswith(b"+OK")
            assert other.ask(f"PASS {password}").startswith(b"-ERR [AUTH]")
            poll(lambda: not connections(database), "the connection to be closed")
        assert client.line() == b""
    assert mail_site.spool("ann").read_bytes() == spool_of(MESSAGES[1:])


def test_mail_is_read_behind_inetd(mail_site, inetd):
    inetd.login("ann@example.org")
    assert inetd.ask_long("RETR 2")[1] == on_the_wire(MESSAGES[1])
    assert inetd.ask("QUIT").startswith(b"+OK")
    line = inetd.logs.wait_for(": login ")
    assert " user=ann@example.org " in line
    assert " driver=mysql " in line


def test_by_default_the_tables_have_hashes_and_no_apop_is_offered(mail_site):
    with doors.inetd(mail_site) as wire:
        assert b"<" not in wire.line()


@pytest.mark.parametrize(
    "how", [{"apop": "yes"}, {"auth-mysql-apop-query": VMAIL_SQL.replace("SELECT", "SELECT ALL")}]
)
def test_apop_is_offered_and_taken(mail_site, how):
    mail_site.configure(how)
    with doors.standalone(mail_site) as door:
        client = door.poplib()
        assert b"<" in client.getwelcome()
        assert client.apop("ann@example.org", "secret").startswith(b"+OK")
        client.quit()
        with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
            door.poplib().apop("ann@example.org", "wrong")


def test_without_an_apop_query_apop_is_not_offered(mail_site):
    mail_site.configure({"auth-mysql-apop-query": "none"})
    with doors.inetd(mail_site) as wire:
        greeting = wire.line()
        assert greeting.startswith(b"+OK")
        assert b"<" not in greeting
        digest = "0" * 32
        assert wire.ask(f"APOP ann@example.org {digest}").startswith(b"-ERR")
        wire.send(b"USER ann@example.org\r\nPASS secret\r\n")
        assert wire.line().startswith(b"+OK")
        assert wire.line().startswith(b"+OK")


AFTER_PRELOAD = """
import sys
from tpop3d.auth import registry as drivers
from tpop3d.auth.driver import Login
from tpop3d.configuration import load
enabled = load(sys.argv[1]).drivers
drivers.preload(enabled.values())
before = set(sys.modules)
print(enabled["mysql"].authenticate(Login(b"ann", b"example.org", password=b"secret")).answer)
print(*set(sys.modules) - before)
"""


def test_a_listener_has_loaded_all_that_a_login_needs(mail_site):
    """Each login would load it anew: the library's Python part takes as long as the login."""
    command = [sys.executable, "-c", AFTER_PRELOAD, mail_site.conf]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("yes\n\n", "")


# Beside other drivers


@pytest.mark.parametrize("order", ["mysql flatfile", "flatfile mysql", None])
def test_the_first_yes_wins_and_nobody_else_is_asked(database, tmp_path, order):
    """Both know ann; who is asked first says where her mail is."""
    passwd = tmp_path / "passwd"
    passwd.write_text("ann:{plaintext}secret\nbert:{plaintext}secret\n")
    general = {
        "auth-drivers": order,
        "auth-flatfile-enable": "yes",
        "auth-flatfile-passwd-file": passwd,
        "auth-flatfile-mail-user": "nobody",
    }
    query = (
        "SELECT '/of/mysql', '{plaintext}secret', 'nobody', 'bsd' FROM DUAL WHERE $(user) = 'ann'"
    )
    config = database.config(tmp_path, general, pass_query=query)
    first = "flatfile" if order == "flatfile mysql" else "mysql"
    assert next(iter(config.drivers)) == first
    assert decide(config, "ann").driver == first
    assert decide(config, "bert").driver == "flatfile"
    assert decide(config, "carl").answer == NO
    general["auth-flatfile-passwd-file"] = tmp_path / "missing"
    config = database.config(tmp_path, general, pass_query=query)
    assert decide(config, "ann").driver == "mysql"
    assert decide(config, "carl").answer == CANNOT_SAY


def test_a_dead_database_locks_nobody_else_out(mail_site, database):
    flatfile_too(mail_site)
    with doors.standalone(mail_site) as door:
        database.stop()
        client = door.connect()
        client.login("ann")
        client.ask("QUIT")
        door.logs.wait_for("driver undecided driver=mysql")
        unknown = door.connect()
        unknown.line()
        unknown.ask("USER ann@example.org")
        assert unknown.ask("PASS secret").startswith(b"-ERR [SYS/TEMP]")


def test_who_was_let_in_by_a_driver_before_it_does_not_need_the_database(mail_site, database):
    flatfile_too(mail_site, "flatfile mysql")
    database.stop()
    with doors.inetd(mail_site) as wire:
        wire.login("ann")
        wire.logs.wait_for(": login ")
        assert "undecided" not in wire.logs.text()


# The on-login query


def test_the_on_login_query_is_run_after_every_good_login(mail_site, logins):
    """Whichever driver has said yes; and its row is there at once, for other connections."""
    flatfile_too(mail_site, "flatfile mysql")
    mail_site.configure({"auth-mysql-onlogin-query": ON_LOGIN})
    with doors.standalone(mail_site) as door:
        for name, password in (("ann@example.org", "wrong"), ("ann", "wrong"), ("x", "secret")):
            failed = door.connect()
            failed.line()
            failed.ask(f"USER {name}")
            assert failed.ask(f"PASS {password}").startswith(b"-ERR [AUTH]")
        assert logins() == []
        client = door.connect()
        client.login("ann@example.org")
        expected = [("ann@example.org", "ann", "example.org", "127.0.0.1", "it's")]
        assert logins() == expected
        client.ask("QUIT")
        door.logs.wait_for(": session .*end=quit")
        client = door.connect()
        client.login("ann")
        assert logins() == [*expected, ("ann", "ann", "", "127.0.0.1", "it's")]
        client.ask("QUIT")
        assert "driver not told" not in door.logs.text()


def test_the_on_login_query_takes_names_as_they_are(logins, database, tmp_path):
    database.add_domain("example.org", "/var/mail")
    config = database.config(tmp_path, {"domain-separators": "@"}, onlogin_query=ON_LOGIN)
    for name in ("o'hara", '"', "100%s", "x'); DROP TABLE logins; --", "änn", "back\\slash"):
        database.add(name, "example.org", "{plaintext}secret")
        assert decide(config, f"{name}@example.org", client="::1").answer == YES
        assert database.sql(
            "SELECT CAST(client AS CHAR) FROM logins WHERE user = CONCAT(local_part, '@', domain)"
            f" AND HEX(local_part) = '{name.encode().hex()}'"
        ) == ["::1"]


def test_a_login_goes_on_when_its_query_fails(mail_site, database, logins):
    """Here it has no right to do what it says."""
    mail_site.configure({"auth-mysql-onlogin-query": "DELETE FROM popbox"})
    with doors.inetd(mail_site) as wire:
        wire.login("ann@example.org")
        line = wire.logs.wait_for("driver not told")
        assert " driver=mysql user=ann@example.org reason=" in line
        assert "denied" in line
        assert wire.ask("STAT").startswith(b"+OK")
    assert database.sql("SELECT COUNT(*) FROM popbox") == ["1"]


def test_a_login_goes_on_when_there_is_no_database_to_tell(mail_site, database):
    flatfile_too(mail_site, "flatfile mysql")
    mail_site.configure({"auth-mysql-onlogin-query": ON_LOGIN})
    database.stop()
    with doors.inetd(mail_site) as wire:
        wire.login("ann")
        assert " user=ann reason=" in wire.logs.wait_for("driver not told driver=mysql")


def test_a_query_that_takes_too_long_does_not_hold_a_login_back(mail_site):
    settings = {"auth-mysql-onlogin-query": "SELECT SLEEP(8)", "auth-timeout-seconds": 1}
    mail_site.configure(settings)
    with doors.inetd(mail_site) as wire:
        wire.login("ann@example.org")
        assert "in 1 seconds" in wire.logs.wait_for("driver not told driver=mysql")


def test_a_listener_has_loaded_the_library_for_its_children(mail_site):
    """At its start and, where the driver comes with a reload, after that."""
    library = re.compile(r"/MySQLdb/_mysql\.")
    with doors.standalone(mail_site) as door:
        maps = Path(f"/proc/{door.process.pid}/maps")
        # It listens first, and then loads what children would have to.
        poll(lambda: library.search(maps.read_text()), "the library")
    mail_site.configure({"auth-mysql-enable": "no", "auth-flatfile-enable": "yes"})
    with doors.standalone(mail_site) as door:
        maps = Path(f"/proc/{door.process.pid}/maps")
        assert not library.search(maps.read_text())
        mail_site.configure({"auth-mysql-enable": "yes"})
        door.process.send_signal(signal.SIGHUP)
        door.logs.wait_for("reload: the configuration is read again")
        poll(lambda: library.search(maps.read_text()), "the library")
