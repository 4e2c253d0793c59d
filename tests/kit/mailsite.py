"""A small mail site for one test: users, mailspools, a configuration file."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TypedDict, TypeVar

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PATH": os.defpath, "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C.UTF-8"}
IS_ROOT = os.geteuid() == 0
MAIL_USER = pwd.getpwnam("nobody") if IS_ROOT else pwd.getpwuid(os.geteuid())
MARK = b"TPOP3D_TEST_SITE="  # in the environment of a site's processes
PATIENCE = 30.0  # seconds; only what is broken takes that long, also on a slow machine

Settings = Mapping[str, object]  # directives; a value goes into the file as str() has it
Command = Sequence[str | Path]
Process = subprocess.Popen[bytes]
Found = TypeVar("Found")


class AsUser(TypedDict, total=False):
    """How `subprocess` is to run a program as the mailbox's user."""

    cwd: Path
    env: dict[str, str]
    user: int
    group: int
    extra_groups: list[int]


def as_mail_user(cwd: Path, env: dict[str, str]) -> AsUser:
    """There, with this environment."""
    how: AsUser = {"cwd": cwd, "env": env}
    if IS_ROOT:
        how |= {"user": MAIL_USER.pw_uid, "group": MAIL_USER.pw_gid, "extra_groups": []}
    return how


def poll(condition: Callable[[], Found | None], why: str, seconds: float = PATIENCE) -> Found:
    """Wait until `condition` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:g} s still waiting for {why}")
        time.sleep(0.01)
    return found


def end(process: Process) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def piped(process: Process) -> tuple[BufferedReader, BufferedWriter]:
    """The stdout and the stdin of a process that was started with pipes for both."""
    assert isinstance(process.stdout, BufferedReader)
    assert isinstance(process.stdin, BufferedWriter)
    return process.stdout, process.stdin


def need(program: str) -> str:
    """The path of a program, or a skipped test."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return path or pytest.skip(f"{program} is not installed")


def has_ipv6() -> bool:
    """Can one listen to ::1 here?"""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def as_ordinary_user(modules: str, uid: int, *arguments: str) -> list[str]:
    """The command for another user, who may not be able to read the interpreter's own files, as
    where it lies in root's home: so that `modules` are loaded before."""
    code = f"""
import os, sys, tpop3d.cli, tpop3d.configuration, {modules}
tpop3d.configuration.load(tpop3d.cli._options(sys.argv[1:]).file)
os.setgroups([])
os.setgid({uid})
os.setuid({uid})
raise SystemExit(tpop3d.cli.main())
"""
    return [sys.executable, "-c", code, *arguments]


def open_directory() -> Path:
    """A temporary directory that every user can enter, other than pytest's."""
    path = Path(tempfile.mkdtemp(prefix="tpop3d-test-"))
    path.chmod(0o755)
    return path


class Site:
    """What one server serves, in a directory of its own."""

    def __init__(self) -> None:
        self.path = open_directory()
        self.conf = self.path / "tpop3d.conf"
        self.passwd = self.path / "passwd"
        self.spools = self.path / "spool"
        self.state = self.path / "state"
        self.spools.mkdir()
        self.give_to_mail_user(self.spools)
        self.state.mkdir(mode=0o755)
        self.passwd.touch(mode=0o600)
        self.settings: dict[str, object] = {}
        ENVIRONMENT[MARK.decode().rstrip("=")] = str(self.conf)
        self.configure(
            {
                "auth-flatfile-enable": "yes",
                "auth-flatfile-passwd-file": self.passwd,
                "auth-flatfile-mail-user": MAIL_USER.pw_name,
                "auth-flatfile-mailbox": f"bsd:{self.spools}/$(local_part)",
                "state-directory": self.state,
                "gatekeeper-user": "nobody",
                "auth-failure-delay-seconds": 1,
                "log-stderr": "yes",
            }
        )

    def configure(self, settings: Settings) -> None:
        """Add or replace directives; the value None removes one."""
        self.settings |= settings
        lines = [f"{key}: {value}\n" for key, value in self.settings.items() if value is not None]
        self.conf.touch(mode=0o640)  # there may be a password in it
        self.conf.write_text("".join(lines))

    def add(self, user: str, spool: bytes = b"", hashed: str = "{plaintext}secret") -> None:
        with self.passwd.open("a") as passwd:
            passwd.write(f"{user}:{hashed}\n")
        self.spool(user).write_bytes(spool)
        self.spool(user).chmod(0o600)
        self.give_to_mail_user(self.spool(user))

    def spool(self, user: str) -> Path:
        return self.spools / user

    def give_to_mail_user(self, path: Path) -> None:
        os.chown(path, MAIL_USER.pw_uid, MAIL_USER.pw_gid)

    def processes(self) -> list[int]:
        """Pids of all that run for this site: their arguments name its configuration file, or did
        before they had a title, which the environment still does."""
        mine = os.fsencode(self.conf)
        pids = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].startswith(b"tpop3d: "):
                    words = (entry / "environ").read_bytes().split(b"\0")
                    words = [word.removeprefix(MARK) for word in words]
            except OSError:
                continue  # gone meanwhile
            if mine in words:
                pids.append(int(entry.name))
        return pids

    def close(self) -> None:
        """Remove it; a server process that outlives its connection is a failure."""
        ENVIRONMENT.pop(MARK.decode().rstrip("="), None)
        try:
            poll(lambda: not self.processes(), "the server's processes to end")
        finally:
            for pid in self.processes():
                os.kill(pid, 9)
            shutil.rmtree(self.path)
