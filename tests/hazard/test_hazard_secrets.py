"""A password is in no log, no repr and no error, whatever happens to it."""

import base64
import hashlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from authkit import (
    CANARY,
    LEAST,
    Stub,
    at_door,
    config_of,
    converse,
    errors_of,
    foreign_driver,
    read_line,
    text_of,
)
from mailsite import ENVIRONMENT, IS_ROOT, MAIL_USER
from tpop3d.auth.driver import Account, Login, Verdict
from tpop3d.auth.switch import Switch
from tpop3d.config.reader import Secret
from tpop3d.pop3.authorization import Attempt

PLAIN = base64.b64encode(b"\0ann\0" + CANARY.encode())
WRONG = base64.b64encode(b"\0ann\0" + CANARY.encode() + b"-wrong")
C = CANARY.encode()


@pytest.fixture(params=["drivers of ours", "a driver that raises"])
def conf(request, tmp_path):
    passwd = tmp_path / "passwd"
    passwd.write_text(f"ann:{{plaintext}}{CANARY}\nbert:{{nosuch}}{CANARY}\ncarl:{CANARY}\n")
    file = tmp_path / "tpop3d.conf"
    # The maildrop is out of reach, so that a good login fails late.
    settings = LEAST | {
        "auth-flatfile-passwd-file": passwd,
        "auth-flatfile-mail-user": MAIL_USER.pw_name,
        "auth-flatfile-mailbox": f"{tmp_path}/$(local_part)/none/x",
        "state-directory": f"{tmp_path}/state",
        "auth-failure-delay-seconds": 0,
        "log-stderr": "yes",
    }
    env = {}
    if request.param == "a driver that raises":
        code = """
class Driver:
    directives = {}
    checks_apop = True
    def __init__(self, settings): pass
    def authenticate(self, login):
        if login.password is not None:
            {}[login.password]
        raise ValueError(login._digest)
"""
        env = foreign_driver(tmp_path, "raises", code)
        settings = {"auth-raises-enable": "yes"} | {
            key: value for key, value in settings.items() if "flatfile" not in key
        }
    file.write_text(text_of(settings))
    return file, env


