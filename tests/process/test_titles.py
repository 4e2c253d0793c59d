"""What ps(1) and top(1) call each process of the server."""

import subprocess
import sys
from pathlib import Path

import pytest

import doors
import tlskit
from authkit import foreign_driver
from mailsite import ENVIRONMENT, PATIENCE, need, poll
from spools import mbox
from test_gatekeeper_processes import tree
from test_listener_signals import reload

SPOOL = mbox(b"Subject: one\n\n1\n")
MAX_NAME = 15  # octets that the kernel keeps


def line_of(pid):
    """The command line, its words separated by spaces."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n") if line_of(pid) else b""
    except (FileNotFoundError, ProcessLookupError):
        return b""


def title_of(pid):
    """The title of a process, by its command line, "" if it has none; its name is the same."""
    line = line_of(pid)
    if not line.startswith("tpop3d: "):
        return ""
    poll(lambda: name_of(pid) == line_of(pid).encode()[:MAX_NAME], "name and title to agree")
    line = line_of(pid)  # which it may just have changed
    return line.removeprefix("tpop3d: ")


def titles_below(pid):
    return sorted(title for child in tree(pid)[1:] if (title := title_of(child)))


def listener(site, **settings):
    settings = {key.replace("_", "-"): value for key, value in settings.items()}
    return doors.standalone(site, settings={"auth-failure-delay-seconds": 0} | settings)


def test_what_a_person_sees(site):
    site.add("anna", SPOOL)
    with listener(site, max_children=1) as door:
        wire = door.connect()
        wire.login("anna")
        poll(lambda: titles_below(door.process.pid) == ["anna", "gatekeeper"], "the session")
        shown = subprocess.run(
            [need("ps"), "-o", "comm=,args=", "--ppid", str(door.process.pid)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = sorted(shown.stdout.split("\n"))
        assert lines[-2].split() == ["tpop3d:", "anna", "tpop3d:", "anna"]
        assert lines[-1].split() == ["tpop3d:", "gatekeeper"[:7], "tpop3d:", "gatekeeper"]
        # The listener's command line says with which configuration it runs.
        assert str(site.conf) in line_of(door.process.pid)
        assert Path(f"/proc/{door.process.pid}/comm").read_text() == "tpop3d\n"
        assert wire.ask("QUIT").startswith(b"+OK")


def test_a_listener_with_tls_has_one_of_each(site):
    site.add("anna", SPOOL)
    tlskit.secure(site)
    with listener(site, max_children=2) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        tlskit.stls(wire)
        expected = ["gatekeeper", "gatekeeper", "keyholder", "relay", "relay", "relay"]
        poll(lambda: titles_below(door.process.pid) == expected, str(expected))
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert "anna" in titles_below(door.process.pid)
        reload(door)
        assert "anna" in titles_below(door.process.pid)
        poll(lambda: titles_below(door.process.pid).count("keyholder") == 2, "another keyholder")
        assert wire.ask("QUIT").startswith(b"+OK")
        poll(lambda: titles_below(door.process.pid).count("keyholder") == 1, "one to go")


@pytest.mark.parametrize("open_door", doors.TCP_DOORS.values(), ids=doors.TCP_DOORS)
def test_in_every_door(site, open_door):
    """One after the other, so that each has had another title, or could have."""
    for user in ("anna", "bert"):
        site.add(user, SPOOL)
    with open_door(site) as door:
        before = door.connect()
        assert before.line().startswith(b"+OK")
        for user in ("anna", "bert"):
            wire = door.connect()
            wire.login(user)
            found = titles_below(door.process.pid)
            assert user in found
            assert set(found) <= {user, "gatekeeper", "recovery"}
            assert wire.ask("QUIT").startswith(b"+OK")
            poll(lambda user=user: user not in titles_below(door.process.pid), "its end")
        assert before.ask("QUIT").startswith(b"+OK")


def test_a_connection_with_tls_of_its_own(site):
    site.add("anna", SPOOL)
    tlskit.secure(site)
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        tlskit.stls(wire)
        assert titles_below(wire.process.pid) == ["gatekeeper", "relay"]
        assert line_of(wire.process.pid).endswith(f"--inetd -f {site.conf}")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"+OK")
        assert title_of(wire.process.pid) == "anna"
        poll(lambda: titles_below(wire.process.pid) == ["relay"], "the gatekeeper's end")
        assert wire.ask("QUIT").startswith(b"+OK")


NAMES = {
    "an.account.with.a.long.name": "an.account.with.a.long.name",
    "anna@example.org": "anna@example.org",
    "\u00e1nn\u00e1": "\\xc3\\xa1nn\\xc3\\xa1",
    "a\tb\x1b[2J": "a\\x09b\\x1b[2J",
    "a b": "a b",
    "x" * 200: "x" * 200,
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_made_printable_and_cut(site, name):
    site.configure({"auth-flatfile-mailbox": f"bsd:{site.spools}/spool"})
    site.spool("spool").write_bytes(SPOOL)
    site.give_to_mail_user(site.spool("spool"))
    with site.passwd.open("a") as passwd:
        passwd.write(f"{name}:{{plaintext}}secret\n")
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")  # it has been exec'd long since
        room = len(Path(f"/proc/{wire.process.pid}/cmdline").read_bytes()) - 2 - len("tpop3d: ")
        wire.send(f"USER {name}\r\nPASS secret\r\n".encode())
        assert wire.line().startswith(b"+OK")
        assert wire.line().startswith(b"+OK")
        assert title_of(wire.process.pid) == NAMES[name][:room]
        # What stands behind the command line in memory is what it was.
        environment = Path(f"/proc/{wire.process.pid}/environ").read_bytes()
        assert set(environment.rstrip(b"\0").split(b"\0")) >= {
            f"{key}={value}".encode() for key, value in ENVIRONMENT.items()
        }
        assert wire.ask("QUIT").startswith(b"+OK")


SLOW = """
import time
from tpop3d.auth.driver import Verdict
class Driver:
    directives = {}
    checks_apop = False
    def __init__(self, settings): pass
    def authenticate(self, login):
        time.sleep(600)
        return Verdict.no("too late")
