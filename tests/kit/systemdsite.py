"""The server and its unit files, as an administrator would install them, under a real systemd."""

import grp
import importlib.util
import json
import os
import poplib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import doors
from mailsite import CHECKOUT, Settings, poll
from systemdbox import SystemdBox
from tpop3d.pop3.replies import INTERNAL_ERROR, TOO_MANY_CONNECTIONS

UNITS = CHECKOUT / "systemd"
USERS = {"ann": 4711, "bob": 4712}
NEW_USERS = {*USERS, "tpop3d"}
SHA512_OF_SECRET = (
    "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5"
    "hVO1"
)
SETTINGS = {
    "auth-passwd-enable": "yes",
    "auth-passwd-mail-group": "mail",
    "auth-failure-delay-seconds": 0,
    "listen-address": "0.0.0.0",
}

# Not Debian's; perhaps in a home directory, where units need not see it. It is put elsewhere.
OTHER_PYTHON = sys.base_prefix != "/usr"

# Those that the server uses if they are there.
PACKAGES = ("systemd", "crypt_r*", "_crypt_r*", "*seccomp*", "pam*", "MySQLdb", "mysqlclient*")

# Beside the packages and not among them: without it, as most sites are, all else is tested.
SECCOMP = Path(sys.prefix) / "seccomp/pyseccomp.py"

# What pip would install as /usr/local/bin/tpop3d. -I: as there, nothing comes from the environment.
COMMAND = """\
#!{python} -I
import sys
sys.path[:0] = ["/opt/tpop3d/checkout", "/opt/tpop3d/site-packages"]
from tpop3d.cli import main
sys.exit(main())
"""


