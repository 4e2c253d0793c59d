"""`tpop3d --recover`: what a crash has interrupted is finished in all mailboxes, by their users."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import doors
from mailsite import ENVIRONMENT, IS_ROOT, as_ordinary_user, need, poll
from spools import mbox, messages_of, terms
from tpop3d.mailspool import expunge as expunge_module
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool import state_directory as states
from tpop3d.mailspool.locks import lock_file
from tpop3d.mailspool.spool import open_spool
from tpop3d.session import recover_all as recovering

SPOOL = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"x" * 3000) for n in range(4)])
NEW = b"".join(messages_of(SPOOL)[1:])
USERS = {"anna": 65534, "bert": 2001, "cleo": 2002}


def fails(*_):
    raise OSError(5, "Input/output error")


def place_of(site, user, uid, gid):
    """The state directory of a mailbox."""
    name = states.name_of(states.real_path(str(site.spool(user))), uid)
    return states.prepare(str(site.state), name, uid, gid)


def interrupted(site, user, monkeypatch):
    """An expunge that was interrupted before it was carried out; returns the state directory."""
    uid = USERS[user] if IS_ROOT else os.geteuid()
    gid = uid if IS_ROOT else os.getegid()
    site.add(user, SPOOL)
    path = site.spool(user)
    os.chown(path, uid, gid)
    place = place_of(site, user, uid, gid)
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
    done = recover(site, need("strace"), "-ff", "-o", str(tmp_path / "trace"))
    assert done.returncode == 0, done.stderr
    who = {}
    opened = set()
    traces = [(path.suffix, path.read_text().splitlines()) for path in tmp_path.glob("trace.*")]
    for pid, call in [(pid, call) for pid, calls in traces for call in calls]:
        if call.strip().startswith("setresuid(") and call.endswith("= 0"):
            who[pid] = int(call.split("(")[1].split(",")[0])
        if not call.strip().startswith(("open", "unlink", "rename", "link")):
            continue
        for user, place in crashed.items():
            if f'"{place}/' in call or f'"{site.spool(user)}' in call:
                assert who.get(pid) == USERS[user], call
                opened.add(user)
    assert opened == set(USERS)


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")
def test_a_user_recovers_what_is_his(site, crashed):
    site.conf.chmod(0o644)
    command = as_ordinary_user("tpop3d.session.recover_all", 2001, "--recover", "-f", site.conf)
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
        r"maildrop recovered .*user=anna .*reason=.an expunge that was interrupted is"
    )
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert site.spool("anna").read_bytes() == NEW
    assert journals_of(crashed) == {"bert", "cleo"}


# What a mailbox, or its user, does to the recovery of the others

IMPATIENT = """
import sys
from tpop3d.session import recover_all as recover
from tpop3d.cli import main
recover.SECONDS = 0.5
raise SystemExit(main(sys.argv[1:]))
"""


class Recovery:
    """A recovery that goes on, with its own idea of how long it may take."""

    def __init__(self, site):
        command = [sys.executable, "-c", IMPATIENT, "--recover", "-f", str(site.conf)]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, cwd="/", stderr=subprocess.PIPE, text=True
        )

    def children(self):
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def child_for(self, user):
        """The process that has the session lock of a user."""

        def found():
            for child in self.children():
                try:
                    links = [os.readlink(one) for one in Path(f"/proc/{child}/fd").iterdir()]
                except OSError:
                    continue
                if any(link.endswith(f"%2F{user}/lock") for link in links):
                    return child
            return 0

        return poll(found, f"the process for {user}")

    def end(self):
        """Its exit status, and what it has said; nobody is left."""
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said


@pytest.fixture
def held(site, crashed):
    """Bert's spool is locked by a program of his that will not let go of it."""
    site.configure({"lock-timeout-seconds": 1})
    with site.spool("bert").open("r+b") as spool:
        assert lock_file(spool.fileno())
        yield crashed["bert"]


def others_are_done(site, crashed, but):
    assert journals_of(crashed) == {but}
    assert all(site.spool(user).read_bytes() == NEW for user in USERS.keys() - {but})
    assert site.spool(but).read_bytes() == SPOOL


def test_a_process_that_holds_a_lock_holds_up_nobody_else(site, crashed, held):
    recovery = Recovery(site)
    poll(lambda: journals_of(crashed) == {"bert"}, "the others to be recovered")
    status, said = recovery.end()
    assert status == 1
    assert f"maildrop not recovered directory={held} " in said
    assert "still locked after 1 seconds" in said
    others_are_done(site, crashed, "bert")


def test_a_process_that_does_not_go_on_is_ended_when_its_time_is_over(site, crashed, held):
    """Its user may stop it."""
    recovery = Recovery(site)
    os.kill(recovery.child_for("bert"), signal.SIGSTOP)
    status, said = recovery.end()
    assert status == 1
    assert f'not recovered directory={held} reason="not done within 1.5 seconds"' in said
    others_are_done(site, crashed, "bert")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_is_ended_by_a_signal_is_logged(site, crashed, held, number):
    recovery = Recovery(site)
    os.kill(recovery.child_for("bert"), number)
    status, said = recovery.end()
    assert status == 1
    assert f'{held} reason="its process was ended by signal {number:d}"' in said
    others_are_done(site, crashed, "bert")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("stopped", [False, True])
def test_signals_are_obeyed_at_once(site, crashed, held, number, stopped):
    site.configure({"lock-timeout-seconds": 1000})
    recovery = Recovery(site)
    child = recovery.child_for("bert")
    poll(lambda: journals_of(crashed) == {"bert"}, "the others to be recovered")
    if stopped:
        os.kill(child, signal.SIGSTOP)
    recovery.process.send_signal(number)
    status, said = recovery.end()
    assert status == 1
    assert re.search("recovery was told to end, and [123] maildrops are not recovered", said)
    assert not Path(f"/proc/{child}").exists()
    assert os.path.lexists(f"{held}/journal")
    assert not site.spool("bert").with_name("bert.lock").exists()