"""


def test_a_login_that_is_being_decided(site, monkeypatch):
    """What runs somebody else's code, as PAM's modules, has the command line: it is from there that
    syslog(3) takes the name with which their lines begin."""
    packages = site.path / "packages"
    packages.mkdir()
    environment = foreign_driver(packages, "slow", SLOW)
    monkeypatch.setitem(doors.ENVIRONMENT, "PYTHONPATH", environment["PYTHONPATH"])
    with listener(site, max_children=1, auth_slow_enable="yes", shutdown_seconds=1) as door:
        wire = door.connect()
        assert wire.line().startswith(b"+OK")
        wire.send(b"USER keyholder\r\nPASS x\r\n")

        def login_and_driver():
            """Both, once the driver is no login any more, as which it was forked."""
            found = [one for one in tree(door.process.pid) if title_of(one) == "login"]
            return tree(found[0]) if len(found) == 1 and len(tree(found[0])) == 2 else None

        _, driver = poll(login_and_driver, "the login and its driver")
        poll(lambda: line_of(driver) == line_of(door.process.pid), "the command line")
        door.process.terminate()
        assert door.process.wait(3 * PATIENCE) == 0


def test_what_runs_anothers_code_has_the_command_line_back(tmp_path):
    """Of syslog(3) it is the name of the program that the lines of PAM's modules begin with."""
    code = """
import os
from tpop3d.system import titles
def line(): return open("/proc/self/cmdline", "rb").read()
before = line()
titles.show("keyholder")
assert line() == b"tpop3d: keyholder\\0", line()
for what in ("x" * 5000, "y"):
    if not os.fork():
        titles.show(what)
        assert line().startswith(b"tpop3d: " + what[:8].encode()), line()
        titles.restore()
        assert line() == before, line()
        os._exit(0)
    assert os.wait()[1] == 0
assert line() == b"tpop3d: keyholder\\0", line()
"""
    subprocess.run([sys.executable, "-c", code, "an", "argument"], check=True, env=ENVIRONMENT)


def test_where_there_is_no_proc_the_name_is_shown_all_the_same():
    code = """
import os
from tpop3d.system import titles
titles._read = lambda path, most: os.read(os.open("/nonexistent", os.O_RDONLY), most)
before = open("/proc/self/cmdline", "rb").read()
titles.show("relay")
titles.restore()
assert open("/proc/self/cmdline", "rb").read() == before
assert open("/proc/self/comm").read() == "tpop3d: relay\\n"
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
