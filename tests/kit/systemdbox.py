"""A real systemd, PID 1 of namespaces of its own: systemdsite.py puts the server into it.

It boots in a fraction of a second, has its own network, and leaves nothing. The machine's own
PID 1 may be anything; systemd needs to be installed, not running.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, overload

import pytest

from mailsite import CHECKOUT, IS_ROOT, PATIENCE, Process, need, poll
from network import socket_in

SCRIPT = CHECKOUT / "tests/kit/systemdbox.sh"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}
DISKS = ("etc", "var", "home")  # what a reboot keeps, besides /opt and /usr/local
POWEROFF = signal.SIGRTMIN + 4  # systemd(1)


def require() -> None:
    """Skip unless a box can be made here."""
    if not IS_ROOT:
        pytest.skip("only root can boot a systemd")
    for program in ("systemctl", "journalctl", "unshare", "nsenter", "setpriv", "pivot_root", "ip"):
        need(program)
    if not importlib.util.find_spec("systemd"):
        pytest.skip("systemd-python is not installed in this Python")
    probe = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", SCRIPT, "probe"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        pytest.skip(f"no namespaces or no cgroup2 for a systemd: {probe.stderr.strip()}")


class SystemdBox:
    """The system. What is in `directory` when it boots is in it; see systemdbox.sh."""

    def __init__(self, system: Path = Path("/")) -> None:
        self.system = system  # whose programs are in it: this one's, or another root's
        self.directory = Path(tempfile.mkdtemp(prefix="tpop3d-box-"))
        self.directory.chmod(0o755)
        for name in ("mnt", "opt/python", "local/bin", "etc", "var", "home"):
            (self.directory / name).mkdir(parents=True)
        # The parent of its PID 1: when one of the two ends, so does the other.
        self.keeper: Process | None = None
        self.pid: int | None = None

    def boot(self) -> None:
        # The keeper dies with us, and its child, PID 1 of the box, with the keeper.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation"]
        with (self.directory / "console").open("wb") as console:
            self.keeper = subprocess.Popen(
                [*command, "private", SCRIPT, "boot", self.directory],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=ENVIRONMENT | {"BOX_PYTHON": sys.base_prefix, "BOX_SYSTEM": str(self.system)},
                start_new_session=True,
            )
        self.pid = poll(self._pid_of_systemd, "systemd to boot", 3 * PATIENCE)
        state = ["systemctl", "is-system-running"]
        poll(lambda: self.run(*state).stdout == "running\n", "its units", 3 * PATIENCE)
        self.systemctl("start", "systemd-journald.service")  # before anybody has a word for it

    def _pid_of_systemd(self) -> int | None:
        console = (self.directory / "console").read_text()
        assert self.keeper is not None
        assert self.keeper.poll() is None, f"the box did not boot: {console}"
        keeper = Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children")
        for child in keeper.read_text().split():
            root = Path(f"/proc/{child}/root/run")  # the machine's, until it is the box's
            if (root / "box").exists() and (root / "systemd/private").exists():
                return int(child)
        return None

    def reboot(self) -> None:
        """Shut it down and boot it again, with what is on its disk."""
        disks = {name: Path(tempfile.mkdtemp(dir=self.directory)) for name in DISKS}
        for name, disk in disks.items():
            subprocess.run(["cp", "-a", f"{self.path(name)}/.", disk], check=True)
        # What systemd-tmpfiles(8) does at boot, which does not run in the box.
        for private in (disks["var"] / "tmp").glob("systemd-private-*"):
            shutil.rmtree(private)
        self._power_off()
        self._clean()
        for name, disk in disks.items():
            shutil.rmtree(self.directory / name)
            disk.rename(self.directory / name)
        self.boot()

    def close(self) -> None:
        """End all that runs in it, and remove what was made for it; mounts go by themselves."""
        try:
            self._power_off()
        finally:
            self._clean()
            shutil.rmtree(self.directory)

    def _power_off(self) -> None:
        if not self.keeper:
            return
        if self.pid:
            os.kill(self.pid, POWEROFF)
        else:
            self.keeper.kill()
        try:
            self.keeper.wait(3 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.keeper.kill()
            self.keeper.wait()
        self.keeper = self.pid = None

    def _clean(self) -> None:
        subprocess.run(
            ["unshare", "--mount", "--propagation", "private", SCRIPT, "clean", self.directory],
            stdin=subprocess.DEVNULL,
            check=True,
        )

    # -- being in it

    @overload
    def run(
        self, *command: str | Path, stdin: int | None = subprocess.DEVNULL, input: str | None = None
    ) -> subprocess.CompletedProcess[str]: ...

    @overload
    def run(
        self, *command: str | Path, text: Literal[False]
    ) -> subprocess.CompletedProcess[bytes]: ...

    def run(
        self,
        *command: str | Path,
        text: bool = True,
        stdin: int | None = subprocess.DEVNULL,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[bytes] | subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--root", "--wd", *spaces, *command],
            stdin=stdin,
            input=input,
            capture_output=True,
            text=text,
            env=ENVIRONMENT,
            timeout=6 * PATIENCE,
        )

    def do(self, *command: str | Path) -> str:
        """Run a command in it that must succeed; returns what it printed."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def systemctl(self, *arguments: str) -> str:
        return self.do("systemctl", *arguments)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit).strip()

    def path(self, inside: str | Path) -> Path:
        """A file of the box as seen from outside."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def pids(self, unit: str) -> list[int]:
        """The processes of a unit, by their numbers outside."""
        group = self.show(unit, "ControlGroup")
        procs = self.path(f"/sys/fs/cgroup{group}/cgroup.procs")
        return [int(pid) for pid in procs.read_text().split()] if group and procs.exists() else []

    def main_pid(self, unit: str) -> int | None:
        """The main process of a unit, by its number outside, or None."""
        inside = self.show(unit, "MainPID")
        for pid in self.pids(unit):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            numbers = re.search(r"^NSpid:(.*)$", status, re.M)
            assert numbers, status
            if numbers[1].split()[-1] == inside:
                return pid
        return None

    def connect(self, host: str = "127.0.0.1", port: int = 110, source: str = "") -> socket.socket:
        """A connection made within the box's network."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        assert self.pid is not None
        connection = socket_in(self.pid, family)
        try:
            connection.settimeout(PATIENCE)
            if source:
                connection.bind((source, 0))
            connection.connect((host, port))
        except BaseException:
            connection.close()
            raise
        return connection
