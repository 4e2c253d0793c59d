"""What systemd does with a listener that runs: status, reload, watchdog, stop; and crashes."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from mailsite import PATIENCE, poll
from samples import MESSAGES, spool_of
from systemdsite import USERS
from test_systemd import DAEMON, EACH, LISTENER, SERVICE, STYLES
from tpop3d.mailspool.lockfile import here
from tpop3d.pop3.replies import INTERNAL_ERROR

SPOOL = spool_of(MESSAGES)


@pytest.fixture(params=SERVICE.values())
def listener(request, box):
    """A listener's service, and mail for ann."""
    box.add("ann", SPOOL)
    box.systemctl("start", request.param)
    return request.param


def logged_in(box):
    client = box.wire()
    client.login("ann")
    return client


def service_of(box, style):
    """The unit of the one session that there is."""
    if style != EACH:
        return SERVICE[style]
    listed = box.systemctl("list-units", "--plain", "--no-legend", "tpop3d@*")
    return listed.split()[0]


def status(pid):
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def user_of(pid):
    """The uid of a process, or None if it is gone."""
    try:
        return int(status(pid)["Uid"].split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return None


class TestStatus:
    def test_systemctl_shows_what_goes_on(self, box, listener):
        assert "Status: " in box.systemctl("status", listener)
        before = box.show(listener, "StatusText")
        assert re.search(r"\b0 of 16\b", before), before
        client = logged_in(box)
        # It says so when systemd asks for a sign of life, or after a reload.
        box.systemctl("reload", listener)
        poll(lambda: box.show(listener, "StatusText") != before, "another status")
        assert client.ask("NOOP").startswith(b"+OK")

    def test_sigusr1_logs_it(self, box, listener):
        box.systemctl("kill", "--kill-who=main", "--signal=USR1", listener)
        box.wait_for_journal("serving 0 of 16")


class TestReload:
    def test_keeps_sessions_and_takes_the_new_configuration(self, box, listener):
        pid = box.main_pid(listener)
        client = logged_in(box)
        box.configure({"max-children": 1})
        box.systemctl("reload", listener)
        poll(box.is_full, "the new limit")
        assert box.main_pid(listener) == pid
        assert client.ask("DELE 1").startswith(b"+OK")
        assert client.ask("QUIT").startswith(b"+OK")
        assert box.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
        poll(lambda: not box.is_full(), "a free place")
        assert box.show(listener, "ActiveState") == "active"

    def test_a_bad_configuration_changes_nothing(self, box, listener):
        client = logged_in(box)
        box.path("/etc/tpop3d.conf").write_text("no-such-directive: yes\n")
        box.systemctl("reload", listener)
        box.wait_for_journal("no-such-directive")
        assert client.ask("STAT").startswith(b"+OK")
        assert client.ask("QUIT").startswith(b"+OK")
        assert logged_in(box).ask("STAT").startswith(b"+OK")
        poll(lambda: box.show(listener, "ActiveState") == "active", "the end of the reload")
        # systemctl(1) has only seen that a signal was sent; the status says what came of it.
        why = "reload failed: /etc/tpop3d.conf:1: no-such-directive: "
        poll(lambda: box.show(listener, "StatusText").startswith(why), "the status to say so")
        assert f'Status: "{why}' in box.systemctl("status", listener)
        box.configure({})
        box.systemctl("reload", listener)
        poll(lambda: box.show(listener, "StatusText").startswith("serving "), "the status")


class TestStart:
    @pytest.mark.parametrize("unit", SERVICE.values())
    @pytest.mark.parametrize("name", ["CAP_SYS_CHROOT", "CAP_KILL"])
    def test_without_a_capability_it_is_not_ready(self, box, unit, name):
        """What an administrator's hardening may take away."""
        box.adapt(unit, Service_CapabilityBoundingSet=f"~{name}", Service_Restart="no")
        assert box.run("systemctl", "start", unit).returncode != 0
        assert box.show(unit, "ActiveState") == "failed"
        box.wait_for_journal(f"root lacks {name}, ")
        assert box.show(unit, "StatusText").startswith(f"not started: root lacks {name}, ")
        journal = box.journal()
        assert "listening on" not in journal
        assert "Traceback" not in journal

    def test_without_a_system_call_it_is_not_ready(self, box):
        unit = SERVICE[DAEMON]
        box.adapt(unit, Service_SystemCallFilter="~chroot", Service_Restart="no")
        assert box.run("systemctl", "start", unit).returncode != 0
        box.wait_for_journal("chroot(2) takes CAP_SYS_CHROOT")
        assert "listening on" not in box.journal()

    def test_a_connections_own_service_apologizes(self, box):
        box.adapt("tpop3d@.service", Service_CapabilityBoundingSet="~CAP_SYS_CHROOT")
        box.systemctl("start", "tpop3d.socket")
        assert box.wire().line() == b"-ERR [SYS/PERM] server is not configured\r\n"
        box.wait_for_journal("root lacks CAP_SYS_CHROOT, ")

    @pytest.mark.parametrize("unit", SERVICE.values())
    def test_a_bad_configuration_is_a_failure_and_told(self, box, unit):
        box.path("/etc/tpop3d.conf").write_text("no-such-directive: yes\n")
        assert box.run("systemctl", "start", unit).returncode != 0
        box.wait_for_journal("no-such-directive")

    def test_a_mended_configuration_is_all_that_a_listeners_socket_wants(self, box):
        """Each connection is a start that fails; however many there were, the socket lives on."""
        box.adapt(SERVICE[LISTENER], Service_RestartSec="100ms")
        box.systemctl("start", LISTENER)
        box.path("/etc/tpop3d.conf").write_text("no-such-directive: yes\n")
        client = box.wire()
        poll(lambda: box.journal().count("no-such-directive") > 7, "failures", 2 * PATIENCE)
        box.configure({})
        assert client.line().startswith(b"+OK")
        assert box.show(LISTENER, "ActiveState") == "active"


class TestWatchdog:
    def test_a_listener_that_hangs_is_restarted(self, box, listener):
        box.systemctl("stop", listener)
        box.adapt(listener, Service_WatchdogSec=1)
        box.systemctl("start", listener)
        pid = box.main_pid(listener)
        os.kill(pid, signal.SIGSTOP)
        poll(lambda: box.main_pid(listener) not in (pid, None), "another", 3 * PATIENCE)
        assert box.show(listener, "NRestarts") == "1"
        poll(lambda: box.show(listener, "ActiveState") == "active", "it to be ready")
        assert logged_in(box).ask("QUIT").startswith(b"+OK")

    def test_one_that_works_is_left_alone(self, box, listener):
        box.systemctl("stop", listener)
        box.adapt(listener, Service_WatchdogSec="500ms")
        box.systemctl("start", listener)
        pid = box.main_pid(listener)
        client = logged_in(box)
        seen = {box.show(listener, "WatchdogTimestampMonotonic")}

        def four_signs_of_life():
            seen.add(box.show(listener, "WatchdogTimestampMonotonic"))
            return len(seen) > 4

        poll(four_signs_of_life, "signs of life")
        assert box.main_pid(listener) == pid
        assert client.ask("QUIT").startswith(b"+OK")


class TestStop:
    @pytest.mark.parametrize("style", STYLES)
    def test_a_session_in_progress_ends_and_deletes_nothing(self, box, style):
        box.add("ann", SPOOL)
        box.configure({"shutdown-seconds": 1})
        box.systemctl("start", style)
        client = logged_in(box)
        assert client.ask("DELE 1").startswith(b"+OK")
        service = service_of(box, style)
        pids = box.pids(service)
        assert pids
        box.systemctl("stop", style, service)
        assert client.line() == b""
        assert box.spool("ann").read_bytes() == SPOOL
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert box.show(service, "Result") in ("success", "")
        box.wait_for_journal("end=signal")

    def test_a_session_may_end_by_itself(self, box, listener):
        client = logged_in(box)
        assert client.ask("DELE 1").startswith(b"+OK")
        box.systemctl("stop", "--no-block", listener)
        box.wait_for_journal("Stopping ")
        assert client.ask("NOOP").startswith(b"+OK")
        assert client.ask("QUIT").startswith(b"+OK")
        assert box.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
        poll(lambda: box.show(listener, "ActiveState") == "inactive", "the end", 5)
        assert box.show(listener, "Result") == "success"


class TestCrash:
    """A process that crashes takes one connection with it, and no more."""

    @pytest.mark.parametrize("style", STYLES)
    @pytest.mark.parametrize("who", ["session", "gatekeeper"])
    def test_others_are_served(self, box, style, who):
        box.add("ann", SPOOL)
        box.add("bob", b"")
        box.systemctl("start", style)
        client = box.wire()
        if who == "session":
            client.login("ann")
            assert client.ask("DELE 1").startswith(b"+OK")
            user = USERS["ann"]
        else:
            assert client.line().startswith(b"+OK")
            user = int(box.do("id", "-u", "tpop3d"))
        service = service_of(box, style)
        bob = box.wire()
        bob.login("bob")
        crash(box, service, user)
        # A session may be in the middle of a reply; for a gatekeeper there is an apology.
        apology = [] if who == "session" else [INTERNAL_ERROR.line + b"\r\n"]
        assert client.reader.readlines() == apology
        assert box.spool("ann").read_bytes() == SPOOL
        assert bob.ask("STAT").startswith(b"+OK")
        assert bob.ask("QUIT").startswith(b"+OK")
        # One that was dying may yet have been given a connection.
        poll(lambda: not box.is_full(), "somebody to be served")
        assert logged_in(box).ask("QUIT").startswith(b"+OK")
        assert box.show(style, "ActiveState") == "active"
        assert box.systemctl("list-units", "--failed", "--no-legend", "tpop3d*") == ""

    def test_all_gatekeepers_again_and_again(self, box, listener):
        user = int(box.do("id", "-u", "tpop3d"))
        for _ in range(30):
            crash(box, listener, user)
            poll(lambda: not box.is_full(), "somebody to be served")
        assert logged_in(box).ask("QUIT").startswith(b"+OK")
        assert box.show(listener, "NRestarts") == "0"


def crash(box, service, user):
    """Let all processes of a user in a service crash; one may be ending just now."""
    victims = [pid for pid in box.pids(service) if user_of(pid) == user]
    assert victims
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSEGV)


