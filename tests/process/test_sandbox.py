"""Where gatekeepers are locked in: without it the server does not start."""

import os
import pwd
import shutil
import stat

import pytest

import doors
from authkit import config_of, converse, tpop3d
from mailsite import IS_ROOT, MAIL_USER, poll
from spools import mbox
from test_listener import greeted_or_none
from test_listener_signals import free_port
from tpop3d.privsep.sandbox import prepare_sandbox
from tpop3d.system.privileges import Sandbox
from tpop3d.system.refusal import Refusal

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root can lock a process in")

# Names of users whom no gatekeeper runs as.
NOT_TO_BE = ["no-such-user-here", "root"]
SESSION = b"USER anna\r\nPASS secret\r\nQUIT\r\n"


def check_complaint(name, text):
    assert text.count("\n") == 1
    assert name in text
    if name == "root":
        assert "gatekeeper-user: root must not be root" in text
    else:
        # How to make it: by hand, or with the file that comes with the program.
        assert "useradd --system " in text
        assert text.rstrip().endswith(f" {name}")
        assert "systemd-sysusers" in text
        assert "sysusers.d/tpop3d.conf" in text


@pytest.mark.parametrize("name", NOT_TO_BE)
def test_without_its_user_no_session_begins(site, name):
    site.add("anna", mbox(b"x\n"))
    site.configure({"gatekeeper-user": name})
    ended = converse(site.conf, SESSION)
    assert ended.status == 1
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith(b"-ERR [SYS/PERM] ")
    assert name.encode() not in ended.lines[0]
    check_complaint(name, ended.stderr.decode())


@pytest.mark.parametrize("name", NOT_TO_BE)
def test_without_its_user_no_listener_starts(site, name):
    site.configure({"gatekeeper-user": name, "listen-address": f"127.0.0.1:{free_port()}"})
    done = tpop3d("-f", site.conf)
    assert done.returncode == 1
    check_complaint(name, done.stderr.decode())


@pytest.fixture
def config(tmp_path):
    tmp_path.chmod(0o755)
    return config_of(state_directory=str(tmp_path / "state"), gatekeeper_user="nobody")


def empty(config):
    return os.path.join(config.state_directory, "empty")


def test_the_directory_is_made_and_found_again(config):
    for _ in range(2):
        sandbox = prepare_sandbox(config)
        assert isinstance(sandbox, Sandbox)
        assert (sandbox.uid, sandbox.directory) == (pwd.getpwnam("nobody").pw_uid, empty(config))
    status = os.stat(empty(config))
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o555)
    assert os.listdir(empty(config)) == []


def put_a_file_in(directory):
    with open(os.path.join(directory, "file"), "w"):
        pass


def put_a_link_in_its_place(directory):
    os.rename(directory, directory + "-elsewhere")
    os.symlink(directory + "-elsewhere", directory)


SPOILED = {
    "a file in it": (put_a_file_in, "must be empty"),
    "a directory in it": (lambda path: os.mkdir(os.path.join(path, "bin")), "must be empty"),
    "somebody else's": (lambda path: os.chown(path, MAIL_USER.pw_uid, 0), "only root can write to"),
    "anybody may write": (lambda path: os.chmod(path, 0o777), "only root can write to"),
    "a group may write": (lambda path: os.chmod(path, 0o775), "only root can write to"),
    "a link": (put_a_link_in_its_place, "must be a directory"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_directory_that_is_not_empty_and_roots_is_refused(config, how):
    spoil, complaint = SPOILED[how]
    assert isinstance(prepare_sandbox(config), Sandbox)
    spoil(empty(config))
    refused = prepare_sandbox(config)
    assert isinstance(refused, Refusal)
    assert complaint in refused.reason
    assert refused.reason.startswith(empty(config))


def test_in_a_spoiled_directory_no_session_begins(site):
    with doors.inetd(site) as wire:
        assert wire.ask("QUIT").startswith(b"+OK")
    put_a_file_in(site.state / "empty")
    ended = converse(site.conf, SESSION)
    assert ended.status == 1
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith(b"-ERR [SYS/PERM] ")
    assert b"empty: must be empty" in ended.stderr


def cleared(directory):
    """Is it removed? Whoever makes it again may come between."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def test_a_state_directory_that_is_cleared_is_made_again(site):
    """As by an administrator who wants no index, or no journal, to be there any more."""
    site.add("anna", mbox(b"x\n"))
    settings = {"max-children": 1, "gatekeeper-connections": 1}
    with doors.standalone(site, settings=settings) as door:
        for _ in range(2):
            poll(lambda: cleared(site.state), "a moment in which nobody makes it again")
            # The one that waits already is locked in, and serves one connection.
            for _ in range(3):
                wire = poll(lambda: greeted_or_none(door), "a place")
                wire.send(SESSION)
                assert wire.reader.read().endswith(b"+OK goodbye\r\n")
        assert "ended with status" not in door.logs.text()
        assert stat.S_IMODE((site.state / "empty").stat().st_mode) == 0o555
        assert stat.S_IMODE(site.state.stat().st_mode) == 0o711
