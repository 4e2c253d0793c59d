"""Which mailbox is served: what cannot be looked at is not missing, and root's eyes decide nothing.

The user's first mailbox is in her home directory. A server that cannot see it, and serves the
second without a word, lets her client fetch everything again, or forget what it has.
"""

import os
import shlex
import stat

import pytest

from authkit import converse, foreign_driver
from housekit import GID, OTHER, SQUASHED, UID, House, as_root
from mailsite import ENVIRONMENT, MAIL_USER, as_ordinary_user, need
from spools import mbox
from tpop3d.mailspool.failures import named_by
from trying import DRIVER, attempt

pytestmark = as_root

MOUNTED = "is the file system mounted?"
SYS_TEMP, SYS_PERM = b"-ERR [SYS/TEMP] ", b"-ERR [SYS/PERM] "


@pytest.fixture
def house(site):
    return House(site)


def count(ended):
    """How many messages the session has, by STAT."""
    assert ended.lines[2].startswith(b"+OK"), ended.stderr
    return int(ended.lines[3].split()[1])


# Who sees it


def test_a_home_that_root_may_not_search_is_served(house):
    """As on NFS with root_squash."""
    assert count(house.session()) == 1
    ended = house.session(wrapper=SQUASHED)
    assert count(ended) == 1, ended.stderr
    got = house.attempt(wrapper=SQUASHED)
    assert got.of("mailbox") == [f"{house.mailbox} (chosen)", f"{house.second} (exists)"]
    assert got.status == 0


def test_a_home_on_a_file_system_of_the_users_own_is_served(house):
    """FUSE without allow_other: root may not even look at the directory."""
    need("bindfs")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no FUSE here")
    backing = house.site.path / "backing"
    house.home.rename(backing)
    house.home.mkdir()
    house.give(house.home)
    log, node = house.site.path / "bindfs.log", house.site.path / "fuse"
    # Its own node, since fuse(8)'s may be root's alone; it is in /dev in the namespace only.
    mount = f"""
        mknod -m 666 {node} c 10 229 && mount --bind {node} /dev/fuse
        setpriv --reuid {UID} --regid {GID} --clear-groups \\
            bindfs -f --no-allow-other {backing} {house.home} </dev/null >{log} 2>&1 &
        bindfs=$!
        until grep -q " {house.home} fuse" /proc/self/mounts; do
            kill -0 $bindfs || exit 99
            sleep 0.01
        done
        ls {house.home} 2>/dev/null && exit 98
        "$@"
        status=$?
        kill $bindfs
        wait $bindfs
        exit $status"""
    ended = house.session(mount)
    assert count(ended) == 1, ended.stderr + log.read_bytes()
    node.unlink()
    assert house.attempt(mount).of("mailbox")[0] == f"{house.mailbox} (chosen)"


def test_the_place_of_its_lock_is_found_with_the_users_eyes(house):
    """A link that root cannot follow would make two places of one mailspool, and two locks."""
    (house.home / "real").mkdir()
    house.mailbox.rename(house.home / "real" / "Mailbox")
    (house.home / "mail").symlink_to("real")
    house.give(house.home / "real", house.home / "mail")
    house.site.configure({"mailbox": "$(home)/mail/Mailbox"})
    assert count(house.session(wrapper=SQUASHED)) == 1
    assert count(house.session()) == 1
    places = [one.name for one in house.site.state.iterdir() if one.name != "empty"]
    assert len(places) == 1
    assert places[0].endswith("anna%2Freal%2FMailbox")


# Trouble


def not_mounted(house):
    house.home.rename(house.site.path / "elsewhere")


def linked_to_nowhere(house):
    not_mounted(house)
    house.home.symlink_to("/nonexistent/disk/anna")


def in_a_loop(house):
    not_mounted(house)
    house.home.symlink_to(house.home)


def somebody_elses(house):
    os.chown(house.home, UID + 1, UID + 1)


def shut(house):
    house.home.parent.chmod(0o700)


def a_file(house):
    not_mounted(house)
    house.home.touch()


def maildir_linked_to_nowhere(house):
    (house.home / "mail").symlink_to("/nonexistent/disk")
    house.site.configure({"mailbox": f"$(home)/mail/x/Mailbox {house.site.spools}/$(user)"})


def too_long(house):
    house.site.configure({"mailbox": f"$(home)/{'x' * 256} {house.site.spools}/$(user)"})


def nothing(house):
    pass


