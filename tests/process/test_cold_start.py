"""What the path to the greeting imports: next to nothing that is not there already.

The gatekeeper greets. On its path are the imports before it is forked, its own, and those that the
monitor makes until it has given its order.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import doors
import tlskit
from authkit import LEAST, at_door, read_line, text_of
from mailsite import CHECKOUT, ENVIRONMENT, IS_ROOT, MAIL_USER, poll
from spools import mbox
from test_listener_signals import reload

# Not before the greeting (DESIGN, Cold start). As top-level modules, with all below them.
# `_ctypes` and `resource` are there on purpose: without prctl(2) and setrlimit(2) no gatekeeper can
# be locked in, and nothing that speaks with a client may run unlocked.
BANNED = {
    "re", "logging", "argparse", "dataclasses", "typing", "enum", "pathlib", "asyncio", "ssl",
    "socket", "signal", "collections", "hashlib", "random", "functools", "inspect",
    "subprocess", "tempfile", "shutil", "threading", "contextlib", "json", "array", "systemd",
    "pam", "MySQLdb", "email", "zipfile", "_hashlib", "_ssl",
    "ctypes", "importlib",
}  # fmt: skip
# Every import that finds a module not yet there is told, with its process. (-X importtime does not
# see those made by importlib.import_module.) A gatekeeper closes all that it does not know, so the
# trace's descriptor is kept from it; and it writes to no file, so the trace is a pipe.
WATCH = """
import os, sys
trace = int(sys.argv.pop(1))
class Watch:
    def find_spec(self, name, path=None, target=None):
        os.write(trace, f"{os.getpid()} {name}\\n".encode())
sys.meta_path.insert(0, Watch())
os.register_at_fork(before=lambda: os.write(trace, b"0 (fork)\\n"))
closerange = os.closerange
def close_all_others(first, end):
    if first <= trace < end:
        closerange(first, trace)
        first = trace + 1
    closerange(first, end)
os.closerange = close_all_others
"""
ORDINARY = f"""
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({MAIL_USER.pw_gid})
    os.setuid({MAIL_USER.pw_uid})
"""
PRETENDED = f"os.geteuid = lambda: {MAIL_USER.pw_uid}\n"
START = "from tpop3d.cli import main; raise SystemExit(main())"
NOT_NEEDED = {  # of our own
    "tpop3d.auth.isolation", "tpop3d.commands.check_config", "tpop3d.commands.demo",
    "tpop3d.commands.inspection", "tpop3d.commands.try_login", "tpop3d.config.networks",
    "tpop3d.doors.activation", "tpop3d.doors.daemon", "tpop3d.doors.standalone",
    "tpop3d.listener.awaiting_header",
    "tpop3d.listener.gatekeepers", "tpop3d.listener.limits", "tpop3d.listener.listener",
    "tpop3d.listener.relays", "tpop3d.listener.reload", "tpop3d.listener.sd_notify",
    "tpop3d.listener.sockets",
    "tpop3d.mailspool.expunge",
    "tpop3d.mailspool.locks", "tpop3d.mailspool.scan", "tpop3d.mailspool.spool",
    "tpop3d.mailspool.state_directory", "tpop3d.proxy.header", "tpop3d.proxy.origin",
    "tpop3d.session.session", "tpop3d.system.journald", "tpop3d.tls.certificates",
    "tpop3d.tls.client", "tpop3d.tls.keyholder", "tpop3d.tls.pem", "tpop3d.tls.relay",
    "tpop3d.tls.relay_channel", "tpop3d.tls.relay_process",
}  # fmt: skip
AFTER_THE_ORDER = "tpop3d.session.session"  # the first that the monitor imports then


def imported(trace):
    """Who imported what, in order: pairs of a process's id and a module."""
    lines = [line.split(" ") for line in trace.decode().splitlines()]
    return [(int(pid), name) for pid, name in lines]


def path_of(pairs):
    """The modules on the path to the greeting, beyond those of a bare interpreter with site."""
    fork = pairs.index((0, "(fork)"))
    before, after = pairs[:fork], pairs[fork + 1 :]
    monitor = before[0][0]
    modules = {name for _, name in before}
    modules |= {name for pid, name in after if pid not in (0, monitor)}
    for pid, name in after:
        if pid == monitor:
            if name == AFTER_THE_ORDER:
                break
            modules.add(name)
    return modules


def until_greeting(conf, *arguments, first="", stderr=subprocess.DEVNULL, environment=ENVIRONMENT):
    """What is imported when the client reads the greeting, and what it reads."""
    ours, theirs = socket.socketpair()
    trace, write_end = os.pipe()
    with ours, open(trace, "rb", buffering=0) as reader:
        with theirs, open(write_end, "wb", buffering=0):
            start = [sys.executable, "-c", WATCH + first + START, str(write_end)]
            process = subprocess.Popen(
                [*start, "--inetd", "-f", conf, *arguments], pass_fds=[write_end],
                stdin=theirs, stdout=theirs, stderr=stderr, env=environment, cwd="/",
            )  # fmt: skip
        try:
            greeting = read_line(ours.fileno())
            so_far = reader.read(1 << 20)
        finally:
            process.kill()
            process.wait()
    return greeting, path_of(imported(so_far))


