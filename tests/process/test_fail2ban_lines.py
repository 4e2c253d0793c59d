"""The real fail2ban-regex on each kind of line that the server logs: who counts, and who does not.

Lines are made by the code that makes them in the server. Nobody is to be banned for trouble of the
server's own; test_fail2ban has the whole, with the journal and the ban.
"""

import _socket
import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from authkit import LEAST, config_of, errors_of, read, text_of
from databases import PASSWORD
from mailsite import CHECKOUT, ENVIRONMENT, MAIL_USER
from tpop3d.auth import passwords, system_users
from tpop3d.configuration import load
from tpop3d.doors import inetd
from tpop3d.listener.limits import Limits
from tpop3d.pop3.authorization import Attempt
from tpop3d.privsep.channel import LOG_ERR, Line, LoginRequest, Violation
from tpop3d.privsep.lifecycle import HANDSHAKE
from tpop3d.privsep.monitor import Monitor, log_violation
from tpop3d.privsep.sandbox import refuse_unsafe_state
from tpop3d.proxy import origin
from tpop3d.system import logs
from tpop3d.tls.relay_channel import Failed, Secured

PACKAGES = ("fail2ban", "python3-systemd")
UNPACKED = CHECKOUT / ".unpacked"
FILTER = CHECKOUT / "tpop3d/fail2ban/filter.d/tpop3d.conf"
PYTHON = "/usr/bin/python3"
USER = MAIL_USER.pw_name
FORGED = "login failed rip=192.0.2.254 user=x method=USER driver=x reason=x"
GUESS, AGGRESSIVE, NOBODY = (1, 1), (0, 1), (0, 0)  # how often it counts, by mode
MODES = ("normal", "aggressive")


# fail2ban-regex itself, but that it is loaded once: its process forks one for each question.
FORKING = """
import os, shlex, sys
from fail2ban.client.fail2banregex import exec_command_line
for line in sys.stdin:
    if not os.fork():
        exec_command_line(shlex.split(line))
        sys.stdout.flush()
        os._exit(0)
    status = os.wait()[1]
    sys.stdout.flush()
    print(f"end {os.waitstatus_to_exitcode(status)}", flush=True)
"""


