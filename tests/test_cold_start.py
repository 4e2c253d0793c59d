"""What the path to the greeting imports: next to nothing that is not there already."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from authkit import LEAST, read_line, text_of
from mailsite import ENVIRONMENT, MAIL_USER

# Not before the greeting (DESIGN, Cold start). As top-level modules, with all below them.
BANNED = {
    "re", "logging", "argparse", "dataclasses", "typing", "enum", "pathlib", "asyncio", "ssl",
    "ctypes", "socket", "signal", "collections", "hashlib", "random", "functools", "inspect",
    "subprocess", "tempfile", "shutil", "threading", "contextlib", "json", "array", "systemd",
    "pam", "MySQLdb", "importlib.metadata", "email", "zipfile", "_hashlib", "_ssl", "_ctypes",
}  # fmt: skip
# Every import that finds a module not yet there is told on stderr. (-X importtime does not see
# those made by importlib.import_module.)
WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        os.write(2, f"import {name}\\n".encode())
sys.meta_path.insert(0, Watch())
"""
START = "from tpop3d.cli import main; raise SystemExit(main())"
NOT_NEEDED = {  # of our own
    "tpop3d.check", "tpop3d.demo", "tpop3d.doors.standalone", "tpop3d.pop3.transaction",
    "tpop3d.pop3.capabilities", "tpop3d.mailspool.spool", "tpop3d.mailspool.scan",
    "tpop3d.mailspool.expunge", "tpop3d.mailspool.locks",
}  # fmt: skip


def imported(trace):
    """The modules that were imported beyond those of a bare interpreter with site."""
    lines = trace.read_text(errors="replace").splitlines()
    return {line.removeprefix("import ") for line in lines if line.startswith("import ")}


def until_greeting(conf, *arguments):
    """What a session has imported when the client reads the greeting, and what it reads."""
    ours, theirs = socket.socketpair()
    trace = conf.parent / "trace"
    with ours, trace.open("wb") as stderr:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", WATCH + START, "--inetd", "-f", conf, *arguments],
                stdin=theirs, stdout=theirs, stderr=stderr, env=ENVIRONMENT, cwd="/",
            )  # fmt: skip
        try:
            greeting = read_line(ours.fileno())
        finally:
            # Not one more import: the trace ends here.
            process.send_signal(signal.SIGKILL)
            process.wait()
    return greeting, imported(trace)


def offenders(modules):
    return sorted(
        one for one in modules if one in BANNED or any(one.startswith(f"{b}.") for b in BANNED)
    )


DRIVERS = {
    "flatfile": text_of(LEAST),
    "passwd": "auth-passwd-enable: yes\n",
    "both": text_of(LEAST) + "auth-passwd-enable: yes\n",
    "everything": text_of(LEAST)
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
}


@pytest.mark.parametrize("content", DRIVERS.values(), ids=DRIVERS)
@pytest.mark.parametrize("log", ["log-stderr: yes", "log-stderr: no"])
def test_nothing_dear_is_imported_before_the_greeting(tmp_path, content, log):
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(content + log + "\n")
    greeting, new = until_greeting(conf)
    assert greeting.startswith(b"+OK")
    assert "tpop3d.session.connection" in new  # the trace is one of a session
    assert offenders(new) == []
    assert new & NOT_NEEDED == set()


def test_the_other_options_of_a_session_cost_no_more(tmp_path):
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(DRIVERS["flatfile"])
    assert offenders(until_greeting(conf, "-v")[1]) == []


def test_a_driver_that_is_not_enabled_is_not_imported(tmp_path):
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(DRIVERS["flatfile"])
    modules = until_greeting(conf)[1]
    assert "tpop3d.auth.flatfile" in modules
    assert "tpop3d.auth.passwd" not in modules


def test_the_number_of_imports_is_a_budget(tmp_path):
    """Not a law: whoever needs a module more raises the number, and knows it."""
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(DRIVERS["both"])
    new = until_greeting(conf)[1]
    foreign = {one for one in new if not one.startswith("tpop3d")}
    assert len(foreign) <= 12, sorted(foreign)
    assert len(new - foreign) <= 40, sorted(new - foreign)


def test_the_trace_would_show_an_import(tmp_path):
    """This file's own instrument: what is imported is seen, however it is imported."""
    trace = tmp_path / "trace"
    late = "from importlib import import_module; import_module('hashlib'); import re, json.tool"
    with trace.open("wb") as stderr:
        subprocess.run([sys.executable, "-c", WATCH + late], stderr=stderr, check=True)
    assert {"hashlib", "re", "json", "json.tool"} <= set(offenders(imported(trace)))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc")
def test_no_large_library_is_loaded_before_the_greeting(tmp_path):
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(DRIVERS["both"])
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", START, "--inetd", "-f", conf],
                stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/",
            )  # fmt: skip
        try:
            assert read_line(ours.fileno()).startswith(b"+OK")
            with open(f"/proc/{process.pid}/maps", encoding="utf-8") as maps:
                mapped = maps.read()
        finally:
            process.kill()
            process.wait()
    for library in ("libssl", "libcrypto", "libpam", "libsystemd", "libmariadb", "libffi"):
        assert f"/{library}" not in mapped
