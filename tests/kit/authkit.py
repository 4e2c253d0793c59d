"""What the tests of logins, configuration and the command line share."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from mailsite import CHECKOUT, ENVIRONMENT, IS_ROOT, MAIL_USER, PATIENCE, Command, Settings
from tpop3d.auth.driver import Account, Login, Verdict
from tpop3d.configuration import WrongConfiguration, load, read
from tpop3d.settings import Config

SERVER = [sys.executable, "-m", "tpop3d"]
CANARY = "hunter2-sesame"  # a password that must turn up nowhere
PERFECT = Account(b"ann", 1000, 1000, ["/var/mail/ann"])

# What --check-config says of a configuration that leaves TLS out.
NO_TLS = (
    "warning: only clients on this host can log in: plaintext-logins is local and there is no"
    " tls-certificate\n"
)
# Enough for a configuration that somebody could log in with.
LEAST = {
    "gatekeeper-user": "nobody",
    "auth-flatfile-enable": "yes",
    "auth-flatfile-passwd-file": "/dev/null",
    "auth-flatfile-mail-user": MAIL_USER.pw_name,
}


def at_door(directory: Path) -> dict[str, str]:
    """What any configuration needs to open a door with, also as root, and leave no trace."""
    return {"gatekeeper-user": "nobody", "state-directory": f"{directory}/state"}


def text_of(settings: Settings) -> str:
    """The file of these settings; the value None leaves a directive out."""
    return "".join(f"{key}: {value}\n" for key, value in settings.items() if value is not None)


def config_of(settings: Settings | None = None, **more: object) -> Config:
    """The configuration of `settings`; keywords are directives with underscores."""
    more = {key.replace("_", "-"): value for key, value in more.items()}
    return read(text_of({**LEAST, **(settings or {}), **more}), "test.conf")


def errors_of(content: str) -> list[str]:
    """The errors of a configuration that has some."""
    with pytest.raises(WrongConfiguration) as caught:
        read(content, "test.conf")
    return caught.value.problems


def errors_in(file: Path | str) -> list[str]:
    """The same of a file."""
    with pytest.raises(WrongConfiguration) as caught:
        load(str(file))
    return caught.value.problems


def login(
    local_part: bytes,
    domain: bytes = b"",
    password: bytes | None = b"secret",
    *,
    timestamp: bytes = b"",
    digest: bytes = b"",
    client: str = "",
) -> Login:
    return Login(
        local_part, domain, password=password, timestamp=timestamp, digest=digest, client=client
    )


Answer = Verdict | BaseException


class Stub:
    """A driver that answers what it was told to, and remembers whom it was asked about."""

    checks_apop = False
    own_process = False

    def __init__(self, answers: Answer | Mapping[bytes, Answer], checks_apop: bool = False) -> None:
        self.answers = answers
        self.checks_apop = checks_apop
        self.asked: list[Login] = []

    def authenticate(self, login: Login) -> Verdict:
        self.asked.append(login)
        answers = self.answers
        if isinstance(answers, Mapping):
            answer = answers.get(login.name, Verdict.no("unknown user"))
        else:
            answer = answers
        if isinstance(answer, BaseException):
            raise answer
        return answer


def tpop3d(
    *arguments: object,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    input: bytes | None = None,
    env: Mapping[str, str] = ENVIRONMENT,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command, with neither a connection nor a terminal as its stdin."""
    return subprocess.run(
        [*SERVER, *map(str, arguments)],
        stdin=stdin,
        input=input,
        env=env,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        cwd="/",
    )


class Ended:
    """A session that is over: what the client saw, what stderr got, the exit code."""

    def __init__(self, client: bytes, stderr: bytes, status: int) -> None:
        self.client, self.stderr, self.status = client, stderr, status

    @property
    def lines(self) -> list[bytes]:
        return self.client.split(b"\r\n")[:-1]


def converse(
    conf: Path,
    script: bytes,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    fd2: str = "pipe",
    command: Command | None = None,
) -> Ended:
    """One session over a socket pair: send `script`, hang up, and read all there is.

    fd2: a "pipe", the "client"'s socket as under xinetd, or "closed".
    """
    ours, theirs = socket.socketpair()
    words = [*(command or [*SERVER, "--inetd"]), "-f", str(conf), *arguments]
    if fd2 == "closed":
        words = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *words]
    with ours:
        with theirs:
            process = subprocess.Popen(
                words,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=theirs.fileno() if fd2 == "client" else subprocess.PIPE,
                env={**ENVIRONMENT, **(env or {})},
                cwd="/",
            )
        try:
            ours.sendall(script)
            ours.shutdown(socket.SHUT_WR)
            ours.settimeout(PATIENCE)
            client = b""
            with suppress(ConnectionResetError):  # it ended without reading all of the script
                while part := ours.recv(65536):
                    client += part
            stderr = process.communicate(timeout=PATIENCE)[1] or b""
        finally:
            process.kill()
            process.communicate()
    return Ended(client, stderr, process.returncode)


def read_line(fd: int, seconds: float = PATIENCE) -> bytes:
    """One line from a descriptor, or what came of it before its end."""
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"only {line!r} within {seconds} s"
        octet = os.read(fd, 1)
        if not octet:
            break
        line += octet
    return line


def foreign_driver(
    directory: Path, name: str, code: str, module: str = "a_foreign_driver"
) -> dict[str, str]:
    """Install a distribution with a driver `name`; returns the environment that finds it."""
    (directory / f"{module}.py").write_text(code)
    info = directory / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tpop3d.auth]\n{name} = {module}:Driver\n")
    return also_importing(directory)


def also_importing(directory: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{directory}{os.pathsep}{CHECKOUT}"}


def recorded_syslog(directory: Path) -> tuple[dict[str, str], Path]:
    """Environment and file: what a server sends to syslog also goes to the file.

    The real call is made first, so what that refuses is refused.
    """
    record = directory / "syslog"
    record.touch()
    record.chmod(0o666)
    (directory / "sitecustomize.py").write_text(
        "import fcntl, os\n"
        f"low = os.open({str(record)!r}, os.O_WRONLY | os.O_APPEND)\n"
        "fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 100)\n"  # 2 may be free, and must stay so
        "os.close(low)\n"
        "from tpop3d.system.outlets import Syslog\n"
        "real = Syslog.write\n"
        "def record(self, level, line):\n"
        "    real(self, level, line)\n"
        "    os.write(fd, line.encode() + b'\\n')\n"
        "Syslog.write = record\n"
    )
    return also_importing(directory), record


def but_for_syslogd(text: str) -> str:
    """What --check-config says on stderr, without the warning of a machine that has no /dev/log."""
    return "".join(line for line in text.splitlines(keepends=True) if "/dev/log" not in line)


def give_to_mail_user(path: Path) -> None:
    if IS_ROOT:
        os.chown(path, MAIL_USER.pw_uid, MAIL_USER.pw_gid)
