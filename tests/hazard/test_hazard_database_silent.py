"""Two databases, one of which says nothing: one login waits for it, and no other.

That nobody waits is told by whom the silent host had to do with, not by seconds.
"""

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("MySQLdb", reason="mysqlclient is not installed in this Python")
from MySQLdb import OperationalError

import databases
import doors
from databases import decide
from mailsite import IS_ROOT, need, poll
from samples import MESSAGES
from silence import NEVER, Stopped, asked, attempt, count, server, wait_for, wait_for_count
from test_gatekeeper_processes import tree
from test_hazard_nameserver import MOUNT, Nameserver
from tpop3d.auth import mysql_database as asking
from tpop3d.auth.driver import CANNOT_SAY, NO, YES

LOGINS = 20
ADMITTED = b"+OK maildrop has %d " % len(MESSAGES)
UNDECIDED = b"-ERR [SYS/TEMP]"


@pytest.fixture(scope="module")
def second():
    """Another MariaDB."""
    databases.require()
    made = databases.MariaDB()
    yield made.start()
    made.close()


@pytest.fixture
def two(mail_site, database, second):
    """The site, and two servers that know its ann; the first is asked first."""
    second.furnish()
    second.add_domain("example.org", mail_site.spools)
    second.add("ann", "example.org", "{plaintext}secret")
    hosts = [f"127.0.0.1:{one.port}" for one in (database, second)]
    settings = {"auth-mysql-hostname": " ".join(hosts), "auth-failure-delay-seconds": 0}
    mail_site.configure(settings)
    yield mail_site, database, second
    if second.process is None:
        second.start()


@pytest.fixture
def times(monkeypatch):
    """Sets how long a host has, and so on."""
    return lambda **more: monkeypatch.setattr(doors, "SERVER", server(**more))


def test_one_login_waits_for_a_host_that_is_stopped(two, times):
    site, first, second = two
    times(retry=NEVER)
    with doors.standalone(site) as door:
        assert attempt(door) == attempt(door)
        before, others = asked(first), asked(second)
        with Stopped(first):
            assert attempt(door).startswith(ADMITTED)
            line = wait_for(door, "host silent ")
            assert f"driver=mysql host=127.0.0.1:{first.port}" in line
            for _ in range(LOGINS):
                assert attempt(door).startswith(ADMITTED)
            assert attempt(door, password="wrong").startswith(b"-ERR [AUTH]")
            assert attempt(door, "bert@example.org").startswith(b"-ERR [AUTH]")
        assert asked(first) - before == 1  # it takes what came meanwhile only now
        assert asked(second) - others == LOGINS + 3
        assert count(door, "host silent") == 1
        assert "undecided" not in door.logs.text()


def test_it_is_asked_again_when_it_answers_and_no_login_tries(two, times):
    site, first, second = two
    times(retry=0.3)
    with doors.standalone(site) as door, Stopped(first) as stopped:
        assert attempt(door).startswith(ADMITTED)
        wait_for(door, "host silent ")
        assert attempt(door).startswith(ADMITTED)
        stopped.go_on()
        line = wait_for(door, "host answers ")
        assert f"driver=mysql host=127.0.0.1:{first.port}" in line
        others = asked(second)
        assert attempt(door).startswith(ADMITTED)
        assert asked(second) == others
        # And so on, each time it happens.
        with Stopped(first):
            assert attempt(door).startswith(ADMITTED)
            wait_for_count(door, "host silent", 2)
        wait_for_count(door, "host answers", 2)


def test_a_reload_forgets_nothing(two, times):
    site, first, _ = two
    times(retry=NEVER)
    with doors.standalone(site) as door:
        early = door.connect()
        assert early.line().startswith(b"+OK")
        before = asked(first)
        with Stopped(first):
            assert attempt(door).startswith(ADMITTED)
            wait_for(door, "host silent ")
            for number in range(1, 3):
                door.process.send_signal(signal.SIGHUP)
                wait_for_count(door, "reload: the configuration is read again", number)
                assert attempt(door).startswith(ADMITTED)
            # Whoever was there before has the configuration of that time, and waits by himself.
            early.connection.settimeout(60)
            early.ask("USER ann@example.org")
            assert early.ask("PASS secret").startswith(ADMITTED)
            early.close()
        assert asked(first) - before == 2
        # With other hosts there is nothing to be remembered.
        site.configure({"auth-mysql-hostname": first.socket})
        door.process.send_signal(signal.SIGHUP)
        wait_for_count(door, "reload: the configuration is read again", 3)
        assert attempt(door).startswith(ADMITTED)
    assert "internal error" not in door.logs.text()


