"""What another configuration changes in a listener that runs, for those who come after it."""

import os
import pwd
import time
from contextlib import suppress

import pytest

import doors
from mailsite import IS_ROOT, PATIENCE, poll
from spools import mbox
from test_gatekeeper_processes import Process
from test_listener import children_of, greeted_or_none
from test_listener_signals import reload

SPOOL = mbox(b"Subject: one\n\n1\n")
OTHER_USERS = ("daemon", "bin", "mail", "games")  # one of these is everywhere


def greeted(door):
    wire = door.connect()
    assert wire.line().startswith(b"+OK")
    return wire


def answer_to(door, password):
    wire = greeted(door)
    assert wire.ask("USER anna").startswith(b"+OK")
    line = wire.ask(f"PASS {password}")
    wire.close()
    return line


def test_the_time_to_log_in(site):
    with doors.standalone(site, settings={"login-seconds": 600}) as door:
        before = greeted(door)
        site.configure({"login-seconds": 1})
        reload(door)
        started = time.monotonic()
        after = greeted(door)
        assert after.line() == b""
        assert 0.9 < time.monotonic() - started < PATIENCE / 2
        # Who was there before has the time that it was given.
        assert before.ask("CAPA").startswith(b"+OK")


def test_the_password_file(site):
    site.add("anna", SPOOL)
    site.configure({"auth-failure-delay-seconds": 0})
    other = site.path / "other"
    other.write_text("anna:{plaintext}another\n")
    other.chmod(0o600)
    with doors.standalone(site) as door:
        assert answer_to(door, "secret").startswith(b"+OK")
        site.configure({"auth-flatfile-passwd-file": other})
        reload(door)
        assert answer_to(door, "secret").startswith(b"-ERR [AUTH]")
        # The session before this one may hold the maildrop for a moment.
        poll(lambda: answer_to(door, "another").startswith(b"+OK"), "the new password to do")


def test_where_the_mail_is(site):
    site.add("anna", SPOOL)
    elsewhere = site.path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "anna").write_bytes(SPOOL + SPOOL)
    for path in (elsewhere, elsewhere / "anna"):
        site.give_to_mail_user(path)
    with doors.standalone(site) as door:
        before = greeted(door)
        site.configure({"auth-flatfile-mailbox": f"bsd:{elsewhere}/$(local_part)"})
        reload(door)
        wire = door.connect()
        wire.login("anna")
        assert wire.ask("STAT").startswith(b"+OK 2 ")
        assert before.ask("QUIT").startswith(b"+OK")


def test_how_many_connections_a_gatekeeper_serves(site):
    # With one place there is one gatekeeper, be it with a client or without.
    settings = {"max-children": 1, "gatekeeper-connections": 100}
    with doors.standalone(site, settings=settings) as door:
        assert greeted(door).ask("QUIT").startswith(b"+OK")
        site.configure({"gatekeeper-connections": 1})
        reload(door)
        for _ in range(3):
            wire = poll(lambda: greeted_or_none(door), "a free place")
            before = poll(lambda: only_child(door), "those before to be gone")
            assert wire.ask("QUIT").startswith(b"+OK")
            wire.close()
            poll(lambda before=before: only_child(door) not in (None, before), "another")


def only_child(door):
    children = list(children_of(door.process.pid))
    return children[0] if len(children) == 1 else None


def with_a_client(door, count=1):
    """The gatekeepers that have clients: so many share a connection with the listener.

    One that is being forked, or was a moment ago, shares more than that.
    """

    def found():
        listener = Process(door.process.pid)
        theirs = {name for name in listener.files.values() if name.startswith("socket:")}
        sharing = set()
        for pid in children_of(door.process.pid):
            with suppress(OSError):  # gone meanwhile
                if theirs & set(Process(pid).files.values()):
                    sharing.add(pid)
        return len(sharing) == count and sharing

    return poll(found, f"{count} with a client")


def users_of(pids):
    """Who these processes are, without those that are gone."""
    users = {}
    for pid in pids:
        with suppress(OSError):
            users[pid] = set(Process(pid).status["Uid"].split())
    return users


@pytest.mark.skipif(not IS_ROOT, reason="only root can choose whom a gatekeeper runs as")
def test_whom_gatekeepers_run_as(site):
    numbers = {one.pw_name: one.pw_uid for one in pwd.getpwall() if one.pw_uid and one.pw_gid}
    name = next((one for one in OTHER_USERS if one in numbers), None)
    if name is None:
        pytest.skip(f"none of {', '.join(OTHER_USERS)} is a user here")
    old, new = {str(pwd.getpwnam("nobody").pw_uid)}, {str(numbers[name])}
    with doors.standalone(site) as door:
        before = greeted(door)
        (first,) = with_a_client(door)
        site.configure({"gatekeeper-user": name})
        reload(door)
        # The one with a client stays as it is; those that waited make room for others.
        after = greeted(door)
        (second,) = with_a_client(door, 2) - {first}
        assert users_of([first, second]) == {first: old, second: new}

        def all_are_new():
            found = users_of(set(children_of(door.process.pid)) - {first})
            return len(found) > 1 and all(users == new for users in found.values())

        poll(all_are_new, "the spares to be others")
        assert after.ask("QUIT").startswith(b"+OK")
        assert before.ask("QUIT").startswith(b"+OK")


@pytest.mark.skipif(not IS_ROOT, reason="only root needs a user for gatekeepers")
def test_a_user_that_does_not_exist_changes_nothing(site):
    with doors.standalone(site) as door:
        site.configure({"gatekeeper-user": "no-such-user-here", "login-seconds": 1})
        reload(door, "kept as it was")
        assert "useradd" in door.logs.wait_for("gatekeeper-user: .*no-such-user-here")
        greeted(door)
        (pid,) = with_a_client(door)
        assert users_of([pid]) == {pid: {str(pwd.getpwnam("nobody").pw_uid)}}


@pytest.mark.skipif(not IS_ROOT, reason="only root locks gatekeepers in")
def test_where_gatekeepers_are_locked_in(site):
    other = site.path / "other-state"
    with doors.standalone(site) as door:
        site.configure({"state-directory": other})
        reload(door)
        greeted(door)
        (pid,) = with_a_client(door)
        assert os.readlink(f"/proc/{pid}/root") == str(other / "empty")
