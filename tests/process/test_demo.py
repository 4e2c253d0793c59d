"""`tpop3d --demo`: what it prints is true, and it leaves nothing behind."""

import re
import shutil
import signal

import pytest

import doors
from authkit import tpop3d
from mailsite import PATIENCE, open_directory


@pytest.fixture
def directory():
    path = open_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def demo(directory):
    with doors.demo(directory) as door:
        yield door


def accounts(door):
    """The users, passwords and message counts the demo prints."""
    lines = re.findall(r"^  (\w+) {2,}(\w[\w ]*?) {2,}(\d+|no) messages$", door.logs.text(), re.M)
    assert lines
    return [(user, password, 0 if n == "no" else int(n)) for user, password, n in lines]


def test_every_account_it_names_can_be_used(demo):
    for user, password, count in accounts(demo):
        client = demo.poplib()
        client.user(user)
        client.pass_(password)
        assert client.stat()[0] == count
        for n in range(1, count + 1):
            assert client.retr(n)[2] == int(client.list(n).split()[2])
        client.quit()


def test_mail_can_be_deleted(demo):
    user, password, count = accounts(demo)[0]
    for left in (count, count - 1):
        client = demo.poplib()
        client.user(user)
        client.pass_(password)
        assert client.stat()[0] == left
        client.dele(1)
        client.quit()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_sessions_open_and_removes_the_mail(demo, directory, number):
    user, password, _ = accounts(demo)[0]
    client = demo.poplib()
    client.user(user)
    client.pass_(password)
    demo.process.send_signal(number)
    assert demo.process.wait(PATIENCE) == 0
    assert [path.name for path in directory.iterdir()] == ["demo"]


REFUSED = {
    "--tls": "no --tls", "-f /etc/tpop3d.conf": "no -f", "--inetd": "no --inetd", "-d": "no -d",
    "--detach": "no --detach", "-p /run/demo.pid": "no -p", "--check-config": "do not go together",
    "--recover": "do not go together", "--test-login anna": "do not go together",
    "--inspect /var/mail/anna": "do not go together",
}  # fmt: skip


@pytest.mark.parametrize("options", REFUSED)
@pytest.mark.parametrize("first", [True, False])
def test_what_it_would_not_do_is_an_error(options, first):
    """It has a configuration, a port and mail of its own."""
    words = [*options.split(), "--demo"] if first else ["--demo", "0", *options.split()]
    done = tpop3d(*words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert REFUSED[options] in done.stderr.decode().splitlines()[-1]
    assert "--demo" in done.stderr.decode().splitlines()[-1]