def test_a_host_that_has_ended_is_asked_by_each_login_since_it_costs_none(two, times):
    site, first, second = two
    times(costly=60)  # however slow this machine is
    with doors.standalone(site) as door:
        others = asked(second)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        first.process = None
        for _ in range(LOGINS):
            assert attempt(door).startswith(ADMITTED)
        assert asked(second) - others == LOGINS
        first.start()
        first.ours = 0
        others = asked(second)
        assert attempt(door).startswith(ADMITTED)
        assert asked(second) == others
        assert count(door, "host silent") == 0


def test_where_no_host_answers_one_login_waits_and_none_is_called_wrong(two, times):
    site, first, _ = two
    times(retry=0.3)
    site.configure({"auth-mysql-hostname": f"127.0.0.1:{first.port}"})
    with doors.standalone(site) as door, Stopped(first) as stopped:
        for _ in range(LOGINS):
            assert attempt(door).startswith(UNDECIDED)
        where = f"127.0.0.1:{first.port}: "
        waited = [line for line in door.logs.lines() if "driver undecided" in line]
        assert where in waited[0]
        told = f"{where}has not answered, and is tried again every few seconds"
        assert [told in line for line in waited] == [False] + [True] * (LOGINS - 1)
        stopped.go_on()
        wait_for(door, "host answers ")
        assert attempt(door).startswith(ADMITTED)
        assert "login failed" not in door.logs.text()


def test_a_silent_host_that_ends_is_not_there_again_by_that(two, times):
    site, first, _ = two
    times(retry=0.1)
    site.configure({"auth-mysql-hostname": f"127.0.0.1:{first.port}"})
    with doors.standalone(site) as door:
        with Stopped(first):
            assert attempt(door).startswith(UNDECIDED)
            wait_for(door, "host silent ")
        wait_for(door, "host answers ")
        with Stopped(first):
            assert attempt(door).startswith(UNDECIDED)
            wait_for_count(door, "host silent", 2)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            first.process = None
        for _ in range(5):
            assert attempt(door).startswith(UNDECIDED)
        assert count(door, "host answers") == 1
        first.start()
        wait_for_count(door, "host answers", 2)
        assert attempt(door).startswith(ADMITTED)


def test_a_host_that_does_not_let_us_in_has_answered(two, times):
    """And the log says why, to each login."""
    site, first, _ = two
    times(retry=0.1)
    site.configure({"auth-mysql-hostname": f"127.0.0.1:{first.port}"})
    first.sql(f"ALTER USER '{databases.USERNAME}'@'127.0.0.1' ACCOUNT LOCK")
    with doors.standalone(site) as door:
        with Stopped(first):
            assert attempt(door).startswith(UNDECIDED)
            wait_for(door, "host silent ")
        wait_for(door, "host answers ")
        assert attempt(door).startswith(UNDECIDED)
        wait_for(door, "driver undecided .*locked")


def test_nobody_but_a_login_attempt_can_report(two, times):
    """A session is somebody else's process, and a gatekeeper perhaps."""
    site, first, _ = two
    times(retry=NEVER)
    with doors.standalone(site) as door:
        wire = door.connect()
        wire.login("ann@example.org")
        poll(lambda: not databases.connections(first), "its connection to be closed")
        ours = sockets(door.process.pid)
        for pid in set(tree(door.process.pid)) - {door.process.pid}:
            assert not ours & sockets(pid) - log_of(door), pid
        wire.ask("QUIT")


def sockets(pid):
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(fd))
        except FileNotFoundError:
            continue
    return {one for one in found if one.startswith("socket:")}


def log_of(door):
    """What all processes of the listener have: stdin, stdout and stderr."""
    return {os.readlink(f"/proc/{door.process.pid}/fd/{fd}") for fd in range(3)}


SAYS = {
    "denied": (OperationalError(1045, "Access denied for user"), True),
    "too many connections": (OperationalError(1040, "Too many connections"), True),
    "not for us": (OperationalError(1130, "Host is not allowed to connect"), True),
    "a certificate of another's": (OperationalError(2026, "TLS/SSL error"), True),
    "no TLS": (asking.NotWanted("the server offers no TLS"), True),
    "what is no text": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), True),
    "refused": (OperationalError(2002, "Can't connect to server (111)"), False),
    "refused, to MySQL's library": (OperationalError(2003, "Can't connect (111)"), False),
    "no such name": (OperationalError(2005, "Unknown server host"), False),
    "gone": (OperationalError(2006, "Server has gone away"), False),
    "hung up": (OperationalError(2013, "Lost connection"), False),
    "no time": (asking.Unreached("no answer in 5 seconds"), False),
}


