"""The real server behind real doors: what tests start, speak to and end.

Ports come from the kernel, readiness is waited for, and only what was started here is ended.
"""

import poplib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Self

import pytest

from mailsite import (
    CHECKOUT,
    ENVIRONMENT,
    IS_ROOT,
    PATIENCE,
    Command,
    Process,
    Settings,
    Site,
    end,
    need,
    piped,
    poll,
)

SERVER = [sys.executable, "-m", "tpop3d"]


class Wire:
    """A POP3 conversation in bytes: nothing hidden, nothing repaired."""

    def __init__(
        self,
        reader: BufferedIOBase,
        writer: BufferedIOBase,
        connection: socket.socket | None = None,
    ) -> None:
        self.reader, self.writer = reader, writer
        self.connection = connection
        self.process: Process | None = None  # behind the inetd door
        self.logs: Logs | None = None

    @classmethod
    def on(cls, connection: socket.socket) -> Self:
        connection.settimeout(PATIENCE)
        return cls(connection.makefile("rb"), connection.makefile("wb"), connection)

    def send(self, data: bytes) -> None:
        self.writer.write(data)
        self.writer.flush()

    def line(self) -> bytes:
        """The next line with its line end, or b"" at the end."""
        return self.reader.readline()

    def ask(self, command: str) -> bytes:
        self.send(command.encode() + b"\r\n")
        return self.line()

    def ask_long(self, command: str) -> tuple[bytes, bytes]:
        """The status line, and all lines up to the lone dot, dots unstuffed, as one piece."""
        status = self.ask(command)
        lines = []
        if status.startswith(b"+OK"):
            while (line := self.line()) != b".\r\n":
                assert line, f"{command}: the connection ended within the reply"
                lines.append(line.removeprefix(b"."))
        return status, b"".join(lines)

    def login(self, user: str, password: str = "secret") -> None:
        assert self.line().startswith(b"+OK")
        assert self.ask(f"USER {user}").startswith(b"+OK")
        assert self.ask(f"PASS {password}").startswith(b"+OK")

    def close(self) -> None:
        for stream in (self.reader, self.writer, self.connection):
            if stream:
                try:
                    stream.close()
                except OSError:
                    pass  # what was still buffered for a peer that is gone


class Logs:
    """What a door and the server behind it wrote to stderr; xinetd's own log for xinetd."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()

    def text(self) -> str:
        return self.path.read_text(errors="replace")

    def lines(self) -> list[str]:
        return self.text().splitlines()

    def wait_for(self, pattern: str) -> str:
        """The first line in which the regular expression is found."""
        found = poll(lambda: [line for line in self.lines() if re.search(pattern, line)], pattern)
        return found[0]


class Door:
    """A port on which the server answers."""

    host = "127.0.0.1"

    def __init__(self, port: int, logs: Logs, process: Process | None = None) -> None:
        self.port = port
        self.logs = logs
        self.process = process
        self.opened: list[Wire | poplib.POP3] = []

    def connect(self) -> Wire:
        wire = Wire.on(socket.create_connection((self.host, self.port), PATIENCE))
        self.opened.append(wire)
        return wire

    def poplib(self) -> poplib.POP3:
        client = poplib.POP3(self.host, self.port, PATIENCE)
        self.opened.append(client)
        return client

    def close(self) -> None:
        for client in self.opened:
            client.close()


@contextmanager
def inetd(site: Site, pipes: bool = False) -> Iterator[Wire]:
    """`tpop3d --inetd` on one end of a socket pair, or on two pipes."""
    logs = Logs(site.path / "stderr")
    command = [*SERVER, "--inetd", "-f", str(site.conf)]
    ours, theirs = socket.socketpair()
    with logs.path.open("ab") as stderr, theirs:
        side = subprocess.PIPE if pipes else theirs.fileno()
        process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=stderr, env=ENVIRONMENT, cwd="/"
        )
    if pipes:
        ours.close()
        wire = Wire(*piped(process))
    else:
        wire = Wire.on(ours)
    wire.process, wire.logs = process, logs
    # A pipe knows no timeout: without its writer a read ends.
    watchdog = threading.Timer(6 * PATIENCE, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield wire
    finally:
        wire.close()
        try:
            process.wait(PATIENCE)  # the end of the connection must be enough
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server((Door.host, 0)) as reserved:
        port: int = reserved.getsockname()[1]
    return port


def listening(
    command_for: Callable[[int], Command], logs: Logs, ready: str = "Started working|Listening"
) -> tuple[Process, int]:
    """Start `command_for(port)` on a free port; another process may take it first, so retry.

    It listens when it has logged the regular expression `ready`.
    """
    for _ in range(5):
        port = free_port()
        command = command_for(port)
        with logs.path.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=ENVIRONMENT,
                cwd="/",
            )

        def settled(process: Process = process) -> bool:
            return process.poll() is not None or bool(re.search(ready, logs.text()))

        poll(settled, f"{command[0]} to listen")
        if process.poll() is None and "Started working: 0" not in logs.text():
            return process, port
        end(process)
    raise AssertionError(f"{command[0]} does not listen:\n{logs.text()}")


@contextmanager
def door_of(process: Process, port: int, logs: Logs) -> Iterator[Door]:
    door = Door(port, logs, process)
    try:
        yield door
    finally:
        door.close()
        end(process)


def xinetd(site: Site, *arguments: str) -> AbstractContextManager[Door]:
    """The real xinetd; the server's stderr is the client's connection there.

    By its whole name (NAMEINARGS) Python knows which virtual environment it is in.
    """
    if not IS_ROOT:
        pytest.skip("only root can start services as root behind xinetd")
    program = need("xinetd")
    conf, logs = site.path / "xinetd.conf", Logs(site.path / "xinetd.log")

    def command(port: int) -> Command:
        conf.write_text(f"""
            service tpop3d
            {{
                type = UNLISTED
                socket_type = stream
                protocol = tcp
                wait = no
                user = root
                bind = {Door.host}
                port = {port}
                flags = NAMEINARGS
                server = {SERVER[0]}
                server_args = {" ".join([*SERVER, *arguments])} --inetd -f {site.conf}
                env = PYTHONPATH={CHECKOUT}
                cps = 1000 1
                instances = UNLIMITED
                per_source = UNLIMITED
            }}
        """)
        pidfile = site.path / "xinetd.pid"
        return [program, "-dontfork", "-f", conf, "-pidfile", pidfile, "-filelog", logs.path]

    return door_of(*listening(command, logs), logs)


def activated(
    site: Site, *options: str, arguments: Iterable[str] = ()
) -> AbstractContextManager[Door]:
    """systemd-socket-activate with these options; its stderr is the server's, too."""
    program = need("systemd-socket-activate")
    logs = Logs(site.path / "stderr")

    def command(port: int) -> Command:
        variables = [f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()]
        listen = ["-l", f"{Door.host}:{port}", *options]
        return [program, *listen, *variables, *SERVER, *arguments, "-f", site.conf]

    return door_of(*listening(command, logs), logs)


