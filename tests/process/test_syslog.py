"""The log as a syslog daemon receives it."""

import socket
import subprocess

import pytest

import doors
from mailsite import IS_ROOT, PATIENCE, need
from spools import mbox

# /dev/log is a fixed path: the server gets a /dev of its own, with the test's socket in it.
OWN_DEV = """
mount -t tmpfs tpop3d-test /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
ln -s "$1" /dev/log
shift
exec "$@"
"""
MAIL, NOTICE, INFO, DEBUG = 2 << 3, 5, 6, 7


@pytest.fixture
def daemon(site, monkeypatch):
    """A datagram socket that stands where syslogd listens."""
    if not IS_ROOT:
        pytest.skip("only root can give the server a /dev of its own")
    unshare = [need("unshare"), "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    path = site.path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(PATIENCE)
        wrapped = [*unshare, "sh", "-ec", OWN_DEV, "sh", str(path), *doors.SERVER]
        monkeypatch.setattr(doors, "SERVER", wrapped)
        site.configure({"log-stderr": "no"})
        yield receiver


def record(receiver):
    """Priority and text of the next message."""
    priority, _, rest = receiver.recv(8192).decode().removeprefix("<").partition(">")
    return int(priority), rest.partition("tpop3d[")[2].partition("]: ")[2]


def test_one_record_a_login_and_one_a_session(site, daemon):
    site.add("anna", mbox(b"Subject: x\n\ntext\n"))
    with doors.inetd(site) as wire:
        wire.login("anna")
        wire.ask("QUIT")
        assert wire.logs.text() == ""
    priority, text = record(daemon)
    assert priority == MAIL | INFO
    assert text.startswith("login rip=unix user=anna method=USER driver=flatfile")
    priority, text = record(daemon)
    assert priority == MAIL | NOTICE
    assert text.startswith("session rip=unix user=anna")


def test_a_refused_login_and_another_facility(site, daemon):
    site.configure({"log-facility": "local3", "auth-failure-delay-seconds": 0})
    with doors.inetd(site) as wire:
        wire.line()
        wire.ask("USER ev\0il")
        wire.ask("USER evil=1\\x user=anna")
        wire.ask("PASS geheim")
        wire.ask("QUIT")
    priority, text = record(daemon)
    assert priority == 19 << 3 | NOTICE
    assert r"rip=unix user=evil=1\x5cx\x20user=anna method=" in text
    assert "geheim" not in text


def test_a_level_that_is_not_wanted_is_not_sent(site, daemon):
    site.add("anna")
    site.configure({"log-level": "notice"})
    with doors.inetd(site) as wire:
        wire.login("anna")
        wire.ask("QUIT")
    assert record(daemon)[1].startswith("session ")