SCRIPTS = {
    "right": b"USER ann\r\nPASS %b\r\nQUIT\r\n" % C,
    "wrong": b"USER ann\r\nPASS %b-wrong\r\nQUIT\r\n" % C,
    "unknown scheme": b"USER bert\r\nPASS %b\r\nQUIT\r\n" % C,
    "no hash": b"USER carl\r\nPASS %b\r\nQUIT\r\n" % C,
    "unknown user": b"USER nobody\r\nPASS %b\r\nQUIT\r\n" % C,
    "without USER": b"PASS %b\r\nQUIT\r\n" % C,
    "in small letters": b"user ann\r\npass %b\r\nquit\r\n" % C,
    "8 bits": b"USER ann\r\nPASS \xff%b\r\nQUIT\r\n" % C,
    "with NUL": b"USER ann\r\nPASS \0%b\r\nQUIT\r\n" % C,
    "with CR": b"USER ann\r\nPASS \r%b\r\nQUIT\r\n" % C,
    "with a tab": b"USER ann\r\nPASS\t%b\r\nQUIT\r\n" % C,
    "with two blanks": b"USER ann\r\nPASS  %b\r\n PASS %b\r\nQUIT\r\n" % (C, C),
    "misspelled": b"USER ann\r\nPAS %b\r\nPASSWORD %b\r\nPASS:%b\r\n%b\r\nQUIT\r\n" % (C, C, C, C),
    "too long": b"USER ann\r\nPASS " + C * 100 + b"\r\nQUIT\r\n",
    "PLAIN at once": b"AUTH PLAIN %b\r\nQUIT\r\n" % PLAIN,
    "PLAIN in two steps": b"AUTH PLAIN\r\n%b\r\nQUIT\r\n" % PLAIN,
    "PLAIN, wrong": b"AUTH PLAIN\r\n%b\r\nQUIT\r\n" % WRONG,
    "PLAIN, malformed": b"AUTH PLAIN\r\n%b=\r\nAUTH PLAIN %b x\r\nQUIT\r\n" % (PLAIN, PLAIN),
    "PLAIN, not base64": b"AUTH PLAIN\r\n%b\r\nAUTH PLAIN %b\r\nQUIT\r\n" % (C, C),
    "PLAIN, another name": b"AUTH XOAUTH2 %b\r\n%b\r\nAUTH LOGIN\r\n%b\r\nQUIT\r\n" % (C, C, C),
    "PLAIN, like a command": b"AUTH PLAIN\r\nUSER %b\r\nQUIT\r\n" % C,
    "three times": b"USER ann\r\nPASS %b-x\r\n" % C * 3,
    "without an end": b"USER ann\r\nPASS %b" % C,
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_no_password_is_in_the_log_at_its_most_talkative(conf, script):
    ended = converse(conf[0], script, "-v", env=conf[1])
    assert ended.client.startswith(b"+OK")
    assert b"C: " in ended.stderr
    for secret in (C, PLAIN, WRONG, PLAIN.rstrip(b"="), base64.b64encode(C)):
        assert secret not in ended.stderr
        assert secret not in ended.client


def test_no_apop_digest_is_in_the_log(conf):
    ours = b"0123456789abcdef" * 2
    script = b"APOP ann %b\r\nAPOP ann %b x\r\nQUIT\r\n" % (ours, ours)
    ended = converse(conf[0], script, "-v", env=conf[1])
    assert b"C: APOP" in ended.stderr
    assert ours not in ended.stderr


TIMESTAMP = b"<1@example>"
DIGEST = hashlib.md5(TIMESTAMP + C, usedforsecurity=False).hexdigest().encode()
OBJECTS = {
    "Attempt": Attempt("USER", b"ann", password=C, timestamp=TIMESTAMP, digest=DIGEST),
    "Login": Login(b"ann", password=C, timestamp=TIMESTAMP, digest=DIGEST),
    "Verdict": Verdict.yes(Account(b"ann", 1, 1, ["/x"])),
    "Account": Account(b"ann", 1, 1, ["/x"]),
    "Secret": Secret("/etc/tpop3d.conf", "auth-x-password"),
}


@pytest.mark.parametrize("thing", OBJECTS.values(), ids=OBJECTS)
def test_no_object_shows_a_secret(thing):
    for shown in (repr(thing), str(thing), f"{thing}", f"{thing!r}", f"{[thing]}"):
        assert CANARY not in shown
        assert DIGEST.decode() not in shown


def test_the_configuration_holds_no_secret(tmp_path):
    """Neither is one in the objects that live as long as the session."""
    file = tmp_path / "passwd"
    file.write_text(f"ann:{{plaintext}}{CANARY}\n")
    config = config_of(auth_flatfile_passwd_file=file)
    switch = Switch(config.drivers, config)
    verdict = switch.decide(Attempt("USER", b"ann", password=C), b"", "")
    assert verdict.account is not None
    assert not holds(config, set())
    assert not holds(switch, set())
    assert not holds(verdict, set())
    assert holds(Login(b"ann", password=C), set())  # it would have been found


def holds(thing, seen):
    """Is the canary anywhere within an object?"""
    if id(thing) in seen:
        return False
    seen.add(id(thing))
    if isinstance(thing, str | bytes):
        return CANARY in (thing if isinstance(thing, str) else thing.decode("latin-1"))
    if isinstance(thing, dict):
        return any(holds(one, seen) for pair in thing.items() for one in pair)
    if isinstance(thing, list | tuple | set | frozenset):
        return any(holds(one, seen) for one in thing)
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    inside = [getattr(thing, name, None) for name in slots]
    return holds([*inside, *getattr(thing, "__dict__", {}).values()], seen)


def test_a_reason_never_quotes_the_attempt():
    attempt = Attempt("USER", b"ann", password=C)
    for failure in (ValueError(C), KeyError(C), UnicodeDecodeError("ascii", C, 0, 1, "x")):
        verdict = Switch({"x": Stub(failure)}, config_of()).decide(attempt, b"", "")
        assert CANARY not in verdict.reason


@pytest.mark.parametrize("key", ["auth-flatfile-mail-user", "max-children", "no-such-directive"])
def test_an_error_of_a_line_that_is_none_quotes_no_value(key):
    """A value on a line that is wrong may be a password: `key = value`, `key<TAB>value`."""
    for between in ("=", " = ", "\t", " "):
        errors = errors_of(f"{key}{between}{CANARY}\n")
        assert not re.search(CANARY, "".join(errors))


IN_THE_FILE = {
    "plain": f"auth-vault-password: {CANARY}",
    "CRLF": f"auth-vault-password: {CANARY}\r",
    "with a comment": f"  auth-vault-password :{CANARY}# old",
    "continued": f"auth-vault-password: {CANARY}\\\n{CANARY}",
    "on the next line": f"auth-vault-password: \\\n{CANARY}",
    "key and value continued": f"auth-vault-\\\npassword: {CANARY}",
    "colon on the next line": f"auth-vault-password\\\n: {CANARY}",
}
ERRORS = ("key and value continued", "colon on the next line")
VAULT = """
from tpop3d.config.directive import Directive
class Driver:
    directives = {"password": Directive(str, secret=True), "open": Directive(str)}
    checks_apop = False
    def __init__(self, settings): pass
    def authenticate(self, login): pass
"""


@pytest.mark.parametrize("what", IN_THE_FILE)
def test_no_session_has_a_secret_of_the_configuration_in_its_memory(tmp_path, what):
    """Whatever a client makes a session give away, it is not the database's password."""
    env = foreign_driver(tmp_path, "vault", VAULT)
    conf = tmp_path / "tpop3d.conf"
    known = b"the-memory-is-really-read"
    # A long value: of a short one nothing would be left in freed memory, even if it had been read.
    lines = IN_THE_FILE[what].replace(CANARY, CANARY * 3000)
    wrong = what in ERRORS
    content = f"auth-vault-enable: yes\n{lines}\nmailbox: /{known.decode()}/x\n"
    conf.touch(mode=0o600)
    conf.write_text(text_of(at_door(tmp_path)) + content)
    processes = memory_at_greeting(conf, env, b"-ERR [SYS/PERM]" if wrong else b"+OK")
    assert len(processes) == (1 if wrong or not IS_ROOT else 2)  # the gatekeeper is the other one
    for memory in processes:
        really_read, there = known in memory, C in memory  # and not megabytes in a report
        assert really_read
        assert not there


# With an error in the configuration, too, it is there until it is killed.
STAYS = """
import atexit, signal, sys
atexit.register(signal.pause)
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def memory_at_greeting(conf, env, greeting):
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", STAYS, "--inetd", "-f", str(conf)],
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT | env,
                cwd="/",
            )
        try:
            assert read_line(ours.fileno()).startswith(greeting)
            pids = [process.pid]
            if IS_ROOT:  # nobody else may look at a gatekeeper
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                pids += map(int, children.split())
            return [memory_of(pid) for pid in pids]
        finally:
            process.kill()
            process.wait()


def memory_of(pid):
    """All that a process could write to, as one piece."""
    found = []
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                place, rights = line.split()[:2]
                if rights.startswith("rw") and "[v" not in line:
                    start, end = (int(one, 16) for one in place.split("-"))
                    memory.seek(start)
                    found.append(memory.read(end - start))
    except PermissionError as error:
        pytest.skip(f"another process's memory cannot be read here: {error}")
    return b"".join(found)
