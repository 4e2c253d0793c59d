"""A syslogd that does not read, is started again, or is not there; a stderr that nobody reads."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

import doors
from mailsite import CHECKOUT, ENVIRONMENT, IS_ROOT, PATIENCE, end, need, poll
from spools import mbox
from test_syslog import OWN_DEV
from tpop3d.system import outlets

UNPACKED = CHECKOUT / ".unpacked/rsyslog"
CONFIGURATION = """
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="{0}/log" RateLimit.Interval="0")
*.* action(type="omfile" file="{0}/messages" template="RSYSLOG_TraditionalFileFormat")
"""
LOGINS = 40


class Syslogd:
    """A real rsyslogd that listens in a site's directory."""

    def __init__(self, site):
        self.path = site.path
        self.messages = site.path / "messages"
        self.messages.touch()
        (site.path / "rsyslog.conf").write_text(CONFIGURATION.format(site.path))
        self.process = None

    def start(self):
        (modules,) = UNPACKED.glob("usr/lib/*/rsyslog")
        files = ["-f", self.path / "rsyslog.conf", "-i", self.path / "rsyslog.pid"]
        command = [UNPACKED / "usr/sbin/rsyslogd", "-n", "-C", "-M", modules, *files]
        self.process = subprocess.Popen(command, cwd="/")
        poll((self.path / "log").exists, "rsyslogd to listen")

    def stop(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            end(self.process)
        (self.path / "log").unlink(missing_ok=True)

    def wait_for(self, pattern):
        """All that is found of a regular expression, once there is any."""
        return poll(lambda: re.findall(pattern, self.messages.read_text()), pattern)


@pytest.fixture
def syslogd(site):
    if not IS_ROOT or not UNPACKED.is_dir():
        pytest.skip("rsyslog is not unpacked, or this is not root")
    daemon = Syslogd(site)
    daemon.start()
    yield daemon
    daemon.stop()


@contextmanager
def served(site, command=(), **streams):
    """A listener with a /dev of its own, where the site's `log` is the log."""
    if not IS_ROOT:
        pytest.skip("only root can give the server a /dev of its own")
    unshare = [need("unshare"), "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    port = doors.free_port()
    site.configure({"listen-address": f"127.0.0.1:{port}", "auth-failure-delay-seconds": 0})
    wrapped = [*unshare, "sh", "-ec", OWN_DEV, "sh", site.path / "log", *doors.SERVER]
    process = subprocess.Popen(
        [*wrapped, "-f", site.conf], stdin=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/", **streams
    )

    def answers():
        assert process.poll() is None
        with socket.socket() as probe:
            return not probe.connect_ex(("127.0.0.1", port))

    try:
        poll(answers, "the listener")
        with doors.door_of(process, port, None) as door:
            yield door
    finally:
        end(process)


def log_in(door, user="anna"):
    """One session; returns the seconds that it took."""
    began = time.monotonic()
    wire = door.connect()
    wire.login(user)
    assert wire.ask("QUIT").startswith(b"+OK")
    wire.close()
    return time.monotonic() - began


def most_wait(times):
    """Have most of these logins waited for a line? Some may have taken as long for other reasons,
    on a machine that has other work."""
    times = sorted(times)
    return times[len(times) // 4] >= outlets.PATIENCE


def test_a_syslogd_that_is_stopped_costs_lines_and_nobody_a_session(site, syslogd):
    site.add("anna", mbox(b"Subject: x\n\ntext\n"))
    site.configure({"log-stderr": "no", "max-children": 200, "max-children-per-source": 0})
    with served(site) as door:
        log_in(door)
        (tag,) = syslogd.wait_for(r"\w{3} [ \d]\d [\d:]{8} \S+ (tpop3d\[\d+\]): login .*user=anna")
        assert tag != f"tpop3d[{door.process.pid}]"  # the session's own
        syslogd.wait_for("session .*user=anna")
        syslogd.process.send_signal(signal.SIGSTOP)
        assert not most_wait(log_in(door) for _ in range(LOGINS))
        syslogd.process.send_signal(signal.SIGCONT)
        # What was in the socket, too, is there now.
        poll(
            lambda: log_in(door) and re.search("lines were lost", syslogd.messages.read_text()),
            "the number of those that are lost",
        )
        (lost,) = syslogd.wait_for(r": (\d+) lines were lost: the log was not read")
    syslogd.wait_for(r"\]: stopped")
    lines = re.findall(r"\]: (?:login|session) .*user=anna", syslogd.messages.read_text())
    logins = sum("login" in line for line in lines)
    assert int(lost) > LOGINS
    assert len(lines) + int(lost) >= 2 * LOGINS + 2
    assert logins < LOGINS


def test_a_listener_ends_while_syslogd_is_stopped(site, syslogd):
    site.add("anna")
    site.configure({"log-stderr": "no"})
    with served(site) as door:
        syslogd.wait_for("listening on")
        syslogd.process.send_signal(signal.SIGSTOP)
        for _ in range(10):
            log_in(door)
        door.process.terminate()
        assert door.process.wait(PATIENCE) == 0


def test_a_syslogd_that_is_started_again_gets_the_lines(site, syslogd):
    """Also from a process that has been there all the time."""
    site.add("anna")
    site.add("ben")
    site.configure({"log-stderr": "no"})
    with served(site) as door:
        syslogd.wait_for("listening on")
        wire = door.connect()
        wire.login("anna")
        syslogd.stop()
        log_in(door, "ben")
        syslogd.start()
        assert wire.ask("QUIT").startswith(b"+OK")
        wire.close()
        assert syslogd.wait_for("session .*user=anna")
        log_in(door, "ben")
        assert syslogd.wait_for("session .*user=ben")
        door.process.terminate()
        syslogd.wait_for(r"\]: stopped")


def test_a_socket_that_is_never_read(site):
    site.add("anna")
    site.configure({"log-stderr": "no", "log-level": "debug"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unread:
        unread.bind(str(site.path / "log"))
        with served(site) as door:
            assert not most_wait(log_in(door) for _ in range(20))
            door.process.terminate()
            assert door.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_stderr_that_is_never_read(site, kind):
    site.add("anna")
    site.configure({"log-level": "debug"})
    if kind == "pipe":
        ours, theirs = os.pipe()
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    else:
        ends = socket.socketpair()
        ends[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours, theirs = [one.detach() for one in ends]
    with served(site, stderr=theirs) as door:
        assert not most_wait(log_in(door) for _ in range(20))
        door.process.terminate()
        assert door.process.wait(PATIENCE) == 0
    os.set_blocking(ours, False)
    assert b"]: listening on" in os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)


def test_without_a_dev_log_stderr_says_what_to_do(site):
    site.add("anna")
    site.configure({"log-stderr": "no"})
    with served(site, stderr=subprocess.PIPE, text=True) as door:
        log_in(door)
        line = door.process.stderr.readline()
        door.process.terminate()
        with door.process.stderr as stderr:
            assert stderr.read() == ""
    told = "/dev/log: No such file or directory: nothing is logged; start a syslogd, or give "
    assert line == f"tpop3d[{door.process.pid}]: {told}log-stderr: yes\n"


@pytest.mark.parametrize("log_stderr", ["yes", "no"])
def test_check_config_says_so_too(site, log_stderr):
    if not IS_ROOT:
        pytest.skip("only root can give the server a /dev of its own")
    site.configure({"log-stderr": log_stderr})
    unshare = [need("unshare"), "--mount", "sh", "-ec", OWN_DEV, "sh", site.path / "log"]
    command = [*unshare, *doors.SERVER, "--check-config", "-f", site.conf]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd="/")
    assert done.returncode == 0
    line = [*site.settings].index("log-stderr") + 1
    told = f"warning: {site.conf}:{line}: log-stderr: /dev/log: No such file or directory: nothing "
    assert (told in done.stderr) == (log_stderr == "no")
