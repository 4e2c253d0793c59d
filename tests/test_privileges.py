"""Becoming the mailbox's user: for good, and as the kernel sees it."""

import json
import os
import subprocess
import sys

import pytest

from mailsite import CHECKOUT, IS_ROOT, MAIL_USER

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")

# In a process of its own: what the kernel says before and after, and what can be regained.
CHILD = """
import json, os, sys
from tpop3d.session.privileges import become

def status():
    with open("/proc/self/status") as file:
        fields = dict(line.rstrip("\\n").split(":\\t", 1) for line in file if ":\\t" in line)
    return {key: fields[key].split() for key in
            ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapInh", "CapAmb")}

def allowed(call, *arguments):
    try:
        call(*arguments)
    except PermissionError:
        return False
    return True

exec(sys.argv[3])
before = status()
exec(sys.argv[4])
try:
    answer = become(int(sys.argv[1]), int(sys.argv[2]))
except Exception as error:
    answer = f"{type(error).__name__}"
after = status()
regained = [call.__name__ for call, arguments in (
    (os.setuid, (0,)), (os.seteuid, (0,)), (os.setreuid, (0, 0)), (os.setresuid, (0, 0, 0)),
    (os.setgid, (0,)), (os.setegid, (0,)), (os.setresgid, (0, 0, 0)), (os.setgroups, ([0],)),
    (os.setuid, (1,)), (os.chroot, ("/",)), (os.open, ("/etc/shadow", os.O_RDONLY)),
) if allowed(call, *arguments)] if answer == "" else None
print(json.dumps([answer, before, after, regained]))
"""


def child(uid, gid, then="", first="", **options):
    """`first` and `then` are run before and after the status is read for the first time."""
    command = [sys.executable, "-c", CHILD, str(uid), str(gid), first, then]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@as_root
@pytest.mark.parametrize("groups", [[], [0], [0, 4, 8, 42], list(range(1000, 1100))])
def test_groups_gid_and_uid_are_the_users(groups):
    uid, gid = MAIL_USER.pw_uid, MAIL_USER.pw_gid
    answer, before, after, regained = child(uid, gid, f"os.setgroups({groups})")
    assert answer == ""
    assert before["Uid"] == ["0"] * 4
    assert after["Uid"] == [str(uid)] * 4
    assert after["Gid"] == [str(gid)] * 4
    assert after["Groups"] == [str(gid)]
    assert regained == []


@as_root
def test_no_capability_is_left():
    _, before, after, _ = child(12345, 54321)
    assert int(before["CapEff"][0], 16)
    for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(after[kind][0], 16) == 0


@as_root
def test_the_group_need_not_be_the_users_own():
    answer, _, after, regained = child(12345, 54321)
    assert (answer, regained) == ("", [])
    assert after["Uid"] + after["Gid"] == ["12345"] * 4 + ["54321"] * 4


@as_root
@pytest.mark.parametrize(("uid", "gid"), [(0, 12345), (12345, 0), (0, 0)])
def test_root_is_refused_and_nothing_is_changed(uid, gid):
    answer, before, after, _ = child(uid, gid)
    assert "uid 0 and gid 0" in answer
    assert after == before


@as_root
@pytest.mark.parametrize(("uid", "gid"), [(-1, 12345), (12345, -1), (2**32, 12345), (12345, 2**32)])
def test_an_id_that_is_none_is_no_user(uid, gid):
    """(uid_t) -1 means "leave it as it is" to the kernel."""
    answer, _, _, _ = child(uid, gid)
    assert answer != ""


@as_root
@pytest.mark.parametrize(
    "first",
    [
        "os.setresuid = lambda *ids: None",
        "os.setresuid = lambda a, b, c: os.setreuid(0, b)",
        "os.setresgid = lambda *ids: None",
        "os.setgroups = lambda groups: None",
        "os.getresuid = lambda: (12345, 12345, 0)",
    ],
)
def test_what_did_not_work_is_not_believed(first):
    answer, _, _, _ = child(12345, 54321, "os.setgroups([0, 4])\n" + first)
    assert answer == "StillPrivileged"


@as_root
def test_a_way_back_to_root_is_found():
    """PR_SET_KEEPCAPS and the like: all ids are right, and root is one call away."""
    back = "os.getresuid = lambda: (12345,) * 3\nos.setresuid = lambda *ids: os.seteuid(12345)"
    answer, _, _, _ = child(12345, 54321, back)
    assert answer == "StillPrivileged"


# In the running process: an ordinary user may not be able to read the interpreter.
ORDINARY = "os.setgroups([]); os.setgid(12345); os.setuid(12345)" if IS_ROOT else ""


def ordinary(uid, gid):
    """What an ordinary user is told."""
    return child(uid, gid, first=ORDINARY)


def own_ids():
    return (12345, 12345) if IS_ROOT else (os.getuid(), os.getgid())


def test_an_ordinary_user_becomes_nobody_else():
    uid, gid = own_ids()
    answer, before, after, _ = ordinary(uid + 1, gid)
    assert f"cannot become uid {uid + 1}" in answer
    assert after == before


def test_an_ordinary_user_stays_who_it_is():
    answer, before, after, _ = ordinary(*own_ids())
    assert answer == ""
    assert after == before


def test_an_ordinary_user_cannot_serve_root():
    uid, gid = own_ids()
    for ids in ((0, gid), (uid, 0)):
        assert "uid 0 and gid 0" in ordinary(*ids)[0]


def test_an_ordinary_user_gets_no_group_it_does_not_have():
    """A session would open the spool under another group than the one it was told."""
    uid, gid = own_ids()
    answer, _, after, _ = ordinary(uid, gid + 1)
    assert answer != "" or after["Gid"] == [str(gid + 1)] * 4
