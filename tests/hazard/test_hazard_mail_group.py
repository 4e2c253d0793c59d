"""The group mail, in effect only while a dotlock is made or removed.

Whoever has it can remove and put in place what is in /var/mail, whoever it belongs to.
"""

import os
import re
import stat

import pytest

import doors
import tpop3d.mailspool.expunge as expunge_module
from authkit import tpop3d
from housekit import GID, OTHER, UID, House, as_root
from mailsite import need
from spools import terms
from tpop3d.mailspool import state_directory as states
from tpop3d.mailspool.spool import open_spool

pytestmark = as_root

MAIL = 2003  # the group, which needs no name
OURS = {str(GID)}
DELE = b"DELE 1\r\nQUIT\r\n"


@pytest.fixture
def house(site):
    """anna's mailbox is in a /var/mail as Debian has it, and a dotlock is required."""
    house = House(site)
    house.spools = site.path / "mail"
    house.spools.mkdir()
    house.spool = house.spools / "anna"
    house.second.rename(house.spool)
    os.chown(house.spool, UID, MAIL)
    house.spool.chmod(0o660)
    allow(house, 0o2775)
    site.configure(
        {
            "auth-passwd-mailspool-dir": house.spools,
            "auth-passwd-mail-group": MAIL,
            "mailspool-dotfile-locking": "require",
        }
    )
    return house


def allow(house, mode):
    """The mode of the directory of all."""
    os.chown(house.spools, 0, MAIL)
    house.spools.chmod(mode)


def messages(house):
    return house.spool.read_bytes().count(b"From ")


def place_of(house):
    return house.site.state / states.name_of(str(house.spool), UID)


@pytest.mark.parametrize("mode", [0o2775, 0o775, 0o2771, 0o3775])
def test_it_is_asleep_while_the_session_lasts(house, mode):
    allow(house, mode)
    with house.conversation() as wire:
        seen = [house.status()]
        assert wire.ask_long("RETR 1")[0].startswith(b"+OK")
        assert wire.ask("DELE 1").startswith(b"+OK")
        seen.append(house.status())
        for status in seen:
            assert status["Gid"] == [str(GID), str(GID), str(MAIL), str(GID)]
            assert set(status["Groups"]) == OURS
        assert wire.ask("QUIT").startswith(b"+OK")
    assert messages(house) == 1
    assert os.listdir(house.spools) == ["anna"]


def test_without_it_there_is_no_dotlock(house):
    """Or the tests here would show nothing."""
    house.site.configure({"auth-passwd-mail-group": None})
    ended = house.session(then=DELE)
    assert ended.lines[2].startswith(b"-ERR [SYS/")
    assert b"anna.lock" in ended.stderr


def test_it_is_awake_for_dotlocks_alone(house):
    """What is done to files while it is, as the kernel is asked."""
    trace = house.site.path / "trace"
    wrapper = f"{need('strace')} -f -qq -e trace=%file,setresgid,setregid -o {trace}"
    assert house.session(wrapper=wrapper, then=DELE).lines[-1].startswith(b"+OK")
    lines = trace.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if f"setresgid({GID}, {GID}, {MAIL})" in line)
    awake, done, wakings = False, [], 0
    for line in lines[start + 1 :]:
        if "setresgid(" in line and "-1" in line:
            awake = f", {MAIL}," in line
            wakings += awake
        elif awake:
            done.append(line)
    assert not awake
    assert wakings == 4  # made and removed, for the scan and for the expunge
    assert any("anna.lock" in line for line in done)
    named = {path for line in done for path in re.findall('"([^"]*)"', line) if path}
    known = (str(house.spools), "/proc/")
    assert {path for path in named if not path.startswith(known)} == set()
    assert str(house.spool) not in named
    assert messages(house) == 1


