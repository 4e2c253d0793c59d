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
from tpop3d.system import privileges
from tpop3d.system.privileges import apart, for_a_moment, take_group

def become(*ids, **how):
    refused = privileges.become(*ids, **how)
    return "" if refused is None else refused.reason

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
def test_a_further_group_that_is_asleep_is_the_saved_one_alone():
    become = "become = functools.partial(become, further=333)"
    answer, _, after, regained = child(12345, 54321, "import functools\n" + become)
    assert (answer, regained) == ("", [])
    assert after["Gid"] == ["54321", "54321", "333", "54321"]
    assert after["Groups"] == ["54321"]


@as_root
@pytest.mark.parametrize("further", [333, 99999])
def test_a_further_group_that_is_awake_is_a_supplementary_one(further):
    become = f"become = functools.partial(become, further={further}, is_asleep=False)"
    answer, _, after, regained = child(12345, 54321, "import functools\n" + become)
    assert (answer, regained) == ("", [])
    assert after["Gid"] == ["54321"] * 4
    assert sorted(after["Groups"]) == sorted(["54321", str(further)])


@as_root
def test_a_further_group_of_roots_is_refused():
    become = "become = functools.partial(become, further=0)"
    answer, before, after, _ = child(12345, 54321, "import functools\n" + become)
    assert "uid 0 and gid 0" in answer
    assert after == before


@as_root
def test_a_group_that_is_asleep_is_taken_and_let_go():
    """Each time as the kernel has it; and a group that is not the saved one never is."""
    then = """
become(12345, 54321, 333)
seen = []
for gid in (333, 444, 54321):
    take = take_group(gid)
    for is_wanted in (True, False):
        take(is_wanted)
        seen.append(status()["Gid"])
become = lambda *ids: seen
"""
    answer, _, _, _ = child(12345, 54321, "", then)
    asleep = ["54321", "54321", "333", "54321"]
    assert answer == [["54321", "333", "333", "333"], asleep, *[asleep] * 4]


# For a moment

MOMENT = """
def look():
    mine = status()
    mine["seen"] = [allowed(os.listdir, path) for path in paths]
    return mine
become = lambda uid, gid: for_a_moment(uid, gid, look)
"""


@as_root
@pytest.mark.parametrize("groups", [[], [0], [42, 8, 4, 0]])
def test_for_a_moment_we_are_the_user_and_then_who_we_were(site, groups):
    paths = [site.path / name for name in ("hers", "roots", "groups")]
    for path in paths:
        path.mkdir(mode=0o700)
    os.chown(paths[0], 12345, 0)
    os.chown(paths[2], 0, 42)
    paths[2].chmod(0o770)
    first = f"os.setgroups({groups})\npaths = {list(map(str, paths))}\n" + MOMENT
    during, before, after, _ = child(12345, 54321, first=first)
    assert after == before
    assert during["Uid"] == ["0", "12345", "0", "12345"]
    assert during["Gid"] == [before["Gid"][0], "54321", before["Gid"][2], "54321"]
    assert during["Groups"] == ["54321"]
    assert int(during["CapEff"][0], 16) == 0
    assert during["seen"] == [True, False, False]


@as_root
@pytest.mark.parametrize(
    "broken",
    [
        "os.seteuid = lambda uid: None",
        "os.setegid = lambda gid: None",
        "os.setgroups = lambda groups: None",
        "real = os.seteuid\nos.seteuid = lambda uid: real(uid) if uid else None",
        "real = os.setegid\nos.setegid = lambda gid: real(gid) if gid == 54321 else None",
    ],
)
def test_a_moment_that_does_not_begin_or_end_is_not_believed(broken):
    first = "os.setgroups([0, 4])\npaths = []\n" + MOMENT + broken
    answer, _, _, _ = child(12345, 54321, first=first)
    assert answer in ("StillPrivileged", "PermissionError")


@as_root
def test_what_fails_in_a_moment_is_told_afterwards():
    first = MOMENT + "\nlook = lambda: os.listdir('/nonexistent')"
    answer, before, after, _ = child(12345, 54321, first=first)
    assert answer == "FileNotFoundError"
    assert after == before


APART = """
from tpop3d.auth.driver import Account
def look():
    return json.dumps(status()).encode()
def become(uid, gid):
    account = Account(b"x", uid, gid, ["/x"], lock_gid=333)
    return json.loads(apart(account.uid, account.gid, account.lock_gid, look, 0.5) or b"null")
"""


@as_root
def test_apart_a_process_is_the_user_for_good():
    during, before, after, _ = child(12345, 54321, first=APART)
    assert after == before
    assert (during["Uid"], during["Gid"]) == (["12345"] * 4, ["54321"] * 4)
    assert during["Groups"] == ["333", "54321"]


@as_root
@pytest.mark.parametrize(
    "ending",
    ["raise ValueError", "os._exit(0)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 19)"],
)
def test_of_a_process_that_says_nothing_comes_nothing(ending):
    first = APART + f"def look(): {ending}\n"
    answer, before, after, _ = child(12345, 54321, first=first)
    assert answer is None
    assert after == before


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
