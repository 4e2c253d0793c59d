"""A gatekeeper in somebody else's hands: it gets nothing, and the log says so.

The real gatekeeper's code is replaced before it starts by one that tries something. It reports to
the client what came of it; all else is the real program.
"""

import re
import sys
import textwrap

import pytest

import doors
import tlskit
from mailsite import IS_ROOT
from spools import mbox

SPOOL = mbox(b"Subject: secret\n\nsecret\n")
START = """
import os, sys, struct, time, _socket
from tpop3d.privsep import gatekeeper, channel as channels
from tpop3d.privsep.channel import LoginRequest, Ending
from tpop3d.pop3.authorization import Attempt

def attempt(password=b"wrong", name=b"anna"):
    return LoginRequest(Attempt("USER", name, password=password), b"", 0, 0)

def evil(wire, order, channel):
    wire.deadline = wire.now() + 60
    def tell(text):
        wire.send((str(text).encode() + b"\\r\\n",))
        wire.flush()
    raw = channel._socket
    tell("+OK evil")
{body}
    return "quit"

gatekeeper.authorize = evil
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""
ATTACKS = {
    "garbage": ("raw.send(b'X' + os.urandom(200))", "of no known kind"),
    "an empty attempt": ("raw.send(b'A')", "a short attempt"),
    "lengths that lie": (
        "raw.send(channels._ATTEMPT.pack(b'A', b'U', 4, 60000, 0, 0, 0) + b'anna')",
        "impossible attempt",
    ),
    "too large": ("raw.send(b'A' + bytes(150000))", "too large"),
    "descriptors": (
        "raw.sendmsg([b'E'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack('i', 0))])",
        "too large, or with descriptors",
    ),
    "a name with a line end": ("channel.ask(attempt(name=b'a\\nb'))", "an impossible name"),
    "lines for the log": (
        "for n in range(9): channel.log(3, f'login rip=127.0.0.1 user=root {n}')",
        "nobody asked for",
    ),
    "too many tries": (
        "for n in range(9): tell(channel.ask(attempt()))",
        "an attempt after the last one",
    ),
    "an ending of no kind": ("raw.send(b'E' + bytes(17))", "an impossible ending"),
    "APOP that was not offered": (
        "channel.ask(LoginRequest(Attempt('APOP', b'anna', digest=b'0' * 32), b'', 0, 0))",
        "APOP that was not offered",
    ),
    "TLS where there is none": ("channel.ask_for_tls(0, 0)", "TLS that was not offered"),
    "TLS after the last try": (
        "for n in range(3): channel.ask(attempt())\nchannel.ask_for_tls(0, 0)",
        "TLS that was not offered",
    ),
}


@pytest.fixture(params=["inetd", "listener"])
def door(request, site, monkeypatch):
    """Start a server whose gatekeepers run `body`; gives a function that does."""
    site.add("anna", SPOOL)
    site.configure({"auth-failure-delay-seconds": 0, "login-seconds": 2})
    stack = []

    def start(body):
        code = START.format(body=textwrap.indent(textwrap.dedent(body), "    "))
        monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", code])
        if request.param == "inetd":
            manager = doors.inetd(site)
            wire = manager.__enter__()
        else:
            manager = doors.standalone(site, settings={"max-children": 3})
            opened = manager.__enter__()
            wire = opened.connect()
            wire.logs = opened.logs
        stack.append(manager)
        assert wire.line() == b"+OK evil\r\n"
        return wire

    yield start
    for manager in stack:
        manager.__exit__(None, None, None)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_ours_never_sends_ends_the_connection_and_is_logged(door, site, attack):
    body, complaint = ATTACKS[attack]
    if attack.startswith("APOP"):
        site.configure({"auth-flatfile-enable": "no", "auth-passwd-enable": "yes"})
    if attack == "TLS after the last try":
        tlskit.secure(site)
    wire = door(f"{body}\nimport time\ntime.sleep(60)")
    rest = wire.reader.read()
    assert b"+'" not in rest  # no verdict was a yes
    line = wire.logs.wait_for("attack ")
    assert complaint in line
    assert re.search(r"attack serving=\S+ gatekeeper=\d+ reason=", line)
    wire.logs.wait_for("session .*user=- .*end=error")
    assert "user=root" not in wire.logs.text().replace("reason", "") or attack.startswith("l")


@pytest.mark.parametrize("level", [0, 1, 2, 4, 5, 6])
def test_no_line_is_more_urgent_than_an_error_or_less_than_debugging_with_verbose_too(
    door, site, level
):
    """At emerg syslogd would write it on everybody's terminal."""
    site.configure({"log-level": "debug"})
    wire = door(f"channel.log(7, 'first')\nchannel.log({level}, 'second')\ntime.sleep(60)")
    assert wire.reader.read() == b""
    wire.logs.wait_for("attack .*a line of a level that is none of its own")
    wire.logs.wait_for("gatekeeper rip=.* says=first")
    assert "says=second" not in wire.logs.text()