@pytest.mark.parametrize("mode", [0o770, 0o2770])
def test_a_directory_that_it_alone_may_search(house, mode):
    """Every look at the mailspool takes it: it is in effect to the end."""
    allow(house, mode)
    with house.conversation() as wire:
        status = house.status()
        assert set(status["Groups"]) == OURS | {str(MAIL)}
        assert status["Gid"] == [str(GID)] * 4
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
    assert messages(house) == 1
    assert os.listdir(house.spools) == ["anna"]
    got = house.attempt()
    assert got.of("mailbox") == [f"{house.spool} (chosen)"]
    assert got.status == 0


@pytest.mark.parametrize("mode", [0o2775, 0o770])
def test_what_the_session_makes_is_its_users_own_groups(house, mode):
    allow(house, mode)
    house.spool.write_bytes(OTHER + b"x" * (1 << 20) + b"\n\n")  # worth an index
    with house.conversation() as wire:
        wire.ask_long("UIDL")
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
    place = place_of(house)
    made = {one.name: one.stat() for one in place.iterdir()}
    assert {"lock", "index"} <= set(made)
    assert {(one.st_uid, one.st_gid) for one in made.values()} == {(UID, GID)}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_the_listener_does_so_too(house):
    logs = doors.Logs(house.site.path / "stderr")

    def command(port):
        house.site.configure({"listen-address": f"127.0.0.1:{port}"})
        return [*map(str, house.command()), "-d", "-f", str(house.site.conf)]

    with doors.door_of(*doors.listening(command, logs, "listening on"), logs) as door:
        client = door.connect()
        client.login("anna")
        assert house.status()["Gid"] == [str(GID), str(GID), str(MAIL), str(GID)]
        assert client.ask("DELE 1").startswith(b"+OK")
        assert client.ask("QUIT").startswith(b"+OK")
    assert messages(house) == 1


def test_a_stale_dotlock_is_removed_with_it(house):
    lock = house.spools / "anna.lock"
    lock.write_bytes(b"0\n")
    os.utime(lock, (1, 1))
    assert house.session(then=DELE).lines[-1].startswith(b"+OK")
    assert os.listdir(house.spools) == ["anna"]


def test_an_interrupted_expunge_is_finished_with_it(house, monkeypatch):
    """`--recover` knows the group from the state directory, whoever made that."""
    assert house.session(then=b"QUIT\r\n").lines[-1].startswith(b"+OK")
    place = place_of(house)
    assert place.stat().st_gid == MAIL
    with monkeypatch.context() as patch:

        def fails(*arguments):
            raise OSError(5, "made up")

        patch.setattr(expunge_module, "carry_out", fails)
        spool = open_spool(str(house.spool), UID, str(place), terms())
        assert spool.expunge(bytearray([1, 0])) is not None
        spool.close()
    for one in place.iterdir():
        house.give(one)
    assert (place / "journal").exists()
    done = tpop3d("--recover", "-f", house.site.conf)
    assert (done.returncode, messages(house)) == (0, 1), done.stderr
    assert os.listdir(house.spools) == ["anna"]


def test_a_state_directory_of_another_group_is_given_to_it(house):
    house.site.configure({"auth-passwd-mail-group": None, "mailspool-dotfile-locking": "no"})
    house.session()
    assert place_of(house).stat().st_gid == GID
    house.site.configure({"auth-passwd-mail-group": MAIL})
    house.session()
    assert place_of(house).stat().st_gid == MAIL


def test_a_user_whose_group_is_roots_has_it_for_all(house):
    """As before: nobody becomes a group of 0."""
    passwd = house.site.path / "etc-passwd"
    passwd.write_text(passwd.read_text().replace(f":{UID}:{GID}:", f":{UID}:0:"))
    with house.conversation() as wire:
        assert house.status()["Gid"] == [str(MAIL)] * 4
        assert set(house.status()["Groups"]) == {str(MAIL)}
        assert wire.ask("QUIT").startswith(b"+OK")


def test_it_is_said_of_a_login(house):
    account = house.attempt().of("account")[0]
    assert account.startswith(f"anna: uid {UID} ")
    assert f", gid {GID} (" in account
    assert f", for dotlocks gid {MAIL} (" in account