def offenders(modules):
    return sorted(
        one for one in modules if one in BANNED or any(one.startswith(f"{b}.") for b in BANNED)
    )


FLATFILE = text_of({**LEAST, "gatekeeper-user": None})
DRIVERS = {
    "flatfile": FLATFILE,
    "passwd": "auth-passwd-enable: yes\n",
    "both": FLATFILE + "auth-passwd-enable: yes\n",
    "everything": FLATFILE
    + f"""
auth-passwd-enable: yes
auth-passwd-mail-group: {MAIL_USER.pw_gid}
auth-flatfile-mail-group: {MAIL_USER.pw_gid}
listen-address: 127.0.0.1:pop3(example.org) [::1]:1110
mailbox: bsd:/var/mail/$(user[0])/$(user) $(home)/mbox
append-domain: yes
log-facility: local0
log-level: debug
timeout-seconds: 601
""",
    # Which nobody has asked for before there is a greeting.
    "TLS": FLATFILE
    + """
tls-certificate: /nonexistent/pem
tls-private-key: /nonexistent/key
plaintext-logins: no
listen-address: 127.0.0.1;tls=immediate
""",
    "directives that look like a driver's": FLATFILE
    + "auth-failure-delay-seconds: 1\nauth-timeout-seconds: 7\n",
}


def conf_of(directory, content, log="log-stderr: yes"):
    """A configuration file with this content."""
    conf = directory / "tpop3d.conf"
    conf.write_text(text_of(at_door(directory)) + content + log + "\n")
    return conf


@pytest.mark.parametrize("content", DRIVERS.values(), ids=DRIVERS)
@pytest.mark.parametrize("log", ["log-stderr: yes", "log-stderr: no"])
def test_nothing_dear_is_imported_before_the_greeting(tmp_path, content, log):
    greeting, new = until_greeting(conf_of(tmp_path, content, log))
    assert greeting.startswith(b"+OK")
    # The trace is one of both processes.
    assert {"tpop3d.privsep.monitor", "tpop3d.privsep.gatekeeper"} <= new
    assert offenders(new) == []
    assert new & NOT_NEEDED == set()


def test_the_journal_is_not_imported_before_the_greeting(tmp_path):
    """With stderr as systemd connects it to the journal; see also the test of the trace."""
    conf = conf_of(tmp_path, DRIVERS["flatfile"], "log-stderr: no")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(theirs.fileno())
        stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        greeting, new = until_greeting(conf, stderr=theirs, environment=ENVIRONMENT | stream)
        assert greeting.startswith(b"+OK")
        assert offenders(new) == []
        assert "tpop3d.system.journald" not in new
        # It would be, if there were anything to log.
        conf.write_text(conf.read_text() + "auth-mysql-databse: x\n")
        new = until_greeting(conf, stderr=theirs, environment=ENVIRONMENT | stream)[1]
        assert "tpop3d.system.journald" in new


def test_an_ordinary_user_imports_no_more(site):
    """Without root nobody is locked in, and a late import would work, and cost."""
    first = ORDINARY
    command = [sys.executable, "-c", "import os\n" + ORDINARY + "import tpop3d.cli"]
    if subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL).returncode:
        first = PRETENDED  # an ordinary user cannot read the program here
    site.configure({"auth-failure-delay-seconds": None})
    site.conf.chmod(0o644)
    greeting, new = until_greeting(site.conf, first=first)
    assert greeting.startswith(b"+OK")
    assert offenders(new) == []
    assert new & NOT_NEEDED == set()


def test_balancers_cost_next_to_nothing(tmp_path):
    """But for what reads its header, which is small."""
    content = DRIVERS["flatfile"] + "proxy-protocol-from: 192.0.2.0/24 2001:db8::7\n"
    greeting, new = until_greeting(conf_of(tmp_path, content))
    assert greeting.startswith(b"+OK")
    assert offenders(new) == []
    ours = {"tpop3d.config.networks", "tpop3d.proxy.origin", "tpop3d.proxy.header"}
    assert new & NOT_NEEDED == ours


def test_the_other_options_of_a_session_cost_no_more(tmp_path):
    conf = conf_of(tmp_path, DRIVERS["flatfile"])
    assert offenders(until_greeting(conf, "-v")[1]) == []


def test_a_driver_that_is_not_enabled_is_not_imported(tmp_path):
    modules = until_greeting(conf_of(tmp_path, DRIVERS["flatfile"]))[1]
    assert "tpop3d.auth.flatfile" in modules
    assert "tpop3d.auth.passwd" not in modules


