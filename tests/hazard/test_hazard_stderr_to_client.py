"""Under xinetd stderr is the client's connection: nothing but protocol may reach it."""

import socket
import subprocess

import pytest

from authkit import (
    LEAST,
    SERVER,
    at_door,
    converse,
    foreign_driver,
    recorded_syslog,
    text_of,
)
from mailsite import ENVIRONMENT, PATIENCE

SCRIPT = b"CAPA\r\nUSER ann\r\nPASS secret\r\nUSER ann\r\nPASS wrong\r\nNOOP\r\nQUIT\r\n"
HEAD = """
import os, subprocess, sys, warnings
class Driver:
    directives = {}
    checks_apop = False
    def __init__(self, settings): pass
    def authenticate(self, login):
        from tpop3d.auth.driver import Verdict
"""
NOISE = {
    "raises": "raise ValueError('intruder')",
    "prints to stderr": "print('intruder', file=sys.stderr, flush=True)",
    "writes to descriptor 2": "os.write(2, b'intruder\\n')",
    "warns": "warnings.warn('intruder', stacklevel=1)",
    "runs a program that complains": "subprocess.run(['sh', '-c', 'echo intruder >&2'])",
    "leaves a thread that dies": "import threading; t = threading.Thread(target=lambda: "
    "exec('raise ValueError(\"intruder\")')); t.start(); t.join()",
    "leaves an exception nobody sees": "type('X', (), {'__del__': lambda self: 1 / 0})()",
    "prints": "print('intruder')",
    "prints at once": "print('intruder', flush=True)",
    "runs a program that talks": "subprocess.run(['echo', 'intruder'])",
    "prints at the end": "import atexit; atexit.register(lambda: print('intruder'))",
}


def configuration(tmp_path, **settings):
    conf = tmp_path / "tpop3d.conf"
    passwd = tmp_path / "passwd"
    passwd.write_text("ann:{plaintext}secret\n")
    conf.write_text(
        text_of(
            {
                "auth-failure-delay-seconds": 0,
                "log-stderr": "yes",
                "log-level": "debug",
                **at_door(tmp_path),
                **{key.replace("_", "-"): value for key, value in settings.items()},
            }
        )
    )
    return conf


def is_protocol(client):
    """Status lines, and CAPA's list."""
    lines = client.split(b"\r\n")
    assert lines.pop() == b""
    inside = False
    for line in lines:
        if b"\n" in line or b"\r" in line or b"intruder" in line or b"tpop3d[" in line:
            return False
        if inside:
            inside = line != b"."
        elif not line.startswith((b"+OK", b"-ERR")):
            return False
        else:
            inside = b"capabilit" in line.lower()
    return not inside


@pytest.mark.parametrize("arguments", [[], ["-v"]])
@pytest.mark.parametrize("fd2", ["client", "closed"])
@pytest.mark.parametrize("noise", NOISE)
def test_a_driver_reaches_the_client_with_nothing(tmp_path, noise, fd2, arguments):
    code = HEAD + f"        {NOISE[noise]}\n        return Verdict.no('no')\n"
    foreign_driver(tmp_path, "noisy", code)
    env, record = recorded_syslog(tmp_path)
    conf = configuration(tmp_path, auth_noisy_enable="yes")
    ended = converse(conf, SCRIPT, *arguments, env=env, fd2=fd2)
    assert is_protocol(ended.client), ended.client
    assert ended.lines[-1].startswith(b"+OK")  # QUIT was answered, last of all
    answer = b"-ERR [SYS/TEMP]" if noise == "raises" else b"-ERR [AUTH]"
    assert sum(line.startswith(answer) for line in ended.lines) == 2
    assert "login " in record.read_text()  # the log went where it could


@pytest.mark.parametrize("fd2", ["client", "closed"])
def test_a_session_of_ours_writes_only_protocol(tmp_path, fd2):
    settings = {key.replace("-", "_"): value for key, value in LEAST.items()}
    settings["auth_flatfile_passwd_file"] = tmp_path / "passwd"
    settings["auth_flatfile_mailbox"] = f"{tmp_path}/none/$(local_part)"
    env, record = recorded_syslog(tmp_path)
    conf = configuration(tmp_path, **settings)
    ended = converse(conf, SCRIPT, "-v", env=env, fd2=fd2)
    assert is_protocol(ended.client), ended.client
    assert "session " in record.read_text()


