"""Root without some of capabilities(7), as in a hardened unit or a container: the server says in a
line which of them it needs, before it says that it serves; or it serves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import doors
import tlskit
from authkit import but_for_syslogd, tpop3d
from mailsite import ENVIRONMENT, IS_ROOT, PATIENCE, need
from spools import mbox
from systemdsite import SECCOMP

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root has capabilities to lose")

NEEDED = ["chown", "kill", "setgid", "setuid", "sys_chroot"]
# What others have, and what this server might be thought to want; one by one.
COUSINS = ["dac_override", "dac_read_search", "fowner", "fsetid", "net_bind_service", "setpcap"]
COUSINS += ["audit_write", "sys_ptrace", "sys_admin"]
SPOOL = mbox(b"Subject: one\n\n1\n") + mbox(b"Subject: two\n\n2\n")
BELOW_1024 = 1


def all_capabilities():
    """The names of all that this kernel and this setpriv(1) know."""
    listed = subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True)
    status = Path("/proc/self/status").read_text()
    own = int(re.search(r"^CapBnd:\s*(\w+)$", status, re.M)[1], 16)
    return [name for bit, name in enumerate(listed.stdout.split()) if own >> bit & 1]


def without(*names):
    """The command that runs another as root without these."""
    dropped = ",".join(f"-{name}" for name in names)
    return [need("setpriv"), f"--bounding-set={dropped}", f"--inh-caps={dropped}", "--"]


@pytest.fixture
def lack(site, monkeypatch):
    """Run servers without some capabilities from now on."""
    site.add("anna", SPOOL)
    site.configure({"auth-failure-delay-seconds": 0, "shutdown-seconds": 1})
    server = doors.SERVER
    return lambda *names: monkeypatch.setattr(doors, "SERVER", [*without(*names), *server])


def test_the_list_is_whole():
    """There is a test below for each that this kernel knows."""
    assert set(NEEDED + COUSINS) <= set(all_capabilities())


def names_all(text, names):
    return all(f"CAP_{name.upper()}" in text for name in names)


@pytest.mark.parametrize("names", [*([name] for name in NEEDED), NEEDED], ids="-".join)
class TestWithoutWhatItNeeds:
    def test_the_listener_does_not_start(self, site, lack, names):
        site.configure({"listen-address": f"127.0.0.1:{doors.free_port()}"})
        for arguments in ([], ["-d"], ["-v", "-d"], ["--detach"]):
            done = subprocess.run(
                [*without(*names), *doors.SERVER, "-f", site.conf, *arguments],
                capture_output=True, text=True, env=ENVIRONMENT, cwd="/", timeout=6 * PATIENCE,
            )  # fmt: skip
            assert done.returncode == 1
            (line,) = but_for_syslogd(done.stderr).splitlines()
            assert names_all(line, names)
            assert "listening" not in done.stderr

    def test_a_door_of_one_connection_says_so_and_apologizes(self, site, lack, names):
        lack(*names)
        with doors.inetd(site) as wire:
            assert wire.line() == b"-ERR [SYS/PERM] server is not configured\r\n"
            assert wire.line() == b""
            assert wire.process.wait(PATIENCE) == 1
            (line,) = wire.logs.lines()
            assert names_all(line, names)

    def test_the_demo_says_so(self, names, tmp_path):
        done = subprocess.run(
            [*without(*names), *doors.SERVER, "--demo", "0"],
            capture_output=True, text=True, env=ENVIRONMENT | {"TMPDIR": str(tmp_path)}, cwd="/",
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert names_all(done.stderr, names)
        assert list(tmp_path.iterdir()) == []

    def test_recovery_and_a_trial_say_so(self, site, lack, names):
        run = [*without(*names), *doors.SERVER, "-f", str(site.conf)]
        options = {"capture_output": True, "text": True, "env": ENVIRONMENT, "cwd": "/"}
        done = subprocess.run([*run, "--recover"], **options)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert names_all(done.stderr, names)
        done = subprocess.run([*run, "--test-login", "anna"], input="secret\n", **options)
        assert done.returncode == 6
        assert names_all(done.stdout, names)
        done = subprocess.run([*run, "--check-config"], **options)
        assert done.returncode == 0
        assert names_all(done.stderr, names)


def serves(door):
    """A session that removes a message, and the end of the listener."""
    wire = door.connect()
    wire.login("anna")
    assert wire.ask("DELE 1").startswith(b"+OK")
    assert wire.ask("QUIT").startswith(b"+OK")
    waiting = door.connect()
    assert waiting.line().startswith(b"+OK")
    door.process.terminate()
    assert door.process.wait(3 * PATIENCE) == 0
    log = door.logs.text()
    assert "Traceback" not in log
    assert "internal error" not in log
    assert log.count("stopped") == 1


@pytest.mark.parametrize("name", COUSINS)
def test_without_another_it_serves(site, lack, name):
    lack(name)
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")
    with doors.standalone(site) as door:
        serves(door)


@pytest.mark.parametrize("mode", doors.MODES)
def test_without_any_other_it_serves_with_tls_too(site, lack, mode):
    """So it serves without each of them."""
    lack(*(name for name in all_capabilities() if name not in NEEDED))
    tlskit.secure(site)
    with doors.TLS_DOORS["listener"](site, mode) as door:
        wire = door.connect()
        if mode == "immediate":
            tlskit.wrap(wire)
            wire.login("anna")
        else:
            assert wire.line().startswith(b"+OK")
            tlskit.stls(wire)
            assert wire.ask("USER anna").startswith(b"+OK")
            assert wire.ask("PASS secret").startswith(b"+OK maildrop has 2 ")
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
        door.process.terminate()
        assert door.process.wait(3 * PATIENCE) == 0
        assert "Traceback" not in door.logs.text()


# A unit's SystemCallFilter= with SystemCallErrorNumber=EPERM, or a security module: what the
# capability allows is refused all the same. Exactly that is loaded here, and then the server.
FILTERED = """
import errno, os, sys
sys.path.insert(0, {seccomp!r})
import pyseccomp
rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
rules.add_rule(pyseccomp.ERRNO(errno.EPERM), {call!r})
rules.load()
os.execv(sys.argv[1], sys.argv[1:])
"""
CALLS = {
    "chroot": "CAP_SYS_CHROOT",
    "setgroups": "CAP_SETGID",
    "setresgid": "CAP_SETGID",
    "setresuid": "CAP_SETUID",
    "kill": "CAP_KILL",
}


def filtered(call):
    if not SECCOMP.exists():
        pytest.skip("pyseccomp is not installed")
    code = FILTERED.format(seccomp=str(SECCOMP.parent), call=call)
    return [sys.executable, "-c", code, *doors.SERVER]


@pytest.mark.parametrize("call", CALLS)
def test_a_system_call_that_is_refused_keeps_a_listener_from_starting(site, call):
    site.configure({"listen-address": f"127.0.0.1:{doors.free_port()}"})
    done = subprocess.run(
        [*filtered(call), "-d", "-f", site.conf],
        capture_output=True, text=True, env=ENVIRONMENT, cwd="/", timeout=6 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{call}(2)" in line
    assert CALLS[call] in line


def test_a_user_namespace_with_root_alone_is_named(site):
    """As of a container without root and without /etc/subuid; root has all capabilities there."""
    site.configure({"listen-address": f"127.0.0.1:{doors.free_port()}"})
    done = subprocess.run(
        [need("unshare"), "--user", "--map-root-user", *doors.SERVER, "-d", "-f", site.conf],
        capture_output=True, text=True, env=ENVIRONMENT, cwd="/", timeout=6 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "gatekeepers cannot be locked in: " in line
    assert line.endswith("; in this user namespace the number of users is 1 (/etc/subuid)")


@pytest.mark.parametrize("call", [call for call in CALLS if call != "kill"])
def test_it_is_no_fault_of_a_clients(site, monkeypatch, call):
    monkeypatch.setattr(doors, "SERVER", filtered(call))
    with doors.inetd(site) as wire:
        assert wire.reader.read() == b"-ERR [SYS/TEMP] internal error\r\n"
        wire.process.wait(PATIENCE)
        first, last = wire.logs.lines()
        assert f"{call}(2)" in first
        assert CALLS[call] in first
        assert "session rip=unix " in last


# What was allowed when it began: a profile of AppArmor's, say, was loaded since.
REFUSED_LATER = """
import os, sys
from tpop3d.privsep import gatekeeper
prove = gatekeeper.prove
def refuse(pid, number):
    raise PermissionError(1, "Operation not permitted")