DEAD = """
import ctypes, os, sys
fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
call = ctypes.CDLL(None, use_errno=True).mount
sys.exit(call(b"dead", sys.argv[1].encode(), b"fuse", 0, options) and 97)
"""
# How it is made, what is mounted over {home} or its parent {above}, and what the log says.
TROUBLE = {
    "its file system is not mounted": (not_mounted, "", f"home/anna: .*{MOUNTED}"),
    "ProtectHome=tmpfs": (nothing, "mount -t tmpfs tmpfs {above}", f"home/anna: .*{MOUNTED}"),
    "ProtectHome=yes": (
        nothing,
        "mkdir -p -m 000 {site}/inaccessible && mount --bind {site}/inaccessible {above}",
        "Permission denied",
    ),
    "a link that leads nowhere": (linked_to_nowhere, "", MOUNTED),
    "a link behind it that leads nowhere": (
        maildir_linked_to_nowhere,
        "",
        f"home/anna/mail: .*{MOUNTED}",
    ),
    "a loop of links": (in_a_loop, "", "Too many levels of symbolic links"),
    "somebody else's": (somebody_elses, "", "Permission denied"),
    "in a directory of root's alone": (shut, "", "Permission denied"),
    "a file": (a_file, "", "home/anna: not a directory"),
    "a name that is too long": (too_long, "", "File name too long"),
    "a file system whose server has died": (
        nothing,
        "python3 -c {dead} {home}",
        "Transport endpoint is not connected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TROUBLE)
def test_trouble_is_not_absence(house, what):
    make, script, why = TROUBLE[what]
    if "{dead}" in script and not os.path.exists("/dev/fuse"):
        pytest.skip("there is no FUSE here")
    make(house)
    places = {"home": house.home, "above": house.home.parent, "site": house.site.path}
    script = script.format(dead=shlex.quote(DEAD), **places) or "true"
    ended = house.session(script)
    assert len(ended.lines) == 3
    assert ended.lines[2].startswith(SYS_TEMP), (ended.lines, ended.stderr)
    refused = [line for line in ended.stderr.decode().splitlines() if "maildrop refused" in line]
    assert len(refused) == 1
    assert "user=anna" in refused[0]
    pattern = why.partition(".*")
    assert pattern[0] in refused[0]
    assert pattern[2] in refused[0]
    assert house.second.read_bytes() == OTHER
    got = house.attempt(script)
    assert got.status == 5
    first, second = got.of("mailbox")
    assert "(cannot be looked at: " in first
    assert pattern[2] in first
    assert second == f"{house.second} (exists)"
    assert got.of("maildrop")[0].startswith("refused: ")


HANGING = (
    DEAD.replace("sys.exit(", "failed = (").replace("| os.O_CLOEXEC", "")
    + """
if not failed and not os.fork():
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    import time
    while os.path.exists(sys.argv[2]):
        time.sleep(0.1)  # nobody reads what the kernel asks
    os._exit(0)
sys.exit(failed)
"""
)


def test_what_is_behind_the_mailbox_that_is_chosen_is_not_looked_at(house):
    """A dead file server is no matter to those whose mail is elsewhere."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no FUSE here")
    house.site.configure({"mailbox": f"{house.site.spools}/$(user) $(home)/Mailbox"})
    running = house.site.path / "running"
    running.touch()
    try:
        script = f"python3 -c {shlex.quote(HANGING)} {house.home} {running}"
        assert count(house.session(script)) == 2
    finally:
        running.unlink()


# Absence


def without_a_mailbox(house):
    house.mailbox.unlink()


def without_a_directory(house):
    house.site.configure({"mailbox": f"$(home)/mail/Mailbox {house.site.spools}/$(user)"})


def with_a_file_in_place_of_a_directory(house):
    without_a_directory(house)
    (house.home / "mail").touch()


def without_a_home(house):
    house.move("/nonexistent")


def without_a_home_by_an_old_habit(house):
    house.move("/dev/null")


ABSENT = [
    without_a_mailbox,
    without_a_directory,
    with_a_file_in_place_of_a_directory,
    without_a_home,
    without_a_home_by_an_old_habit,
]


@pytest.mark.parametrize("make", ABSENT)
def test_what_is_not_there_is_the_next_mailboxs_turn(house, make):
    make(house)
    assert count(house.session()) == 2
    got = house.attempt()
    first, second = got.of("mailbox")
    assert first.endswith(" (missing)")
    assert second == f"{house.second} (chosen)"


# The fixed part of a template


@pytest.mark.parametrize("tail", ["$(user)", "x$(user)", "$(user[0])/$(user)", "$(user)/mbox"])
def test_the_directory_of_all_must_be_there_and_those_behind_it_need_not(site, tail):
    directory = site.path / "disk" / "mail"
    site.passwd.write_text("anna:{plaintext}secret\n")
    site.configure({"auth-flatfile-mailbox": f"{directory}/{tail}"})
    ended = session(site)
    assert ended.lines[2].startswith(SYS_TEMP)
    assert f"{directory}: No such file or directory; {MOUNTED}" in ended.stderr.decode()
    directory.mkdir(parents=True)
    assert count(session(site)) == 0


def test_a_mount_point_that_nobody_may_search_is_trouble(site):
    """What the man page says to do with one."""
    directory = site.path / "disk"
    directory.mkdir()
    directory.chmod(0)
    site.passwd.write_text("anna:{plaintext}secret\n")
    site.configure({"auth-flatfile-mailbox": f"{directory}/$(user)"})
    assert session(site).lines[2].startswith(SYS_TEMP)


def session(site, user="anna", env=None):
    script = b"USER %s\r\nPASS secret\r\nSTAT\r\nQUIT\r\n" % user.encode()
    return converse(site.conf, script, env=env)


# Names


LOCKS = ["anna.lock", "anna.lock.4711", "a.lock.b", ".lock", "anna.lock.lock"]


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("place", ["alone", "first", "second"])
def test_a_mailbox_named_like_a_lock_is_refused(site, name, place):
    others = [f"{site.spools}/anna"]
    mine = f"{site.spools}/{name}"
    mailboxes = {"alone": [mine], "first": [mine, *others], "second": [*others, mine]}[place]
    site.add("anna", mbox(b"Subject: one\n\n1\n"))
    site.add(name, mbox(b"Subject: one\n\n1\n"))
    uid, gid = MAIL_USER.pw_uid, MAIL_USER.pw_gid
    code = f"return Verdict.yes(Account(b'anna', {uid}, {gid}, {mailboxes}))"
    env = ENVIRONMENT | foreign_driver(site.path, "odd", DRIVER.format(code, ""))
    site.configure({"auth-flatfile-enable": "no", "auth-odd-enable": "yes"})
    ended = session(site, env=env)
    assert ended.lines[2].startswith(SYS_PERM)
    assert len(ended.lines) == 3
    log = ended.stderr.decode()
    assert f"{mine}: named like the lock of another mailbox" in log
    assert "login failed" not in log  # a right password is no guess
    assert [one.name for one in site.state.iterdir()] == ["empty"]
    got = attempt(site, env=env)
    assert got.status == 5
    assert f"{mine}: named like the lock of another mailbox" in got.of("maildrop")[0]


@pytest.mark.parametrize("name", ["lock", "anna.locks", "anna.LOCK", "lock.anna", "a.locked.b"])
def test_other_names_are_as_good_as_any(site, name):
    site.add(name, mbox(b"Subject: one\n\n1\n"))
    assert count(session(site, name)) == 1


KINDS = {
    "a symbolic link, which is not followed": lambda path: path.symlink_to("/etc/passwd"),
    "a directory, not a file": lambda path: path.mkdir(),
    "a FIFO, not a regular file": os.mkfifo,
    "a socket, not a regular file": lambda path: os.mknod(path, stat.S_IFSOCK),
    "a character device, not a regular file": lambda path: os.mknod(
        path, stat.S_IFCHR, os.makedev(1, 3)
    ),
    "a block device, not a regular file": lambda path: os.mknod(
        path, stat.S_IFBLK, os.makedev(7, 0)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_called_by_its_name(site, kind):
    site.add("anna")
    site.spool("anna").unlink()
    KINDS[kind](site.spool("anna"))
    os.chown(site.spool("anna"), MAIL_USER.pw_uid, MAIL_USER.pw_gid, follow_symlinks=False)
    ended = session(site)
    assert ended.lines[2].startswith(SYS_PERM)
    assert f"{site.spool('anna')}: {kind}" in ended.stderr.decode()
    assert attempt(site).of("maildrop")[0].startswith(f"refused: {site.spool('anna')}: {kind}")
    assert named_by(os.lstat(site.spool("anna")).st_mode) == kind


def test_the_second_mailbox_is_hers_where_the_first_is_a_link_of_hers(house):
    """A link exists, wherever it leads; it is not followed, and not passed over."""
    house.mailbox.unlink()
    house.mailbox.symlink_to("nowhere")
    ended = house.session()
    assert ended.lines[2].startswith(SYS_PERM)
    assert b"a symbolic link, which is not followed" in ended.stderr


def test_an_ordinary_user_has_no_eyes_but_its_own(house):
    """Where the server is not root, it serves nobody but its own user."""
    site = house.site
    site.passwd.write_text("anna:{plaintext}secret\n")
    site.configure(
        {
            "auth-passwd-enable": "no",
            "auth-flatfile-enable": "yes",
            "auth-flatfile-mail-user": UID,
            "auth-flatfile-mail-group": UID,  # the process has this one, whatever is her own
            "auth-flatfile-mailbox": f"$(home)/Mailbox {site.spools}/$(user)",
        }
    )
    for path in (site.passwd, site.conf, site.state):
        os.chown(path, UID, GID)
    command = as_ordinary_user("tpop3d.doors.per_connection", UID, "--inetd")
    command = [*house.command()[:-3], *command]  # in place of the server
    script = b"USER anna\r\nPASS secret\r\nSTAT\r\nQUIT\r\n"
    assert count(converse(site.conf, script, command=command)) == 1
    house.home.chmod(0)
    ended = converse(site.conf, script, command=command)
    assert ended.lines[2].startswith(SYS_TEMP)
    assert f"{house.mailbox}: Permission denied" in ended.stderr.decode()