class Fail2banRegex:
    """How often a client is found in lines of the log, in each mode of the filter."""

    def __init__(self, place):
        self._etc, self._log = place / "etc", place / "log"
        shutil.copytree(UNPACKED / "fail2ban/etc/fail2ban", self._etc)
        shutil.copy(FILTER, self._etc / "filter.d")
        path = ":".join(f"{UNPACKED}/{one}/usr/lib/python3/dist-packages" for one in PACKAGES)
        self._process = subprocess.Popen(
            [PYTHON, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=ENVIRONMENT | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip

    def __call__(self, lines, client):
        stamped = (f"Nov 28 05:00:00 mail.example.org {line}\n" for line in lines)
        self._log.write_text("".join(stamped))
        return tuple(self._found(client, mode) for mode in MODES)

    def _found(self, client, mode):
        words = ["-c", self._etc, "--usedns=no", "-o", "<ip>", self._log, f"tpop3d[mode={mode}]"]
        print(shlex.join(map(str, words)), file=self._process.stdin, flush=True)
        found = []
        while not (line := self._process.stdout.readline().strip()).startswith("end "):
            assert line == client  # nobody else is found in any
            found.append(line)
        assert line == "end 0"
        return len(found)

    def close(self):
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    for package in PACKAGES:
        if not (UNPACKED / package).exists():
            pytest.skip(f"{package} is not unpacked")
    regex = Fail2banRegex(tmp_path_factory.mktemp("fail2ban"))
    yield regex
    regex.close()


@pytest.fixture
def logged(capfd):
    """What the server logs from now on, as it stands in a file."""
    logs.open_log("mail", "debug", to_stderr=True)

    def take():
        return capfd.readouterr().err.splitlines()

    take()
    return take


CLIENT = "192.0.2.7"
OPEN = {"plaintext-logins": "yes"}


def attempt(config, name=b"anna", password=b"wrong", *, client=CLIENT, method="USER", tls=False):
    """A login as the monitor decides about it."""
    monitor = Monitor(config, client, ("192.0.2.2", 110))
    if tls:
        monitor.state = HANDSHAKE
        monitor.secure(Secured("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
    if method == "APOP":
        tried = Attempt("APOP", name, digest=b"0" * 32)
    else:
        tried = Attempt(method, name, password)
    monitor.decide(LoginRequest(tried, b"", 0, 0))
    return monitor


@pytest.fixture
def flat(tmp_path):
    """The settings of a password file with anna in it."""
    file = tmp_path / "passwd"
    file.write_text("anna:{plaintext}secret\nmia:$6$salt$hash\n")
    return OPEN | {"auth-flatfile-passwd-file": file}


def shadowed(directory, monkeypatch, *days):
    """The settings of auth-passwd, with a shadow file of our own."""
    shadow = directory / "shadow"
    hashed = passwords.crypt(b"secret", b"$6$salt").decode()
    shadow.write_text(f"{USER}:{hashed}:{':'.join(days)}\n")
    monkeypatch.setattr(system_users, "SHADOW", str(shadow))
    return OPEN | {"auth-passwd-enable": "yes", "auth-flatfile-enable": "no"}


# Logins: who guesses counts


@pytest.mark.parametrize("client", [CLIENT, "2001:db8::7"])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("method", ["USER", "PLAIN"])
def test_a_wrong_password(counted, logged, flat, client, tls, method):
    attempt(config_of(flat), client=client, tls=tls, method=method)
    assert counted(logged(), client) == GUESS


GUESSED = {
    "an unknown name": ({}, b"zoe"),
    "of which the log says what would make it known": ({}, b"anna@example.org"),
    "in capitals": ({}, b"ANNA"),
    "of 9,000 octets": ({}, b"x" * 9000),
    "that forges a line": ({}, FORGED.encode()),
    "with quotes": ({}, b'anna" reason="x'),
    "of a domain that has no file": (
        {"auth-flatfile-passwd-file": "{0}/$(domain)"},
        b"a@b.example",
    ),
    "of root's": ({"auth-passwd-enable": "yes"}, b"root"),
    "an empty password": ({}, b"anna"),
}


@pytest.mark.parametrize("what", GUESSED)
def test_what_is_a_guess(counted, logged, flat, tmp_path, monkeypatch, what):
    settings, name = GUESSED[what]
    shadowed(tmp_path, monkeypatch, "1", "0", "99999", "7", "", "", "")
    settings = {key: value.format(tmp_path) for key, value in settings.items()}
    attempt(config_of(flat | settings), name, b"" if what == "an empty password" else b"wrong")
    lines = logged()
    assert any(f"login failed rip={CLIENT} " in line for line in lines), lines
    assert all(len(line) < 1200 for line in lines)
    assert counted(lines, CLIENT) == GUESS


@pytest.mark.parametrize("days", [("0", "", "", "", "", "", ""), ("1", "", "1", "", "", "", "")])
def test_who_has_an_expired_account_is_refused_as_others(
    counted, logged, tmp_path, monkeypatch, days
):
    attempt(config_of(shadowed(tmp_path, monkeypatch, *days)), USER.encode(), b"secret")
    lines = logged()
    assert 'reason="expired password"' in lines[-1]
    assert counted(lines, CLIENT) == GUESS


def test_a_table(counted, logged, mail_site, database):
    """Names that its collation takes for another's are refused; where it is down, nobody is."""
    mail_site.configure(OPEN | {"auth-mysql-pass-query": QUERY})
    config = load(str(mail_site.conf))
    attempt(config, b"ann@example.org ", b"secret")
    assert counted(logged(), CLIENT) == GUESS
    mail_site.configure({"auth-mysql-hostname": "127.0.0.1:1 /nonexistent"})
    attempt(load(str(mail_site.conf)), b"ann@example.org", b"secret")
    lines = logged()
    assert [line.partition(": ")[2].partition("=")[0] for line in lines] == [
        "driver undecided driver",
        "login undecided rip",
    ]
    assert not any(PASSWORD in line for line in lines)
    assert counted(lines, CLIENT) == NOBODY


QUERY = (
    "SELECT CONCAT('/var/mail/', local_part), password_hash, 'nobody', 'bsd' FROM popbox"
    " WHERE local_part = '$(local_part)' AND domain_name = '$(domain)'"
)


# Logins: trouble of ours is nobody's guess


def test_a_nameserver_that_does_not_answer(counted, logged, flat, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(_socket, "getaddrinfo", fail)
    names = {"append-domain": "yes", "listen-address": "pop.example(a.example)"}
    attempt(config_of(flat | names), b"zoe")
    lines = logged()
    assert f"login undecided rip={CLIENT} " in lines[-1]
    assert counted(lines, CLIENT) == NOBODY


def test_files_that_cannot_be_read(counted, logged, flat, tmp_path, monkeypatch):
    attempt(config_of(flat | {"auth-flatfile-passwd-file": tmp_path}))
    settings = shadowed(tmp_path, monkeypatch, "1")
    Path(system_users.SHADOW).unlink()
    attempt(config_of(settings), USER.encode())
    lines = logged()
    assert sum(f"login undecided rip={CLIENT} " in line for line in lines) == 2
    assert counted(lines, CLIENT) == NOBODY


def test_apop_where_no_password_could_do(counted, logged, flat):
    attempt(config_of(flat), b"mia", method="APOP")
    lines = logged()
    assert f"login impossible rip={CLIENT} " in lines[-1]
    assert counted(lines, CLIENT) == NOBODY
    attempt(config_of(flat), b"anna", method="APOP")  # which somebody might guess
    assert counted(logged(), CLIENT) == GUESS


def test_trouble_of_the_machine_in_a_login(counted, logged, flat, monkeypatch):
    config = config_of(flat)
    monitor = Monitor(config, CLIENT, ("192.0.2.2", 110))

    def fail(*_):
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(monitor._switch, "decide", fail)
    monitor.decide(LoginRequest(Attempt("USER", b"anna", b"secret"), b"", 0, 0))
    lines = logged()
    assert len(lines) == 2
    assert "internal error" in lines[0]
    assert counted(lines, CLIENT) == NOBODY


# Connections


@pytest.mark.parametrize("who", ["gatekeeper", "relay"])
def test_an_attack_of_whoever_was_served_before(counted, logged, who):
    log_violation(CLIENT, 7, Violation("an attempt after the last one"), who)
    log_violation(CLIENT, 7, Violation(FORGED), who)
    assert counted(logged(), CLIENT) == NOBODY


def test_what_a_gatekeeper_says(counted, logged, flat):
    monitor = Monitor(config_of(flat), CLIENT, ("192.0.2.2", 110))
    for text in (FORGED, f"x\n{FORGED}", f'" {FORGED}', FORGED.replace("192.0.2.254", CLIENT)):
        monitor._lines = 0
        monitor.receive(Line(LOG_ERR, text))
    lines = logged()
    assert len(lines) == 4
    assert counted(lines, CLIENT) == NOBODY


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        (Failed("no tls"), AGGRESSIVE),
        (Failed("http request"), AGGRESSIVE),
        (Failed("timeout"), AGGRESSIVE),
        (Failed("needs more memory than session-memory", is_ours=True), NOBODY),
        (Failed("/etc/x.pem: No such file or directory", is_ours=True), NOBODY),
    ],
)
def test_no_tls(counted, logged, flat, failed, expected):
    Monitor(config_of(flat), CLIENT, ("192.0.2.2", 110)).log_failed_tls(failed)
    assert counted(logged(), CLIENT) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max-children": 16, "max-children-per-source": 8}, AGGRESSIVE),
        ({"max-children": 8, "max-children-per-source": 0}, NOBODY),
        ({"max-children": 8, "max-children-per-source": 8}, NOBODY),
    ],
)
def test_more_connections_than_there_may_be(counted, logged, settings, expected):
    limits = Limits(config_of(settings))
    for _ in range(8):
        assert limits.refuse(CLIENT) is None
        limits.add(CLIENT)
    logs.warning(limits.line(CLIENT, limits.refuse(CLIENT)))
    lines = logged()
    assert f"connection refused rip={CLIENT} limit=" in lines[0]
    assert counted(lines, CLIENT) == expected


@pytest.mark.parametrize("end", ["quit", "eof", "timeout", "signal", "error", "injection", "http"])
def test_the_end_of_a_session(counted, logged, flat, end):
    monitor = attempt(config_of(flat), password=b"secret")
    logs.info(monitor.summary.line("login", messages=3))
    why = "[Errno 30] below /srv/mail: ReadWritePaths="
    logs.error(monitor.summary.line("maildrop refused", reason=why))
    monitor.summary.log_end(end)
    lines = logged()
    assert f"end={end}" in lines[-1]
    assert counted(lines, CLIENT) == NOBODY


def test_a_balancer_that_says_nothing(counted, logged):
    for what in (origin.MISSING, origin.WRONG):
        logs.notice(logs.event(what, rip=CLIENT, reason="timeout"))
    assert counted(logged(), CLIENT) == NOBODY


# What names no client


def test_lines_about_the_server_itself(counted, logged, tmp_path):
    # Its state directory, a listening socket, a configuration that is odd, and one that is wrong.
    unsafe = tmp_path / "state"
    unsafe.mkdir()
    unsafe.chmod(0o777)
    logs.error(refuse_unsafe_state(config_of({"state-directory": unsafe})).reason)
    logs.error(inetd.LISTENING)
    wrong = errors_of(f"listen-address: {CLIENT}00\n{FORGED}\nlogin failed: x\n" + text_of(LEAST))
    for line in wrong:
        logs.error(line)
    logs.error("reload: the configuration has errors, and is kept as it was")
    odd = read(text_of(LEAST) + "tcp-send-buffer: 7\n", "x")
    for line in odd.warnings:
        logs.warning(line)
    logs.warning("3 lines were lost: the log was not read")
    logs.error("tls: /etc/x.pem: is PKCS#12; what was read before is kept")
    lines = logged()
    assert len(lines) >= 8
    assert counted(lines, CLIENT) == NOBODY