def systemd_accept(site: Site) -> AbstractContextManager[Door]:
    """systemd's Accept=yes with StandardInput=socket, without a systemd."""
    return activated(site, "--accept", "--inetd", arguments=["--inetd"])


def standalone(
    site: Site, *arguments: str, host: str = "127.0.0.1", settings: Settings | None = None
) -> AbstractContextManager[Door]:
    """The listener on an address of its configuration, in the foreground."""
    logs = Logs(site.path / "stderr")

    def command(port: int) -> Command:
        listen = {"listen-address": f"{host}:{port}", "max-children-per-source": 0}
        site.configure({**listen, **(settings or {})})
        return [*SERVER, "-d", "-f", str(site.conf), *arguments]

    return door_of(*listening(command, logs, "listening on"), logs)


TCP_DOORS: dict[str, Callable[[Site], AbstractContextManager[Door]]] = {
    "xinetd": xinetd,
    "systemd-socket-activate": systemd_accept,
    "listener": standalone,
}

MODES = ["immediate", "stls"]


def xinetd_tls(site: Site, mode: str) -> AbstractContextManager[Door]:
    return xinetd(site, *(["--tls"] if mode == "immediate" else []))


def systemd_tls(site: Site, mode: str) -> AbstractContextManager[Door]:
    """A connected socket, which says by its name that it is for TLS."""
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed in this Python")
    return activated(site, "--accept", *(["--fdname=pop3s"] if mode == "immediate" else []))


@contextmanager
def standalone_tls(site: Site, mode: str) -> Iterator[Door]:
    """The listener on two addresses, of which one is the door."""
    logs = Logs(site.path / "stderr")
    ports: dict[str, int] = {}

    def command(port: int) -> Command:
        ports.update({mode: port, MODES[MODES.index(mode) - 1]: free_port()})
        listen = " ".join(f"{Door.host}:{number};tls={its}" for its, number in ports.items())
        site.configure({"listen-address": listen, "max-children-per-source": 0})
        return [*SERVER, "-d", "-f", str(site.conf)]

    with door_of(*listening(command, logs, "listening on"), logs) as door:
        yield door


# Each is for a site that has a certificate, and for one of MODES.
TLS_DOORS: dict[str, Callable[[Site, str], AbstractContextManager[Door]]] = {
    "xinetd": xinetd_tls,
    "systemd-socket-activate": systemd_tls,
    "listener": standalone_tls,
}


@contextmanager
def demo(directory: Path) -> Iterator[Door]:
    """`tpop3d --demo` as someone tries it from a checkout: with nothing installed (-S)."""
    logs = Logs(directory / "demo")
    with logs.path.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-S", "-m", "tpop3d", "--demo", "0"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=ENVIRONMENT | {"PYTHONPATH": "", "TMPDIR": str(directory)},
            cwd=CHECKOUT,
        )
    try:
        poll(lambda: process.poll() is not None or "^C ends" in logs.text(), "the demo's welcome")
        port = re.search(r"127\.0\.0\.1, port (\d+)", logs.text())
        assert port, logs.text()
        door = Door(int(port[1]), logs, process)
        yield door
        door.close()
    finally:
        end(process)