def sparse(path):
    """A journal of an octet a gigabyte, which would take hours to read."""
    path.write_bytes(journals._HEADER.pack(journals.MAGIC, 1, 0, 1 << 42, (1 << 42) + 4096, 0))
    os.truncate(path, journals._HEADER.size + (1 << 42) + (1 << 32) + 8)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, sparse])
@pytest.mark.parametrize("spool", ["there", "missing"])
def test_whatever_a_user_calls_a_journal(site, crashed, make, spool):
    path = Path(crashed["bert"], "journal")
    path.unlink()
    make(path)
    os.chown(path, *(os.stat(crashed["bert"])[4:6]))
    if spool == "missing":
        site.spool("bert").unlink()
    done = recover(site)
    assert done.returncode == (1 if make is sparse else 0), done.stderr
    assert "internal" not in done.stderr
    assert journals_of(crashed) == ({"bert"} if make is sparse else set())
    assert all(site.spool(user).read_bytes() == NEW for user in ("anna", "cleo"))


@pytest.mark.parametrize("name", ["lock", "journal.new", "index.new"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.makedirs(f"{path}/more")])
def test_whatever_else_a_user_puts_there(site, crashed, name, make):
    """It fails himself at most, and with a clear line."""
    path = Path(crashed["bert"], name)
    path.unlink(missing_ok=True)
    make(path)
    os.chown(path, *(os.stat(crashed["bert"])[4:6]))
    done = recover(site)
    assert "internal" not in done.stderr
    if done.returncode:
        assert f"maildrop not recovered directory={crashed['bert']}" in done.stderr
        assert f"{path}: not a regular file" in done.stderr or f"{path} cannot" in done.stderr
        others_are_done(site, crashed, "bert")
    else:
        assert make is os.mkfifo
        assert name != "lock"
        assert journals_of(crashed) == set()
        assert not os.path.lexists(path)


def test_what_was_left_of_files_is_removed(site):
    """Where somebody was killed before a journal was one, it can be as large as the spool."""
    uid, gid = (2001, 2001) if IS_ROOT else (os.geteuid(), os.getegid())
    place = place_of(site, "bert", uid, gid)
    names = "journal.new", "index.new", "uidvalidity.new", "ids.new", "ids.next"
    left = [f"{place}/{name}" for name in names]
    for path in left:
        Path(path).write_bytes(b"left")
        os.chown(path, uid, gid)
    with open(f"{place}/lock", "w+b") as lock:
        os.chown(f"{place}/lock", uid, gid)
        assert lock_file(lock.fileno())
        done = recover(site)
        assert done.returncode == 1
        assert "another POP3 session has the maildrop" in done.stderr
        assert all(map(os.path.exists, left))
    done = recover(site)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(place) == ["lock"]


@pytest.mark.parametrize("finished", [False, True])
def test_what_a_session_was_about_to_finish_is_not_left(site, finished):
    """It was under way when the recovery looked."""
    uid, gid = (2001, 2001) if IS_ROOT else (os.geteuid(), os.getegid())
    place = place_of(site, "bert", uid, gid)
    Path(place, "index.new").write_bytes(b"under way")
    with open(f"{place}/lock", "w+b") as lock:
        os.chown(f"{place}/lock", uid, gid)
        assert lock_file(lock.fileno())
        recovery = Recovery(site)
        recovery.child_for("bert")
        if finished:
            Path(place, "index.new").unlink()
        status, said = recovery.end()
    assert status == (0 if finished else 1)
    assert ("another POP3 session" in said) != finished


def test_what_only_its_user_may_see_is_left_to_him(site, monkeypatch):
    """To root, NFS refuses what is in a directory of somebody's."""
    place = place_of(site, "bert", os.geteuid(), os.getegid())
    assert not recovering._has_left(place)
    for code, is_left in ((13, IS_ROOT), (5, True), (116, True), (20, False)):

        def lstat(path, code=code):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "lstat", lstat)
            assert recovering._has_left(place) == is_left, code


@pytest.mark.parametrize("stopped", [False, True])
def test_a_listener_that_stops_does_not_wait_for_it(site, crashed, held, stopped):
    with doors.standalone(site, settings={"lock-timeout-seconds": 1000}) as door:
        poll(lambda: journals_of(crashed) == {"bert"}, "the others to be recovered")
        (child,) = poll(
            lambda: [one for one in site.processes() if holds(one, held)], "the process for bert"
        )
        if stopped:
            os.kill(child, signal.SIGSTOP)
    door.logs.wait_for("recovery was told to end, and [123] maildrops are not recovered")
    assert not Path(f"/proc/{child}").exists()
    assert not site.processes()


@pytest.mark.skipif(not IS_ROOT, reason="others are not told from users")
def test_a_recovery_that_is_killed_is_logged(site, crashed, held):
    with doors.standalone(site, settings={"lock-timeout-seconds": 1000}) as door:
        poll(lambda: journals_of(crashed) == {"bert"}, "the others to be recovered")
        (child,) = poll(
            lambda: [one for one in site.processes() if holds(one, held)], "the process for bert"
        )
        parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        door.logs.wait_for("recovery was ended by signal 9")
        assert door.poplib().getwelcome().startswith(b"+OK")
        os.kill(child, signal.SIGKILL)


def holds(pid, place):
    try:
        links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return f"{place}/lock" in links