class TestHardening:
    """What the directives come to, as the kernel sees it."""

    @pytest.mark.parametrize("style", STYLES)
    def test_as_the_kernel_sees_it(self, box, style):
        box.add("ann", SPOOL)
        box.systemctl("start", style)
        client = logged_in(box)
        stranger = box.wire()
        assert stranger.line().startswith(b"+OK")
        units = box.systemctl("list-units", "--plain", "--no-legend", "tpop3d*.service")
        pids = [pid for line in units.splitlines() for pid in box.pids(line.split()[0])]
        by_user = {}
        for pid in pids:
            by_user.setdefault(user_of(pid), []).append(pid)
        gatekeeper = int(box.do("id", "-u", "tpop3d"))
        assert set(by_user) == {0, USERS["ann"], gatekeeper}
        for pid in pids:
            of_it = status(pid)
            assert of_it["NoNewPrivs"] == "1"
            assert of_it["Seccomp"] == "2"
            assert bounding_set(of_it) == allowed(box, style)
        for pid in by_user[USERS["ann"]] + by_user[gatekeeper]:
            assert int(status(pid)["CapEff"], 16) == int(status(pid)["CapPrm"], 16) == 0
        for pid in by_user[gatekeeper]:
            assert os.readlink(f"/proc/{pid}/root").endswith("/var/lib/tpop3d/empty")
        for pid in by_user[0]:
            writable = {"/var/mail", "/var/lib/tpop3d", "/home", "/tmp", "/var/tmp"}
            assert writable <= mounted(pid, "rw")
            assert {"/", "/usr"} <= mounted(pid, "ro")
            assert "/dev" in mounted(pid, "noexec")  # PrivateDevices=
        assert client.ask("QUIT").startswith(b"+OK")

    @pytest.mark.parametrize("style", STYLES)
    def test_a_dotlock_says_all_by_which_a_dead_one_is_known(self, box, style):
        """The units hide the boot ID, and pass it."""
        box.add("ann", SPOOL)
        os.truncate(box.spool("ann"), 400_000_000)  # a hole, so that it takes a moment
        lock = box.path("/var/mail/ann.lock")

        def content():
            return lock.read_bytes() if lock.exists() else b""

        box.systemctl("start", style)
        client = box.wire()
        assert client.line().startswith(b"+OK")
        assert client.ask("USER ann").startswith(b"+OK")
        client.send(b"PASS secret\r\n")
        _, _, boot, namespace = poll(content, "a dotlock").split()
        assert boot == here().split()[1]
        assert namespace.isdigit()
        assert client.line().startswith(b"+OK")
        assert not lock.exists()

    @pytest.mark.parametrize("where", ["/usr/x", "/etc/x", "/root/x", "/var/x"])
    def test_what_cannot_be_written(self, box, where):
        """With the command replaced by one that tries, in the same sandbox."""
        # A notification is awaited only after the command itself has succeeded.
        box.adapt(DAEMON, Service_ExecStart=f"/usr/bin/touch {where}", Service_Restart="no")
        assert box.run("systemctl", "start", DAEMON).returncode != 0
        box.wait_for_journal("Read-only file system")


def bounding_set(of_process):
    return int(of_process["CapBnd"], 16)


def allowed(box, style):
    """The capabilities that the unit names, as a mask."""
    unit = {EACH: "tpop3d@.service"}.get(style) or SERVICE[style]
    names = []
    for line in box.path(f"/etc/systemd/system/{unit}").read_text().splitlines():
        if line.startswith("CapabilityBoundingSet="):
            names += line.partition("=")[2].split()
    return sum(1 << CAPABILITIES[name] for name in names)


# capabilities(7), by their numbers in <linux/capability.h>
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SYS_CHROOT": 18,
}


def mounted(pid, how):
    """Where a process sees something mounted read-only ("ro") or not ("rw")."""
    lines = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    last = {fields[4]: fields[5].split(",") for fields in lines}
    return {where for where, options in last.items() if how in options}
