"""`tpop3d --inspect`: who holds which lock on a mailspool, and what its index and journal are."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

import doors
from inspecting import SPOOL, after_a_session, large, line, seen, settled, snapshot
from mailsite import IS_ROOT, MAIL_USER, poll
from spools import mbox
from test_hazard_other_programs import dotlockfile
from test_recover import NEW, interrupted
from tpop3d.commands.inspection import locks
from tpop3d.mailspool.lockfile import here


@pytest.fixture
def anna(site):
    site.add("anna", SPOOL)
    return site


# Locks


def test_all_is_free(anna):
    others = {"fcntl": FREE, "flock": FREE, "dotlock": None}
    assert seen(anna)["locks"] == {"session": None} | others
    with doors.inetd(anna) as wire:
        wire.login("anna")
    poll(lambda: not anna.processes(), "the session to end")
    assert seen(anna)["locks"] == {"session": FREE} | others


FREE = {"state": "free", "holders": [], "reason": None}


def test_a_session_has_the_session_lock(anna, inetd):
    inetd.login("anna")
    lock = seen(anna)["locks"]["session"]
    assert lock["state"] == "held"
    pids = {one["pid"] for one in lock["holders"]}
    if IS_ROOT:
        assert pids <= set(anna.processes())
        assert pids
        assert {one["uid"] for one in lock["holders"]} == {MAIL_USER.pw_uid}
    assert line(anna, "session lock").startswith("held by ")
    assert line(anna, "fcntl lock") == "free"
    assert inetd.ask("STAT").startswith(b"+OK 3 ")


@contextmanager
def another_process(path, code):
    """A process that has done something with the open file `f`."""
    program = (
        f"import fcntl, sys\nf = open({str(path)!r}, 'r+b')\n{code}\nprint(flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process.pid
        finally:
            process.communicate(b"\n")


def test_a_deliverers_fcntl_lock(anna):
    with another_process(anna.spool("anna"), "fcntl.lockf(f, fcntl.LOCK_EX)") as pid:
        lock = seen(anna)["locks"]["fcntl"]
        assert lock["state"] == "held"
        assert [one["pid"] for one in lock["holders"]] == [pid]
        assert lock["holders"][0]["command"].startswith("python")
        assert f"held by pid {pid} (python" in line(anna, "fcntl lock")
        assert len(seen(anna)["messages"]) == 3  # it is no reason to wait
    assert line(anna, "fcntl lock") == "free"


def test_a_deliverers_flock(anna):
    path = anna.spool("anna")
    with another_process(path, "fcntl.flock(f, fcntl.LOCK_EX)") as flocker:
        locks = seen(anna)["locks"]
        assert locks["fcntl"] == FREE
        assert locks["flock"]["state"] == "held"
        assert [one["pid"] for one in locks["flock"]["holders"]] == [flocker]
        assert f"held by pid {flocker} (python" in line(anna, "flock")
        with another_process(path, "fcntl.lockf(f, fcntl.LOCK_EX)") as pid:
            locks = seen(anna)["locks"]
            assert [one["pid"] for one in locks["fcntl"]["holders"]] == [pid]
            assert [one["pid"] for one in locks["flock"]["holders"]] == [flocker]
    assert line(anna, "flock") == "free"


def test_who_waits_for_an_flock_has_none(anna):
    path = anna.spool("anna")
    with another_process(path, "fcntl.flock(f, fcntl.LOCK_SH)") as holder:
        code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'rb'), fcntl.LOCK_EX)"
        with subprocess.Popen([sys.executable, "-c", code, str(path)]) as waiting:
            poll(lambda: f"-> FLOCK  ADVISORY  WRITE {waiting.pid} " in proc_locks(), "it to wait")
            holders = seen(anna)["locks"]["flock"]["holders"]
            assert [one["pid"] for one in holders] == [holder]
            waiting.terminate()


def proc_locks():
    with open("/proc/locks", encoding="ascii") as file:
        return file.read()


def test_an_flock_of_somebody_whom_an_ordinary_user_cannot_see(anna):
    if not IS_ROOT:
        pytest.skip("all that an ordinary user can start is his own")
    path = anna.spool("anna")
    mine = locks.inode_of(path)
    with another_process(path, "fcntl.flock(f, fcntl.LOCK_EX)"):
        pid = os.fork()
        if not pid:
            os.setgid(MAIL_USER.pw_gid)
            os.setuid(MAIL_USER.pw_uid)
            lock = locks.look_at_flock(locks.holders_of([mine])[mine])
            os._exit((lock.state, lock.holders) == ("held", []))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_dotlock_of_liblockfiles(anna):
    path = f"{anna.spool('anna')}.lock"
    assert dotlockfile(anna, "-l", "-p", path) == 0
    lock = seen(anna)["locks"]["dotlock"]
    assert 0 <= lock.pop("age_seconds") < 60
    assert lock == {
        "path": path, "uid": MAIL_USER.pw_uid, "lock_file": True, "pid": os.getpid(),
        "alive": True, "stale": False,
    }  # fmt: skip
    assert f"names pid {os.getpid()} (" in line(anna, "dotlock")
    os.utime(path, (0, 0))
    assert seen(anna)["locks"]["dotlock"]["stale"] is True
    assert line(anna, "dotlock").endswith("which lives; a session breaks it")
    assert dotlockfile(anna, "-u", path) == 0


HERE = here()
# Is it a lock, whom does it name, does that live, would it be broken? And the same of an old one.
DOTLOCKS = {
    b"": (False, None, None, False, False),
    b"From john\n\n": (False, None, None, False, False),
    b"host:77\n": (False, None, None, False, False),
    b"99999999999999\n": (False, None, None, False, False),
    b"0\n": (True, None, None, False, True),
    b"0\0": (True, None, None, False, True),
    b"2147483647\n": (True, 2147483647, None, False, True),
    b"2147483647:host": (True, 2147483647, None, False, True),
    b"2147483647\n" + HERE: (True, 2147483647, False, True, True),
    b"2147483647\nx" + HERE: (True, 2147483647, None, False, True),
    b"1\n" + HERE: (True, 1, True, False, True),
}


@pytest.mark.parametrize("content", DOTLOCKS)
def test_other_dotlocks(anna, content):
    path = anna.spools / "anna.lock"
    path.write_bytes(content)
    anna.give_to_mail_user(path)
    lock = seen(anna)["locks"]["dotlock"]
    *what, is_stale = DOTLOCKS[content]
    assert [lock[key] for key in ("lock_file", "pid", "alive", "stale")] == what
    assert " s old, of " in line(anna, "dotlock")
    assert ("no session breaks it" in line(anna, "dotlock")) != lock["lock_file"]
    os.utime(path, (0, 0))
    assert seen(anna)["locks"]["dotlock"]["stale"] == is_stale
    assert line(anna, "dotlock").endswith("; a session breaks it") == is_stale
    assert path.read_bytes() == content


# Index and journal


def test_the_index(site):
    path = large(site)
    assert seen(site)["index"]["state"] == "absent"
    place = after_a_session(site)
    assert (place / "index").exists()
    first = seen(site)
    assert first["index"]["state"] in ("current", "behind")  # the second: its ctime is of now
    with path.open("ab") as file:
        file.write(mbox(b"Subject: new\n\nnew\n"))
    second = seen(site)
    assert second["index"]["state"] == "behind"
    assert second["messages"][:100] == first["messages"]
    assert second["count"] == 101
    site.configure({"mailspool-index": "no"})
    assert seen(site)["index"]["used"] is False
    assert seen(site)["messages"] == second["messages"]
    site.configure({"mailspool-index": "yes"})
    octets = bytearray((place / "index").read_bytes())
    octets[100] ^= 1
    (place / "index").write_bytes(octets)
    third = seen(site)
    assert third["index"]["state"] == "odd"
    assert third["index"]["octets"] == len(octets)
    assert third["messages"] == second["messages"]
    assert (place / "index").read_bytes() == octets


def test_an_id_that_was_given_once_stays(site):
    """Its twin has gone, and what the index says is what a client is told."""
    twin = mbox(b"Subject: twin\n\n" + b"x" * 600 + b"\n")
    site.add("anna", twin * 2)
    before = seen(site)["messages"][1]["unique_id"]
    with doors.inetd(site) as wire:
        wire.login("anna")
        wire.ask_long("UIDL")
        wire.ask("DELE 1")
        assert wire.ask("QUIT").startswith(b"+OK")
    poll(lambda: not site.processes(), "the session to end")
    found = seen(site)
    assert [one["unique_id"] for one in found["messages"]] == [before]
    (problem,) = found["problems"]
    assert "of a message that is gone, and a suffix" in problem["text"]


def test_a_current_index(site):
    large(site)
    poll(lambda: seen(site)["file"] and settled(site), "the spool to be left alone")
    after_a_session(site)
    assert seen(site)["index"]["state"] == "current"
    assert line(site, "index").startswith("current, ")


def test_a_journal_that_waits_to_be_carried_out(site, monkeypatch):
    place = interrupted(site, "anna", monkeypatch)
    if IS_ROOT:
        assert os.stat(place).st_uid == MAIL_USER.pw_uid
    before = snapshot(site)
    found = seen(site)
    assert found["journal"]["state"] == "unfinished"
    assert found["count"] == 4
    assert line(site, "journal").startswith("unfinished, ")
    with open(site.spool("anna"), "r+b") as file:
        file.write(NEW)
        file.truncate()
    assert seen(site)["journal"]["state"] == "done"
    site.spool("anna").write_bytes(NEW.replace(b"x", b"y"))
    assert seen(site)["journal"]["state"] == "unfit"
    site.spool("anna").unlink()
    found = seen(site, status=1)
    assert (found["journal"]["state"], found["state_directory"]) == ("waiting", place)
    assert (found["count"], found["file"], found["messages"]) == (None, None, [])
    with open(f"{place}/journal", "r+b") as file:
        file.write(b"x")
    assert seen(site, status=1)["journal"]["state"] == "damaged"
    after = snapshot(site)
    assert [name for name in after if name in before] == list(after)
    os.rename(f"{place}/journal", f"{place}/journal.unfit.1")
    assert seen(site, status=1)["others"] == ["journal.unfit.1"]
