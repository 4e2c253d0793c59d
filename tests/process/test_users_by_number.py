"""Users and groups that are numbers alone, as in containers, wherever one is given."""

import grp
import os
import pwd
import sys

import pytest

import doors
from authkit import LEAST, config_of, converse, errors_of, text_of, tpop3d
from mailsite import IS_ROOT
from samples import MESSAGES, spool_of
from tpop3d.config.directive import NO_HOME, group_id, user_id
from trying import attempt

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")


def free_number():
    """Of neither a user nor a group."""
    known = {one.pw_uid for one in pwd.getpwall()} | {one.gr_gid for one in grp.getgrall()}
    return next(number for number in range(54321, 60000) if number not in known)


NUMBER = free_number()
OTHER = next(number for number in range(61000, 62000) if number != NUMBER)


def given_to(site, user, uid, gid):
    """A mailspool that is this user's."""
    site.add(user, spool_of(MESSAGES))
    os.chown(site.spools, uid, gid)
    os.chown(site.spool(user), uid, gid)
    return site.spool(user)


def ids_of(site):
    """User and group of each process."""
    places = [os.stat(f"/proc/{pid}") for pid in site.processes()]
    return [(one.st_uid, one.st_gid) for one in places]


def test_a_number_is_a_user_with_a_group_of_its_own_and_no_home():
    user = user_id(str(NUMBER))
    assert (user.name, user.uid, user.gid) == (str(NUMBER), NUMBER, NUMBER)
    assert user.home == NO_HOME
    assert group_id(str(NUMBER)).gid == NUMBER


def test_one_that_has_an_entry_is_the_user_of_that(monkeypatch):
    entry = pwd.getpwnam("nobody")
    assert user_id(str(entry.pw_uid)).name == "nobody"
    assert user_id(str(entry.pw_uid)).gid == entry.pw_gid
    assert user_id("0").uid == 0


def test_who_we_are_has_our_group(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: NUMBER)
    monkeypatch.setattr(os, "getegid", lambda: 7)
    assert user_id(str(NUMBER)).gid == 7
    assert user_id(str(NUMBER + 1)).gid == NUMBER + 1


@as_root
@pytest.mark.parametrize("group", [None, NUMBER, OTHER])
def test_a_listener_serves_the_mail_of_numbers_and_talks_as_one(site, group):
    given_to(site, "anna", NUMBER, NUMBER)
    site.configure(
        {
            "auth-flatfile-mail-user": NUMBER,
            "auth-flatfile-mail-group": group,
            "gatekeeper-user": OTHER,
        }
    )
    with doors.standalone(site) as door:
        wire = door.connect()
        wire.line()
        assert (OTHER, OTHER) in ids_of(site)  # of who speaks with clients
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert (NUMBER, NUMBER) in ids_of(site)
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
    assert site.spool("anna").read_bytes() == spool_of(MESSAGES[1:])
    assert site.spool("anna").stat().st_uid == NUMBER
    got = attempt(site)
    assert got.status == 0, got.text
    whose = f"uid {NUMBER} (who is no user of this system), gid {NUMBER} (which is no group"
    assert whose in got.of("account")[0]


@as_root
def test_a_database_may_name_a_number(mail_site, database):
    given_to(mail_site, "ann", NUMBER, NUMBER)
    database.sql(f"UPDATE domain SET unix_user = '{NUMBER}'")
    got = attempt(mail_site, "ann@example.org")
    assert got.status == 0, got.text
    assert f"uid {NUMBER} (" in got.of("account")[0]
    wrong = {"0": "no: root has no mailbox here", str(2**32): "cannot say: unix user"}
    for number, why in wrong.items():
        database.sql(f"UPDATE domain SET unix_user = '{number}'")
        assert attempt(mail_site, "ann@example.org").of("mysql")[0].startswith(why)


def test_the_system_users_mail_group_may_be_a_number():
    settings = {"auth-passwd-enable": "yes", "auth-passwd-mail-group": NUMBER}
    assert config_of(settings).drivers["passwd"]._maildrops._gid == NUMBER


# Containers, where nobody is root


# What an ordinary user may not be able to read is loaded before.
CONTAINER = """
import os, tpop3d.cli, tpop3d.configuration, tpop3d.doors.per_connection, tpop3d.session.session
tpop3d.configuration.load({conf!r})
os.setgroups({groups})
os.setresgid({gid}, {gid}, {gid})
os.setresuid({uid}, {uid}, {uid})
raise SystemExit(tpop3d.cli.main())
"""
SCRIPT = b"USER anna\r\nPASS secret\r\nSTAT\r\nQUIT\r\n"


def in_container(site, uid, gid, *groups):
    """One session of a process that is only numbers; what the client sees, and the log."""
    program = CONTAINER.format(conf=str(site.conf), groups=groups, uid=uid, gid=gid)
    command = [sys.executable, "-c", program, "--inetd"]
    ended = converse(site.conf, SCRIPT, command=command)
    return ended.client, ended.stderr.decode()


@pytest.fixture
def container(site):
    """A site all of which is a number's, as where a volume is mounted."""
    given_to(site, "anna", NUMBER, OTHER)
    site.configure({"auth-flatfile-mail-user": NUMBER, "auth-failure-delay-seconds": 0})
    for path in (site.conf, site.passwd, site.state):
        os.chown(path, NUMBER, OTHER)
    return site


@as_root
def test_without_root_it_is_who_it_is(container):
    said, stderr = in_container(container, NUMBER, OTHER)
    assert f"+OK {len(MESSAGES)} ".encode() in said, (said, stderr)


@as_root
def test_of_roots_group_alone_it_is_refused(container):
    """As OpenShift starts all."""
    said, stderr = in_container(container, NUMBER, 0)
    why = "auth-flatfile-mail-user: is in root's group, which owns no mailbox here; give"
    assert why in stderr
    assert said.startswith(b"-ERR [SYS/PERM]")
    # With a group of the volume's (fsGroup) it is served.
    container.configure({"auth-flatfile-mail-group": OTHER})
    said, stderr = in_container(container, NUMBER, 0, OTHER)
    assert f"+OK {len(MESSAGES)} ".encode() in said, (said, stderr)


# What is none


@pytest.mark.parametrize("key", ["mail-user", "mail-group"])
@pytest.mark.parametrize("text", ["4294967295", "4294967296", "9" * 5000, "-1", "\u0663"])
def test_no_number_of_anybody(key, text):
    (error,) = errors_of(text_of(LEAST | {f"auth-flatfile-{key}": text}))
    assert f": auth-flatfile-{key}: " in error
    assert len(error) < 6000


def test_root_owns_no_mailbox_by_number_either():
    (error,) = errors_of(text_of(LEAST | {"auth-flatfile-mail-user": "0"}))
    assert error == "test.conf:4: auth-flatfile-mail-user: root owns no mailbox here"
    (error,) = errors_of(text_of(LEAST | {"auth-flatfile-mail-group": "0"}))
    assert error.endswith("auth-flatfile-mail-group: '0' is root's group, and none for mail")


@as_root
def test_what_gatekeepers_are_may_be_a_number(tmp_path):
    file = tmp_path / "tpop3d.conf"
    file.write_text(text_of(LEAST | {"gatekeeper-user": NUMBER}))
    assert tpop3d("--check-config", "-f", file).returncode == 0