def test_the_number_of_imports_is_a_budget(tmp_path):
    """Not a law: whoever needs a module more raises the number, and knows it.

    Four of the foreign ones lock the gatekeeper in: _ctypes, resource, and the two libraries for a
    filter of system calls that are looked for. Of ours, tpop3d.system.outlets is there in place of
    the foreign syslog, which may wait for ever; tpop3d.system.titles gives a gatekeeper its title
    while it can still see /proc.
    """
    new = until_greeting(conf_of(tmp_path, DRIVERS["both"]))[1]
    foreign = {one for one in new if not one.startswith("tpop3d")}
    assert len(foreign) <= 13, sorted(foreign)
    assert len(new - foreign) <= 42, sorted(new - foreign)


def test_a_new_module_on_the_path_is_a_decision():
    """It is one to write down what tests/bench/imports finds, by its --accept."""
    command = [sys.executable, CHECKOUT / "tests" / "bench" / "imports"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "  tpop3d.privsep.gatekeeper\n" in found.stdout


LATE = "from importlib import import_module; import_module('hashlib'); import re, json.tool\n"


def test_the_trace_would_show_an_import():
    """This file's own instrument: what is imported is seen, however it is imported."""
    trace, write_end = os.pipe()
    with open(trace, "rb") as reader:
        with open(write_end, "wb"):
            command = [sys.executable, "-c", WATCH + LATE, str(write_end)]
            subprocess.run(command, pass_fds=[write_end], check=True)
        found = {name for _, name in imported(reader.read())}
    assert {"hashlib", "re", "json", "json.tool"} <= set(offenders(found))


@pytest.mark.parametrize("where", ["gatekeeper", "monitor", "confined"])
def test_the_trace_would_show_an_import_in_either_process(tmp_path, where):
    wrapped = {
        "gatekeeper": "from tpop3d.privsep import gatekeeper as m; name = 'confine'",
        "monitor": "from tpop3d.doors import per_connection as m; name = 'Monitor'",
        "confined": "from tpop3d.privsep import gatekeeper as m; name = 'authorize'",
    }
    first = f"""
{wrapped[where]}
real = getattr(m, name)
def late(*arguments):
    try:
        import zipfile
    except ImportError:
        pass  # from inside nothing can be imported, but that it was tried is seen
    return real(*arguments)
setattr(m, name, late)
"""
    greeting, new = until_greeting(conf_of(tmp_path, DRIVERS["flatfile"]), first=first)
    assert greeting.startswith(b"+OK")
    assert "zipfile" in offenders(new)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc")
def test_no_large_library_is_loaded_before_the_greeting(tmp_path):
    conf = conf_of(tmp_path, DRIVERS["both"])
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", START, "--inetd", "-f", conf],
                stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/",
            )  # fmt: skip
        try:
            assert read_line(ours.fileno()).startswith(b"+OK")
            own = Path(f"/proc/{process.pid}")
            mapped = (own / "maps").read_text()
            if IS_ROOT:  # nobody else may look at a gatekeeper
                (gatekeeper,) = (own / f"task/{process.pid}/children").read_text().split()
                mapped += Path(f"/proc/{gatekeeper}/maps").read_text()
        finally:
            process.kill()
            process.wait()
    for library in ("libssl", "libcrypto", "libpam", "libsystemd", "libmariadb"):
        assert f"/{library}" not in mapped


# A keyholder closes the descriptors that it does not know, and a relay can open no file.
WATCHED = """
import os, sys
trace = sys.argv.pop(1)
class Watch:
    def find_spec(self, name, path=None, target=None):
        try:
            with open(trace, "a") as file:
                file.write(f"{os.getpid()} {name}\\n")
        except OSError:
            pass
sys.meta_path.insert(0, Watch())
"""


def test_the_listener_itself_never_imports_openssl(site, monkeypatch):
    """Its keyholder does. Every process that is forked from the listener would carry it along."""
    trace = site.path / "imports"
    command = [sys.executable, "-c", WATCHED + START, str(trace)]
    monkeypatch.setattr(doors, "SERVER", command)
    site.add("anna", mbox(b"x\n"))
    tlskit.secure(site)
    with doors.standalone(site) as door:
        listener = door.process.pid
        # One that is no key is refused, and what there was is kept.
        for count, key in enumerate(("server.key", "server.pem", "server.key"), 1):
            site.configure({"tls-private-key": site.path / key})
            reload(door)
            wire = door.connect()
            assert wire.line().startswith(b"+OK")
            tlskit.stls(wire)
            assert wire.ask("USER anna").startswith(b"+OK")
            assert wire.ask("PASS secret").startswith(b"+OK")
            assert wire.ask("QUIT").startswith(b"+OK")
            wire.close()
            poll(
                lambda n=count: door.logs.text().count("session rip=127.0.0.1 user=anna") == n,
                "its end",
            )
        mapped = Path(f"/proc/{listener}/maps").read_text()
    imported = [line.split() for line in trace.read_text().splitlines()]
    by_listener = {name for pid, name in imported if int(pid) == listener}
    by_others = {name for pid, name in imported if int(pid) != listener}
    assert "tpop3d.tls.keyholder" in by_listener
    not_there = {"ssl", "_ssl", "tpop3d.tls.certificates", "tpop3d.tls.relay"}
    assert not_there <= by_others
    assert not_there & by_listener == set()
    assert "/libssl" not in mapped
