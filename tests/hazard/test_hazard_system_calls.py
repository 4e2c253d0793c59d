"""With a library for it, a gatekeeper may make few system calls, and those are enough."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import doors
import tlskit
from mailsite import CHECKOUT, ENVIRONMENT, poll
from samples import MESSAGES, spool_of
from test_gatekeeper_processes import tree

# Beside the packages and not among them: without it, as most sites are, all else is tested.
PYSECCOMP = Path(sys.prefix) / "seccomp"
DEBIANS = CHECKOUT / ".unpacked/python3-seccomp/usr/lib/python3/dist-packages"
LIBRARIES = {"pyseccomp": PYSECCOMP, "seccomp": DEBIANS}
WAYS = [("inetd", "pyseccomp"), ("listener", "pyseccomp")]
if IS_DEBIANS := sys.base_prefix == "/usr":  # Debian's library is for Debian's Python
    WAYS += [("inetd", "seccomp"), ("listener", "seccomp")]


def path_with(name):
    """PYTHONPATH with one of the libraries."""
    path = f"{LIBRARIES[name]}:{ENVIRONMENT['PYTHONPATH']}"
    environment = ENVIRONMENT | {"PYTHONPATH": path}
    code = f"import {name}; {name}.SyscallFilter"
    if subprocess.run([sys.executable, "-c", code], env=environment, stderr=-3).returncode:
        pytest.skip(f"{name}, or libseccomp below it, is not there")
    return path


@pytest.fixture(params=WAYS, ids=" ".join)
def connect(request, site, monkeypatch):
    """Gives a function that opens a connection to a server with a library, and the server."""
    door, library = request.param
    monkeypatch.setitem(doors.ENVIRONMENT, "PYTHONPATH", path_with(library))
    site.add("anna", spool_of(MESSAGES))
    opened = []

    def start():
        if door == "inetd":
            manager = doors.inetd(site)
            wire = manager.__enter__()
            wire.pid = wire.process.pid
        else:
            manager = doors.standalone(site)
            port = manager.__enter__()
            wire = port.connect()
            wire.logs, wire.pid = port.logs, port.process.pid
        opened.append(manager)
        return wire

    yield start
    for manager in opened:
        manager.__exit__(None, None, None)


def filtered(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return re.search(r"^Seccomp:\t2$", status, re.MULTILINE)


def has_tls(pid):
    return "/libssl" in Path(f"/proc/{pid}/maps").read_text()


def test_everything_before_login_works_within_the_filter(connect):
    wire = connect()
    assert wire.line().startswith(b"+OK")
    assert [pid for pid in tree(wire.pid) if filtered(pid)]
    assert wire.ask_long("CAPA")[0].startswith(b"+OK")
    assert wire.ask("UTF8").startswith(b"+OK")
    assert wire.ask("XYZZY").startswith(b"-ERR")
    assert wire.ask("x" * 300).startswith(b"-ERR")
    assert wire.ask("AUTH PLAIN") == b"+ \r\n"
    assert wire.ask("*").startswith(b"-ERR")
    assert wire.ask("USER anna").startswith(b"+OK")
    assert wire.ask("PASS wrong").startswith(b"-ERR [AUTH]")
    assert wire.ask("USER anna").startswith(b"+OK")
    assert wire.ask("PASS secret").startswith(b"+OK")
    assert wire.ask_long("RETR 1")[0].startswith(b"+OK")
    assert wire.ask("QUIT").startswith(b"+OK")
    wire.logs.wait_for("session .*user=anna .*end=quit")
    assert "signal" not in wire.logs.text()


def test_all_of_tls_works_within_the_filter(connect, site):
    tlskit.secure(site)
    wire = connect()
    assert wire.line().startswith(b"+OK")
    tlskit.stls(wire)

    def settled():
        """A listener has a process that recovers mailboxes, soon after its start no more."""
        try:
            inside = [pid for pid in tree(wire.pid) if has_tls(pid)]
            # A keyholder is not, and gives its relays no filter: each has its own.
            keyholders = set(inside).intersection(parent_of(pid) for pid in inside)
            others = set(inside) - keyholders
            return others and all(map(filtered, others)) and not any(map(filtered, keyholders))
        except (FileNotFoundError, ProcessLookupError):
            return False  # gone meanwhile

    poll(settled, "all that speak TLS to be filtered")
    assert wire.ask("USER anna").startswith(b"+OK")
    assert wire.ask("PASS secret").startswith(b"+OK")
    for number in range(1, len(MESSAGES) + 1):
        assert wire.ask_long(f"RETR {number}")[0].startswith(b"+OK")
    assert wire.ask("QUIT").startswith(b"+OK")
    assert wire.line() == b""
    wire.logs.wait_for("session .*user=anna .*tls=TLSv1.3 .*end=quit")
    # A client that makes no handshake.
    other = connect()
    assert other.line().startswith(b"+OK")
    assert other.ask("STLS").startswith(b"+OK")
    other.send(b"USER anna\r\n")
    assert other.line() == b"-ERR TLS was expected here\r\n"
    other.logs.wait_for('tls failed .*reason="no tls"')
    assert "signal" not in wire.logs.text() + other.logs.text()


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_a_client_that_hangs_up_or_is_silent_ends_it_in_order(connect, site):
    site.configure({"login-seconds": 1})
    wire = connect()
    assert wire.line().startswith(b"+OK")
    assert wire.line() == b""
    wire.logs.wait_for("session .*user=- .*end=timeout")
    assert "signal" not in wire.logs.text()


def test_another_system_call_ends_it(connect, monkeypatch):
    code = (
        "import os, sys\n"
        "from tpop3d.privsep import gatekeeper\n"
        "def evil(wire, order, channel):\n"
        "    wire.deadline = wire.now() + 60\n"
        "    wire.send((b'+OK evil\\r\\n',)); wire.flush()\n"
        "    wire.read_line(255)\n"
        "    os.uname()\n"
        "    return 'quit'\n"
        "gatekeeper.authorize = evil\n"
        "from tpop3d.cli import main\n"
        "raise SystemExit(main(sys.argv[1:]))\n"
    )
    monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", code])
    wire = connect()
    assert wire.line() == b"+OK evil\r\n"
    (pid,) = [
        pid for pid in tree(wire.pid) if filtered(pid) and len(os.listdir(f"/proc/{pid}/fd")) > 6
    ]
    wire.send(b"GO\r\n")
    assert wire.line() == b"-ERR [SYS/TEMP] internal error\r\n"
    assert wire.line() == b""
    poll(lambda: pid not in tree(wire.pid), "the gatekeeper's end")
    wire.logs.wait_for(f"{pid} was ended by signal 31|session .*user=- .*end=error")
    assert "end=quit" not in wire.logs.text()


# What is imported for it.

FILTER = """
import sys
from tpop3d.system.privileges import _system_call_filter
print(_system_call_filter() is not None, *({"seccomp", "pyseccomp", "ctypes"} & set(sys.modules)))
"""


def imported(path):
    """Is there a filter, and which libraries are loaded for it?"""
    command = [sys.executable, "-c", FILTER]
    environment = ENVIRONMENT | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    is_there, *libraries = done.stdout.split()
    return is_there == "True", set(libraries)


if IS_DEBIANS:

    def test_where_both_are_debians_is_taken_since_it_needs_no_ctypes():
        path = f"{path_with('pyseccomp')}:{path_with('seccomp')}"
        assert imported(path) == (True, {"seccomp"})


def test_a_module_that_has_its_name_alone_is_passed_over(tmp_path):
    (tmp_path / "seccomp.py").write_text("")
    path = path_with("pyseccomp")
    assert imported(f"{tmp_path}:{path}") == (True, {"seccomp", "pyseccomp", "ctypes"})
    assert imported(f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}") == (False, {"seccomp"})