INJECTED = {
    "in the monitor": "from tpop3d.privsep import monitor\n"
    "monitor.Switch.decide = lambda *x: 1 / 0\n",
    "in the conversation": "from tpop3d.session import conversation\n"
    "conversation.Conversation.run = lambda *x: 1 / 0\n",
    "in the log line": "from tpop3d.session import summary\n"
    "summary.Summary.log_end = lambda *x: 1 / 0\n",
    "before the greeting": "from tpop3d.privsep import monitor\n"
    "monitor.Monitor.__init__ = lambda *x: 1 / 0\n",
    "in the configuration": "from tpop3d import configuration\n"
    "configuration.load = lambda *x: 1 / 0\n",
}


@pytest.mark.parametrize("where", INJECTED)
@pytest.mark.parametrize("fd2", ["client", "closed"])
def test_an_exception_reaches_the_client_with_nothing(tmp_path, where, fd2):
    env, _ = recorded_syslog(tmp_path)
    conf = configuration(tmp_path, auth_passwd_enable="yes")
    start = f"{INJECTED[where]}\nfrom tpop3d.cli import main\nraise SystemExit(main())\n"
    ended = converse(conf, SCRIPT, env=env, fd2=fd2, command=[SERVER[0], "-c", start, "--inetd"])
    assert is_protocol(ended.client), ended.client
    assert b"Traceback" not in ended.client
    assert b"ZeroDivision" not in ended.client


@pytest.mark.parametrize("where", ["in the monitor", "in the conversation"])
def test_an_exception_is_logged_and_the_client_gets_an_answer(tmp_path, where):
    env, record = recorded_syslog(tmp_path)
    conf = configuration(tmp_path, auth_passwd_enable="yes")
    start = f"{INJECTED[where]}\nfrom tpop3d.cli import main\nraise SystemExit(main())\n"
    ended = converse(
        conf, SCRIPT, env=env, fd2="client", command=[SERVER[0], "-c", start, "--inetd"]
    )
    assert ended.lines[-1].startswith(b"-ERR [SYS/TEMP]")
    assert "internal error: ZeroDivisionError" in record.read_text()


def test_a_stderr_of_its_own_gets_the_log(tmp_path):
    """The other half: what is not the client's is used as it was asked for."""
    conf = configuration(tmp_path, auth_passwd_enable="yes")
    ended = converse(conf, b"QUIT\r\n", fd2="pipe")
    assert b"session " in ended.stderr
    assert is_protocol(ended.client)


STARTS = {
    # what is the client's socket; what is closed; the command line
    "a wrong option": ((0, 1, 2), (), "--bogus"),
    "stdout closed": ((0, 2), (1,), "--inetd"),
    "stdin closed": ((1, 2), (0,), "--inetd"),
    "stderr closed, and a wrong option": ((0, 1), (2,), "--bogus"),
    "stdin is another, and a wrong option": ((1, 2), (), "--inetd --bogus"),
}


@pytest.mark.parametrize("how", STARTS)
def test_an_odd_start_gives_the_client_protocol_or_nothing(tmp_path, how):
    client, closed, arguments = STARTS[how]
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(text_of(LEAST | at_door(tmp_path)))
    ours, theirs = socket.socketpair()
    ends = {fd: theirs if fd in client else subprocess.DEVNULL for fd in (0, 1, 2)}
    closing = " ".join({0: "<&-", 1: ">&-", 2: "2>&-"}[fd] for fd in closed)
    command = [*SERVER, "-f", str(conf), *arguments.split()]
    with ours:
        with theirs:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command],
                stdin=ends[0], stdout=ends[1], stderr=ends[2], env=ENVIRONMENT, cwd="/",
            )  # fmt: skip
        ours.settimeout(PATIENCE)
        ours.shutdown(socket.SHUT_WR)
        received = b""
        while part := ours.recv(65536):
            received += part
        process.wait(PATIENCE)
    assert received == b"" or received.startswith((b"+OK ", b"-ERR "))
    assert received.count(b"\n") <= 1
    assert process.returncode in (1, 2)