@pytest.mark.parametrize(("error", "is_there"), SAYS.values(), ids=SAYS)
def test_who_is_there_is_told_by_what_is_said(error, is_there):
    assert asking._has_answered(error) == is_there


# The name of a host


@pytest.mark.skipif(not IS_ROOT, reason="only root may mount an /etc/resolv.conf")
def test_a_nameserver_that_is_silent_costs_no_more_than_a_host(two, monkeypatch):
    """The resolver would wait for a minute, and the driver be cut off before that."""
    site, first, _ = two
    nameserver = Nameserver(site.path)
    resolver = site.path / "resolv.conf"
    resolver.write_text(resolver.read_text().replace("timeout:1", "timeout:30") + "search .\n")
    name = "db.tpop3d.test"
    site.configure({"auth-mysql-hostname": f"{name} 127.0.0.1:{first.port}"})
    names = [need("unshare"), "--mount", "sh", "-c", f'{MOUNT} && exec "$@"', str(site.path)]
    monkeypatch.setattr(doors, "SERVER", [*names, *server(retry=NEVER)])
    try:
        with doors.standalone(site) as door:
            for _ in range(3):
                assert attempt(door).startswith(ADMITTED)
            assert f"host={name}" in wait_for(door, "host silent ")
            site.configure({"auth-mysql-hostname": name})
            door.process.send_signal(signal.SIGHUP)
            wait_for(door, "reload: the configuration is read again")
            assert attempt(door).startswith(UNDECIDED)
            assert f"{name}: has not answered" in wait_for(door, "driver undecided")
    finally:
        nameserver.close()


def test_the_reason_says_that_the_name_may_be_it(vmail, tmp_path, monkeypatch):
    """A library that hangs in anything has no more time than that."""
    monkeypatch.setattr(asking, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(asking.Database, "_secrets", hang_in_connect(monkeypatch))
    verdict = decide(vmail.config(tmp_path, hostname="db1.example.org"), "ann@example.org")
    assert verdict.answer == CANNOT_SAY
    why = "db1.example.org: no answer in 1 seconds, the look-up of its name included"
    assert verdict.reason == why


def hang_in_connect(monkeypatch):
    """Secrets for a library that never connects."""

    def secrets(self):
        import MySQLdb

        read_end, _ = os.pipe()
        monkeypatch.setattr(MySQLdb, "connect", lambda **_: os.read(read_end, 1))
        return "somebody", "secret"

    return secrets


# Doors without a memory, and drivers with little time


def test_a_host_that_is_silent_is_named_where_the_driver_has_less_time(
    two, times, tmp_path, monkeypatch
):
    """auth-timeout-seconds is less than what one host has: the next login asks the other host."""
    monkeypatch.setattr(asking, "LAST_WORD", 2)
    times(connect=5, last_word=2)
    site, first, second = two
    hosts = f"127.0.0.1:{first.port} 127.0.0.1:{second.port}"
    with Stopped(first):
        config = first.config(tmp_path, {"auth-timeout-seconds": 3}, hostname=hosts)
        verdict = decide(config, "ann@example.org")
        assert verdict.answer == CANNOT_SAY
        assert f"127.0.0.1:{first.port}: no answer in 1 seconds" in verdict.reason
        assert f"127.0.0.1:{second.port}: there was no time left to ask it" in verdict.reason
        site.configure({"auth-timeout-seconds": 3})
        with doors.standalone(site) as door:
            assert attempt(door).startswith(UNDECIDED)
            wait_for(door, "host silent ")
            assert attempt(door).startswith(ADMITTED)


def test_each_connection_waits_where_nobody_remembers(two, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "CONNECT_SECONDS", 1)
    _, first, second = two
    hosts = f"127.0.0.1:{first.port} 127.0.0.1:{second.port}"
    config = first.config(tmp_path, hostname=hosts)
    before = asked(first)
    with Stopped(first):
        for _ in range(2):
            assert decide(config, "ann@example.org").answer == YES
        assert decide(config, "ann@example.org", b"wrong").answer == NO
    assert asked(first) - before == 3