def test_errors_are_few_with_verbose_too(door, site):
    site.configure({"log-level": "debug"})
    wire = door("for n in range(9): channel.log(3, f'trouble{n}')\ntime.sleep(60)")
    assert wire.reader.read() == b""
    wire.logs.wait_for("attack .*nobody asked for")
    assert wire.logs.text().count("says=trouble") == 2


def test_an_answer_that_never_comes_is_not_waited_for(door):
    wire = door("import time\ntime.sleep(600)")
    assert wire.reader.read() == b""  # after login-seconds and some
    assert "does not answer" in wire.logs.wait_for("attack ")


def test_a_success_cannot_be_had_twice(door, site):
    """After an admission the gatekeeper asks again, for somebody else's mailbox."""
    site.add("bert", SPOOL)
    wire = door(
        """
        channel.ask(attempt(b"secret"))
        raw.send(channels._ATTEMPT.pack(b"A", b"U", 4, 6, 0, 0, 0) + b"bert" + b"secret")
        import time
        time.sleep(60)
        """
    )
    if wire.process is None:
        # The listener hears of it, and ends what anna has, too. She may have had an answer.
        wire.reader.read()
        assert "reason=" in wire.logs.wait_for("attack ")
    else:
        # Nobody listens to that gatekeeper any more.
        assert wire.line().startswith(b"+OK maildrop")
        assert wire.ask("QUIT").startswith(b"+OK")
    wire.logs.wait_for("session .*user=(anna|-) ")
    assert "user=bert" not in wire.logs.text()


def test_another_users_mailbox_needs_that_users_password(door, site):
    site.add("bert", SPOOL, hashed="{plaintext}other")
    wire = door("tell(channel.ask(attempt(b'secret', b'bert')))")
    assert wire.line() == b"b'-'\r\n"
    wire.logs.wait_for('login failed .*user=bert .*reason="wrong password"')


TRIES = {
    "open the password file": "os.open({passwd!r}, os.O_RDONLY)",
    "open its own directory's parent": "os.open('../../passwd', os.O_RDONLY)",
    "write a file": "os.open('/file', os.O_WRONLY | os.O_CREAT)",
    "signal the monitor": "os.kill(os.getppid(), 9)",
    "signal everybody": "os.kill(1, 15)",
    "start a process": "os.fork()",
    "become root": "os.setuid(0)",
    "leave the chroot": "os.chroot('.')",
    "look at the monitor's memory": "os.open(f'/proc/{{os.getppid()}}/mem', os.O_RDONLY)",
}


@pytest.mark.skipif(not IS_ROOT, reason="only root can lock a process in")
@pytest.mark.parametrize("what", TRIES)
def test_the_kernel_refuses_what_it_tries(door, site, what):
    action = TRIES[what].format(passwd=str(site.passwd))
    wire = door(
        f"try:\n    {action}\n    tell('done')\nexcept OSError as e:\n    tell(type(e).__name__)"
    )
    outcome = wire.line().decode().strip()
    assert outcome in (
        "PermissionError",
        "FileNotFoundError",
        "BlockingIOError",
        "ProcessLookupError",
    )
    wire.logs.wait_for("session .*user=- .*end=quit")
