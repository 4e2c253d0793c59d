"""`tpop3d --recover`: what a crash has interrupted is finished in all mailboxes, by their users."""

import os
import subprocess
import sys

import pytest

import doors
from mailsite import ENVIRONMENT, IS_ROOT, as_ordinary_user, need, poll
from spools import mbox, messages_of, terms
from tpop3d.mailspool import expunge as expunge_module
from tpop3d.mailspool import state as states
from tpop3d.mailspool.locks import lock_file
from tpop3d.mailspool.spool import open_spool

SPOOL = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"x" * 3000) for n in range(4)])
NEW = b"".join(messages_of(SPOOL)[1:])
USERS = {"anna": 65534, "bert": 2001, "cleo": 2002}


def fails(*_):
    raise OSError(5, "Input/output error")


def interrupted(site, user, monkeypatch):
    """An expunge that was interrupted before it was carried out; returns the state directory."""
    uid = USERS[user] if IS_ROOT else os.geteuid()
    gid = uid if IS_ROOT else os.getegid()
    site.add(user, SPOOL)
    path = site.spool(user)
    os.chown(path, uid, gid)
    place = states.prepare(str(site.state), str(path), uid, gid)
    with monkeypatch.context() as patch:
        patch.setattr(expunge_module, "carry_out", fails)
        spool = open_spool(str(path), uid, place, terms())
        assert spool.expunge(bytearray([1, 0, 0, 0])) is not None
        spool.close()
    for name in os.listdir(place):
        os.chown(f"{place}/{name}", uid, gid)
    assert path.read_bytes() == SPOOL
    return place


@pytest.fixture
def crashed(site, monkeypatch):
    """The state directory of each user."""
    if IS_ROOT:
        site.spools.chmod(0o1777)
    return {user: interrupted(site, user, monkeypatch) for user in USERS}


def recover(site, *before):
    command = [*before, sys.executable, "-m", "tpop3d", "--recover", "-f", str(site.conf)]
    return subprocess.run(
        command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False
    )


def journals_of(crashed):
    return {user for user, place in crashed.items() if os.path.lexists(f"{place}/journal")}


def test_all_mailboxes(site, crashed):
    done = recover(site)
    assert done.returncode == 0, done.stderr
    for user, place in crashed.items():
        assert site.spool(user).read_bytes() == NEW
        line = (
            f'maildrop recovered directory={place} reason="an expunge that was interrupted is done'
        )
        assert line in done.stderr
    assert journals_of(crashed) == set()
    assert not list(site.spools.glob("*.lock"))
    again = recover(site)
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")
def test_each_is_its_users_business(site, crashed, tmp_path):
    """Nothing in a mailbox is opened, and no spool, by anybody else."""
    done = recover(site, need("strace"), "-f", "-o", str(tmp_path / "trace"))
    assert done.returncode == 0, done.stderr
    who = {}
    opened = set()
    for line in (tmp_path / "trace").read_text().splitlines():
        pid, _, call = line.partition(" ")
        if call.strip().startswith("setresuid(") and call.endswith("= 0"):
            who[pid] = int(call.split("(")[1].split(",")[0])
        if not call.strip().startswith(("open", "unlink", "rename", "link")):
            continue
        for user, place in crashed.items():
            if f'"{place}/' in call or f'"{site.spool(user)}' in call:
                assert who.get(pid) == USERS[user], line
                opened.add(user)
    assert opened == set(USERS)


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")
def test_a_user_recovers_what_is_his(site, crashed):
    site.conf.chmod(0o644)
    command = as_ordinary_user("tpop3d.recover", 2001, "--recover", "-f", site.conf)
    done = subprocess.run(command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert site.spool("bert").read_bytes() == NEW
    assert journals_of(crashed) == {"anna", "cleo"}


def test_a_mailbox_in_use_is_left_to_its_session(site, crashed):
    with open(f"{crashed['bert']}/lock", "r+b") as lock:
        assert lock_file(lock.fileno())
        done = recover(site)
    assert done.returncode == 1
    assert "maildrop not recovered" in done.stderr
    assert "another POP3 session has the maildrop" in done.stderr
    assert site.spool("bert").read_bytes() == SPOOL
    assert journals_of(crashed) == {"bert"}
    assert recover(site).returncode == 0
    assert site.spool("bert").read_bytes() == NEW


def test_damaged_journals_are_put_aside(site, crashed):
    with open(f"{crashed['anna']}/journal", "r+b") as file:
        file.write(b"x")
    site.spool("cleo").write_bytes(SPOOL.replace(b"x", b"y"))
    done = recover(site)
    assert done.returncode == 0
    for user, why in {"anna": "of no known form", "cleo": "not as it was"}.items():
        kept = f"{crashed[user]}/journal.unfit.1"
        assert f"kept as {kept}" in done.stderr
        assert why in done.stderr
        assert os.path.exists(kept)
    assert site.spool("anna").read_bytes() == SPOOL
    assert site.spool("cleo").read_bytes() == SPOOL.replace(b"x", b"y")
    assert site.spool("bert").read_bytes() == NEW
    assert recover(site).stderr == ""


def test_a_spool_that_is_missing_is_waited_for(site, crashed):
    """Perhaps its file system is not mounted yet."""
    away = site.path / "away"
    site.spool("bert").rename(away)
    done = recover(site)
    assert done.returncode == 1
    assert "waits for the spool, which is missing" in done.stderr
    assert journals_of(crashed) == {"bert"}
    away.rename(site.spool("bert"))
    assert recover(site).returncode == 0
    assert site.spool("bert").read_bytes() == NEW


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
def test_a_mailbox_of_roots_is_nobodys(site, crashed):
    os.chown(crashed["anna"], 0, 0)
    done = recover(site)
    assert done.returncode == 1
    assert "uid 0 and gid 0 own no mailbox" in done.stderr
    assert site.spool("anna").read_bytes() == SPOOL
    assert journals_of(crashed) == {"anna"}


def test_without_a_state_directory_there_is_nothing_to_do(site):
    site.configure({"state-directory": site.path / "none"})
    done = recover(site)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_configuration_with_mistakes(site):
    site.configure({"state-directorz": "x"})
    assert recover(site).returncode == 1


def test_the_listener_recovers_when_it_starts(site, crashed):
    with doors.standalone(site) as door:
        for user, place in crashed.items():
            door.logs.wait_for(f"maildrop recovered directory={place}")
            assert site.spool(user).read_bytes() == NEW
        client = door.poplib()
        assert client.getwelcome().startswith(b"+OK")
        poll(lambda: not journals_of(crashed), "the journals to go")


def test_a_session_recovers_its_own_mailbox(site, crashed, inetd):
    inetd.login("anna")
    assert inetd.ask("STAT").split()[1] == b"3"
    inetd.logs.wait_for(
        r"maildrop recovered user=anna .*reason=.an expunge that was interrupted is"
    )
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert site.spool("anna").read_bytes() == NEW
    assert journals_of(crashed) == {"bert", "cleo"}
