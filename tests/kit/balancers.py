"""haproxy, the real one, in front of the server: it carries octets, and says for whom."""

import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import doors
from mailsite import ENVIRONMENT, PATIENCE, Site, end, need

CONF = """
global
    maxconn 200
    log stdout format raw local0
defaults
    mode tcp
    log global
    timeout check {patience}s
    timeout connect {patience}s
    timeout client {patience}s
    timeout server {patience}s
listen pop3
    bind fd@{fd} {bind}
    {more}
    server tpop3d {backend} {send} {check}
"""
SENDS = {"v1": "send-proxy", "v2": "send-proxy-v2"}


@contextmanager
def haproxy(
    site: Site,
    backend: int | str,
    send: str = "send-proxy-v2",
    *,
    bind: str = "",
    more: Iterable[str] = (),
    check: str = "",
) -> Iterator["Door"]:
    """A door that leads through haproxy to a port of 127.0.0.1; or to "host:port".

    `send` and `check` are options of its server, `bind` those of its own port, which it gets from
    here, open already; `more` are further lines.
    """
    program = need("haproxy")
    place = site.path / "haproxy"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    logs = doors.Logs(place / "log")
    with socket.create_server((doors.Door.host, 0)) as listening:
        fd, port = listening.fileno(), listening.getsockname()[1]
        if isinstance(backend, int):
            backend = f"{doors.Door.host}:{backend}"
        conf = place / "haproxy.cfg"
        conf.write_text(
            CONF.format(
                patience=int(PATIENCE), fd=fd, bind=bind, backend=backend, send=send, check=check,
                more="\n    ".join(more),
            )
        )  # fmt: skip
        with logs.path.open("ab") as output:
            process = subprocess.Popen(
                [program, "-db", "-f", conf],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=ENVIRONMENT, cwd="/", pass_fds=[fd],
            )  # fmt: skip
    door = Door(port, logs)
    try:
        yield door
    finally:
        door.close()
        ended = process.poll()
        end(process)
    assert ended is None, logs.text()


class Door(doors.Door):
    """haproxy's port. On loopback a client may come from any address of 127.0.0.0/8."""

    def connect(self, source: str = "127.0.0.1") -> doors.Wire:
        wire = doors.Wire.on(
            socket.create_connection((self.host, self.port), PATIENCE, (source, 0))
        )
        self.opened.append(wire)
        return wire
