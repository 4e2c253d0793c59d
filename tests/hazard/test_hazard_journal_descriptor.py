"""libsystemd keeps a descriptor that it tells nobody; somebody else's may get its number."""

import json
import socket
import subprocess
import sys

import pytest

from mailsite import ENVIRONMENT, IS_ROOT, PATIENCE, need

pytest.importorskip("systemd._journal", reason="systemd-python is not installed in this Python")

# The journal's socket is at a fixed path: whoever writes gets a /run of its own, with the test's.
OWN_RUN = """
mount -t tmpfs tpop3d-test /run
mkdir -p /run/systemd/journal
ln -s "$1" /run/systemd/journal/socket
shift
exec "$@"
"""
START = """
import json, os, socket, sys
from systemd import _journal
from tpop3d.system.io import close_all_but
from tpop3d.system.journald import JournalSocket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted = server.accept()[0]
server.close()
client.setblocking(False)
def open_ones():
    there = [int(fd) for fd in os.listdir("/proc/self/fd")]
    return {fd for fd in there if os.path.exists(f"/proc/self/fd/{fd}")}  # but the listing's own
before = open_ones()
journal = JournalSocket()
def send(line):
    return journal.send(6, 16, line, None)
def kept():
    return open_ones() - before
def heard():
    try:
        return client.recv(4096).decode()
    except BlockingIOError:
        return ""
told = {"first": send("first")}
(number,) = kept()
ours = (client.fileno(), accepted.fileno())
"""
END = """
told["heard"] = heard()
print(json.dumps(told))
"""


@pytest.fixture
def run(tmp_path):
    """What `script` tells, and the lines that the journal gets meanwhile."""
    if not IS_ROOT:
        pytest.skip("only root can give a process a /run of its own")
    unshare = [need("unshare"), "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.setblocking(False)

        def run(script):
            wrapped = [*unshare, "sh", "-ec", OWN_RUN, "sh", tmp_path / "journal"]
            done = subprocess.run(
                [*wrapped, sys.executable, "-c", START + script + END], env=ENVIRONMENT, cwd="/",
                stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True,
            )  # fmt: skip
            lines = []
            while True:
                try:
                    entry = journal.recv(4096).decode().splitlines()
                except BlockingIOError:
                    return json.loads(done.stdout), lines
                lines += [one[8:] for one in entry if one.startswith("MESSAGE=")]

        yield run


def test_libsystemd_itself_would_tell_the_client(run):
    told, lines = run(
        """
os.dup2(accepted.fileno(), number)
_journal.sendv("MESSAGE=second")
"""
    )
    assert "MESSAGE=second" in told["heard"]
    assert lines == ["first"]


def test_what_has_its_number_is_left_alone(run):
    told, lines = run(
        """
os.dup2(accepted.fileno(), number)
journal.hold()
told["second"] = send("second")
"""
    )
    assert told == {"first": True, "second": False, "heard": ""}
    assert lines == ["first"]


def test_where_it_was_closed_by_others_nothing_is_sent(run):
    told, lines = run(
        """
os.close(number)
told["second"] = send("second")
told["free"] = os.dup(client.fileno()) == number
"""
    )
    assert told == {"first": True, "second": False, "free": True, "heard": ""}
    assert lines == ["first"]


def test_it_is_had_back_before_anything_else_gets_its_number(run):
    told, lines = run(
        """
close_all_but(ours)
journal.hold()
told["second"] = send("second")
told["kept"] = kept() == {number} and not os.get_inheritable(number)
told["third"] = send("third")
"""
    )
    assert told == {"first": True, "second": True, "kept": True, "third": True, "heard": ""}
    assert lines == ["first", "second", "third"]
