"""A network of our own, in which clients come from elsewhere."""

import ctypes
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import doors
from mailsite import ENVIRONMENT, IS_ROOT, PATIENCE, Command, Site, end, need, piped

CLONE_NEWNET = 0x40000000
OUTSIDE = ("192.0.2.7", "2001:db8::7")
UP = """
ip link set lo up
ip address add {}/32 dev lo
ip address add {}/128 dev lo nodad
echo up
exec cat
"""


def socket_in(pid: int, family: int = socket.AF_INET) -> socket.socket:
    """A socket belongs to the network that the thread which makes it is in."""
    made: list[socket.socket] = []

    def make() -> None:
        with open(f"/proc/{pid}/ns/net", "rb") as network:
            if not ctypes.CDLL(None).setns(network.fileno(), CLONE_NEWNET):
                made.append(socket.socket(family))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class Network:
    """It has the loopback addresses, and those of `OUTSIDE`, which are no loopback addresses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def command(self, *words: str | Path) -> Command:
        """A command that runs in it."""
        return [need("nsenter"), f"--net=/proc/{self.pid}/ns/net", *words]

    def connect(self, host: str, port: int) -> doors.Wire:
        """A connection from an address to itself."""
        connection = socket_in(self.pid, socket.AF_INET6 if ":" in host else socket.AF_INET)
        connection.settimeout(PATIENCE)
        connection.connect((host, port))
        return doors.Wire.on(connection)

    @contextmanager
    def inetd(self, site: Site, host: str) -> Iterator[doors.Wire]:
        """`tpop3d --inetd` on one end of such a connection."""
        logs = doors.Logs(site.path / "stderr")
        with socket_in(self.pid, socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
            listening.bind((host, 0))
            listening.listen()
            wire = self.connect(host, listening.getsockname()[1])
            theirs, _ = listening.accept()
        with theirs, logs.path.open("wb") as stderr:
            process = subprocess.Popen(
                [*doors.SERVER, "--inetd", "-f", str(site.conf)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=stderr,
                env=ENVIRONMENT,
                cwd="/",
            )
        wire.logs = logs
        try:
            yield wire
        finally:
            wire.close()
            process.wait(PATIENCE)


@contextmanager
def network() -> Iterator[Network]:
    if not IS_ROOT:
        pytest.skip("only root can make a network")
    need("ip")
    holder = subprocess.Popen(
        [need("unshare"), "--net", "sh", "-ec", UP.format(*OUTSIDE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    output, held = piped(holder)
    try:
        if output.readline() != b"up\n":
            pytest.skip("no network of our own can be made here")
        yield Network(holder.pid)
    finally:
        end(holder)
        held.close()
        output.close()