class Poplib(poplib.POP3):
    """poplib on a connection that is there already."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        super().__init__("localhost")

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return self._connection


class SystemdSite(SystemdBox):
    """The installation; `reset` makes it new for each test."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[doors.Wire | poplib.POP3] = []
        self.cursor = ""
        self.began = 0.0

    def install(self) -> None:
        """What an administrator does, before and after the boot."""
        etc = self.directory / "etc"
        units = etc / "systemd/system"
        units.mkdir(parents=True)
        for unit in [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]:
            shutil.copy(unit, units)
        for kind in ("sysusers.d", "tmpfiles.d"):
            shutil.copytree(UNITS / kind, etc / kind)
        self._furnish_program()
        self._furnish_users()
        self.boot()
        if OTHER_PYTHON:
            # It looks for its library, if that is shared, where it was installed first.
            self.path("/etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
            self.do("ldconfig")
        self.do("systemd-sysusers", "tpop3d.conf")

    def _furnish_program(self) -> None:
        """The server, and of this Python's packages those that it uses if they are there."""
        opt = self.directory / "opt/tpop3d"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / "tpop3d", opt / "checkout/tpop3d", ignore=ignored)
        shutil.copytree(UNITS, opt / "checkout/systemd")
        packages = opt / "site-packages"
        packages.mkdir()
        found = importlib.util.find_spec("systemd")
        assert found is not None
        assert found.origin is not None
        site = Path(found.origin).parent.parent
        for pattern in PACKAGES:
            for package in site.glob(pattern):
                copy = shutil.copytree if package.is_dir() else shutil.copy
                copy(package, packages / package.name)
        # As pip does, since the units cannot write there.
        subprocess.run([sys.executable, "-m", "compileall", "-q", opt / "checkout"], check=True)
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        prefix = "/opt/python" if OTHER_PYTHON else "/usr"
        command = self.directory / "local/bin/tpop3d"
        command.write_text(COMMAND.format(python=f"{prefix}/bin/{name}"))
        command.chmod(0o755)

    def _furnish_users(self) -> None:
        etc = self.directory / "etc"
        lines = {name: Path("/etc", name).read_text() for name in ("passwd", "group")}
        # Made on this machine already, perhaps; the box makes its own.
        for name, text in lines.items():
            lines[name] = "".join(
                line for line in text.splitlines(True) if line.split(":")[0] not in NEW_USERS
            )
        lines["shadow"] = ""
        for user, number in USERS.items():
            lines["passwd"] += f"{user}:x:{number}:{number}::/home/{user}:/bin/sh\n"
            lines["group"] += f"{user}:x:{number}:\n"
            lines["shadow"] += f"{user}:{SHA512_OF_SECRET}:19000:0:99999:7:::\n"
            home = self.directory / "home" / user
            home.mkdir(mode=0o700)
            os.chown(home, number, number)
        spools = self.directory / "var/mail"
        spools.mkdir()
        os.chown(spools, 0, grp.getgrnam("mail").gr_gid)
        spools.chmod(0o2775)
        for name, text in lines.items():
            (etc / name).write_text(text)
        (etc / "shadow").chmod(0o640)

    def reset(self) -> None:
        """As it was installed: nothing of the server's runs, and no test has been here."""
        for client in self.opened:
            client.close()
        self.opened = []
        self.systemctl("stop", "tpop3d*")
        self.systemctl("reset-failed")
        for drop_in in self.path("/etc/systemd/system").glob("tpop3d*.d"):
            shutil.rmtree(drop_in)
        self.systemctl("daemon-reload")
        shutil.rmtree(self.path("/var/lib/tpop3d"), ignore_errors=True)
        self.do("systemd-tmpfiles", "--create", "tpop3d.conf")
        for spool in self.path("/var/mail").iterdir():
            spool.unlink()
        self.configure({})
        self.cursor = self.do("journalctl", "--lines=0", "--show-cursor").split()[-1]
        self.began = time.time()

    # -- what an administrator does

    def configure(self, settings: Settings) -> None:
        """The configuration: what it always has, and `settings`."""
        lines = [f"{key}: {value}\n" for key, value in {**SETTINGS, **settings}.items()]
        self.path("/etc/tpop3d.conf").touch(mode=0o640)  # there may be a password in it
        self.path("/etc/tpop3d.conf").write_text("".join(lines))

    def adapt(self, unit: str, **settings: object) -> None:
        """What `systemctl edit` does; keywords are `Section_Setting`."""
        directory = self.path(f"/etc/systemd/system/{unit}.d")
        directory.mkdir(exist_ok=True)
        lines = []
        for name, value in settings.items():
            section, key = name.split("_")
            reset = f"{key}=\n" if key.startswith("Exec") else ""
            lines.append(f"[{section}]\n{reset}{key}={value}\n")
        (directory / "test.conf").write_text("".join(lines))
        self.systemctl("daemon-reload")

    def journal(self) -> str:
        """What was logged since the test began."""
        return self.do("journalctl", "--output=short", f"--after-cursor={self.cursor}")

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """What journalctl finds of that with `matches`, all fields of each."""
        # With matches, --after-cursor leaves out one too many.
        found = self.do("journalctl", "--output=json", *matches)
        entries = [json.loads(line) for line in found.splitlines()]
        return [one for one in entries if int(one["__REALTIME_TIMESTAMP"]) / 1e6 > self.began]

    def wait_for_journal(self, text: str) -> bool:
        return poll(lambda: text in self.journal(), f"{text!r} in the journal")

    # -- what users have and do

    def add(self, user: str, spool: bytes) -> None:
        path = self.spool(user)
        path.write_bytes(spool)
        path.chmod(0o660)
        os.chown(path, USERS[user], grp.getgrnam("mail").gr_gid)

    def spool(self, user: str) -> Path:
        return self.path(f"/var/mail/{user}")

    def wire(self, host: str = "127.0.0.1", port: int = 110, source: str = "") -> doors.Wire:
        """A conversation; see `connect`."""
        wire = doors.Wire.on(self.connect(host, port, source))
        self.opened.append(wire)
        return wire

    def poplib(self, host: str = "127.0.0.1", port: int = 110) -> Poplib:
        client = Poplib(self.connect(host, port))
        self.opened.append(client)
        return client

    def is_full(self, host: str = "127.0.0.1", port: int = 110, source: str = "") -> bool:
        """Is a new connection turned away, with a word or without?"""
        wire = self.wire(host, port, source)
        line = wire.line()
        wire.close()
        if line.startswith(b"+OK"):
            return False
        assert line in (b"", TOO_MANY_CONNECTIONS, INTERNAL_ERROR.line + b"\r\n")
        return True