def prove_and_no_more(sandbox):
    refused = prove(sandbox)
    os.kill = refuse
    return refused
gatekeeper.prove = prove_and_no_more
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_listener_that_may_end_nobody_any_more_ends(site, monkeypatch):
    site.add("anna", SPOOL)
    monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", REFUSED_LATER])
    with doors.standalone(site) as door:
        wire = door.connect()
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")
        door.process.terminate()
        assert door.process.wait(3 * PATIENCE) == 0
        log = door.logs.text()
        assert re.search(r"gatekeeper \d+ cannot be ended: Operation not permitted", log)
        assert "Traceback" not in log
        assert "internal error" not in log


def test_a_port_below_1024_names_its_own(site):
    site.configure({"listen-address": f"127.0.0.1:{BELOW_1024}"})
    done = subprocess.run(
        [*without("net_bind_service"), *doors.SERVER, "-f", site.conf],
        capture_output=True, text=True, env=ENVIRONMENT, cwd="/", timeout=6 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Permission denied" in line
    assert "CAP_NET_BIND_SERVICE" in line


def test_a_password_file_of_somebody_elses_names_its_own(site, lack):
    site.give_to_mail_user(site.passwd)
    lack("dac_override", "dac_read_search")
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        wire.ask("USER anna")
        assert wire.ask("PASS secret").startswith(b"-ERR [SYS/TEMP]")
        wire.ask("QUIT")
    assert "CAP_DAC_OVERRIDE" in wire.logs.text()


def test_what_root_has_is_enough(site):
    """With all of them nothing is said."""
    done = tpop3d("-f", site.conf, "--check-config")
    assert b"CAP_" not in done.stderr
