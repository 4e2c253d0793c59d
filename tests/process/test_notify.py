"""What the listener tells systemd, word for word: its socket is the test's here."""

import importlib.util
import re
import signal
import socket
import time
from itertools import pairwise

import pytest

import doors
from authkit import tpop3d
from mailsite import IS_ROOT, PATIENCE, poll
from spools import mbox

# The folder of unit files is called systemd, too, and has no daemon.
has_package = importlib.util.find_spec("systemd") and importlib.util.find_spec("systemd.daemon")
pytestmark = pytest.mark.skipif(
    not has_package, reason="systemd-python is not installed in this Python"
)
STATUS = "STATUS=serving {} of 16 connections, {} logged in; {} so far"


class Manager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, path):
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)

    def hear(self):
        """The next message, as its lines."""
        return self._socket.recv(4096).decode().split("\n")

    def has_more(self):
        self._socket.setblocking(False)
        try:
            return bool(self._socket.recv(4096, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self._socket.settimeout(PATIENCE)

    def close(self):
        self._socket.close()


@pytest.fixture
def manager(site, monkeypatch):
    manager = Manager(site.path / "notify")
    monkeypatch.setitem(doors.ENVIRONMENT, "NOTIFY_SOCKET", str(manager.path))
    yield manager
    manager.close()


def one_is_logged_in(door):
    door.process.send_signal(signal.SIGUSR1)
    return STATUS.format(1, 1, 1).partition("=")[2] in door.logs.text()


def microseconds():
    return int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)


def test_each_change_of_state_in_its_order(site, manager):
    site.add("anna", mbox(b"x\n"))
    with doors.standalone(site) as door:
        assert manager.hear() == ["STATUS=starting"]
        assert manager.hear() == ["READY=1", STATUS.format(0, 0, 0)]
        wire = door.connect()
        wire.login("anna")
        poll(lambda: one_is_logged_in(door), "the listener to have heard of the login")
        before = microseconds()
        door.process.send_signal(signal.SIGHUP)
        state, moment = manager.hear()
        assert state == "RELOADING=1"
        # systemd takes a READY=1 for the reload's own only if this is right.
        found = re.fullmatch(r"MONOTONIC_USEC=(\d+)", moment)
        assert before - 1 <= int(found[1]) <= microseconds()
        assert manager.hear() == ["READY=1", STATUS.format(1, 1, 1)]
        # A reload that fails is at an end as well.
        site.configure({"no-such-directive": "yes"})
        door.process.send_signal(signal.SIGHUP)
        assert manager.hear()[0] == "RELOADING=1"
        ready, status = manager.hear()
        assert ready == "READY=1"
        failed, _, serving = status.partition("; ")
        where = re.escape(f"{site.conf}:")
        assert re.fullmatch(rf"STATUS=reload failed: {where}\d+: no-such-directive: .*", failed)
        assert f"STATUS={serving}" == STATUS.format(1, 1, 1)
        # Until there is a good one.
        site.configure({"no-such-directive": None})
        door.process.send_signal(signal.SIGHUP)
        assert manager.hear()[0] == "RELOADING=1"
        assert manager.hear() == ["READY=1", STATUS.format(1, 1, 1)]
        assert wire.ask("QUIT").startswith(b"+OK")
        door.process.send_signal(signal.SIGTERM)
        assert manager.hear() == ["STOPPING=1", "STATUS=stopping"]
        assert door.process.wait(PATIENCE) == 0
    assert not manager.has_more()


def test_it_is_ready_only_when_it_listens(site, manager):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site.configure({"listen-address": f"127.0.0.1:{taken.getsockname()[1]}"})
        done = tpop3d("-f", site.conf)
    assert done.returncode == 1
    assert b"Address already in use" in done.stderr
    assert manager.hear() == ["STATUS=starting"]
    (status,) = manager.hear()
    assert re.fullmatch("STATUS=not started: .*: Address already in use by another .*", status)
    assert not manager.has_more()


def test_why_it_does_not_start(site, manager):
    """systemd keeps it for `systemctl status`."""
    site.configure({"no-such-directive": "x", "nor-this-one": "y"})
    assert tpop3d("-f", site.conf).returncode == 1
    (status,) = manager.hear()
    where = re.escape(f"{site.conf}:")
    assert re.fullmatch(
        rf"STATUS=not started: {where}\d+: no-such-directive: .* \(and 1 more\)", status
    )
    assert not manager.has_more()


# What a listener may find at a reload, and a word of its status.
TROUBLES = {
    "errors": ({"no-such-directive": "x", "nor-this-one": "y"}, r"no-such-directive.*and 1 more"),
    "a file that is not there": (None, "No such file or directory"),
    "an address that cannot be had": ({"listen-address": "192.0.2.1:1"}, "cannot listen on"),
    "no certificate": (
        {"listen-address": None, "tls-certificate": "/nonexistent/\u00fc\u0080.pem"},
        r"/nonexistent/\\xc3\\xbc",
    ),
    "a sandbox that cannot be": ({"gatekeeper-user": "root"}, "must not be root"),
}


@pytest.mark.parametrize("what", TROUBLES)
def test_each_sign_of_life_tells_of_a_reload_that_failed(site, manager, monkeypatch, what):
    monkeypatch.setitem(doors.ENVIRONMENT, "WATCHDOG_USEC", "200000")
    settings, why = TROUBLES[what]
    if what == "a sandbox that cannot be" and not IS_ROOT:
        pytest.skip("only root locks gatekeepers in")
    with doors.standalone(site) as door:
        before = dict(site.settings)
        if settings is None:
            site.conf.unlink()
        else:
            settings = settings | {
                "listen-address": settings.get("listen-address") or before["listen-address"]
            }
            site.configure(settings)
        door.process.send_signal(signal.SIGHUP)
        failed = f"STATUS=reload failed: .*{why}.*; serving 0 of 16 connections, .*"

        def hears(state):
            def heard():
                first, *rest = manager.hear()
                return first == state and re.fullmatch(failed, rest[0])

            return heard

        poll(hears("READY=1"), "the end of the reload")
        poll(hears("WATCHDOG=1"), "a sign of life")
        site.configure(before | {key: before.get(key) for key in settings or ()})
        door.process.send_signal(signal.SIGHUP)
        poll(lambda: manager.hear() == ["WATCHDOG=1", STATUS.format(0, 0, 0)], "a good one")


def test_signs_of_life(site, manager, monkeypatch):
    monkeypatch.setitem(doors.ENVIRONMENT, "WATCHDOG_USEC", "200000")
    with doors.standalone(site) as door:
        assert manager.hear() == ["STATUS=starting"]
        assert manager.hear()[0] == "READY=1"
        moments = []
        for _ in range(6):
            assert manager.hear() == ["WATCHDOG=1", STATUS.format(0, 0, 0)]
            moments.append(time.monotonic())
        # Twice in the time that systemd waits; a busy machine may be late now and then.
        assert min(b - a for a, b in pairwise(moments)) < 0.15
        assert door.connect().line().startswith(b"+OK")
        poll(lambda: manager.hear() == ["WATCHDOG=1", STATUS.format(1, 0, 1)], "the new status")


def test_a_watchdog_of_another_process_is_not_fed(site, manager, monkeypatch):
    monkeypatch.setitem(doors.ENVIRONMENT, "WATCHDOG_USEC", "1000")
    monkeypatch.setitem(doors.ENVIRONMENT, "WATCHDOG_PID", "1")
    with doors.standalone(site) as door:
        assert manager.hear() == ["STATUS=starting"]
        assert manager.hear()[0] == "READY=1"
        assert door.connect().line().startswith(b"+OK")
        door.process.send_signal(signal.SIGTERM)
        assert manager.hear()[0] == "STOPPING=1"
