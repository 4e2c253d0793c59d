"""A system's user with a home directory of her own, on whatever file system: what tests share.

The server runs in a mount namespace, in which there are this user, by its own /etc/passwd and
/etc/shadow, and what a test mounts; it ends with the server.
"""

import functools
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import doors
from authkit import SERVER, Ended, converse
from mailsite import ENVIRONMENT, IS_ROOT, PATIENCE, Site, need
from spools import mbox
from systemdsite import SHA512_OF_SECRET
from trying import Outcome

UID, GID = 2001, 2002
HERS = mbox(b"Subject: hers\n\n1\n")
OTHER = mbox(b"Subject: other\n\n1\n", b"Subject: other\n\n2\n")
# Root as it is on a file server that squashes it: what it may not read, it may not read.
SQUASHED = "setpriv --bounding-set -dac_override,-dac_read_search"

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")


@functools.cache
def require() -> None:
    """Skip where there can be no namespace."""
    done = subprocess.run([need("unshare"), "-m", "true"], capture_output=True)
    if done.returncode:
        pytest.skip("there are no mount namespaces here")


class House:
    """The site of anna: `home` with her mailbox, and a second mailbox, with other mail."""

    def __init__(self, site: Site) -> None:
        require()
        self.site = site
        self.home = site.path / "home" / "anna"
        self.mailbox = self.home / "Mailbox"
        self.second = site.spools / "anna"
        self.home.parent.mkdir(mode=0o755)
        self.home.mkdir(mode=0o700)
        self.mailbox.write_bytes(HERS)
        self.second.write_bytes(OTHER)
        self.give(self.home, self.mailbox, self.second)
        for path in (self.mailbox, self.second):
            path.chmod(0o600)
        self._users(str(self.home))
        site.configure(
            {
                "auth-flatfile-enable": "no",
                "auth-passwd-enable": "yes",
                "mailbox": f"$(home)/Mailbox {site.spools}/$(user)",
                "lock-timeout-seconds": 2,
            }
        )

    def give(self, *paths: Path) -> None:
        """What is hers."""
        for path in paths:
            os.chown(path, UID, GID, follow_symlinks=False)

    def move(self, home: str | Path) -> None:
        """Her home directory is elsewhere, by /etc/passwd."""
        self._users(str(home))

    def _users(self, home: str) -> None:
        path = self.site.path
        line = f"anna:x:{UID}:{GID}::{home}:/bin/sh\n"
        (path / "etc-passwd").write_text(Path("/etc/passwd").read_text() + line)
        (path / "etc-shadow").touch(mode=0o600)
        (path / "etc-shadow").write_text(f"anna:{SHA512_OF_SECRET}:19000:0:99999:7:::\n")

    def command(self, first: str = "true", wrapper: str = "") -> list[str]:
        """The server, after the shell's `first` in its namespace, under `wrapper`."""
        path = shlex.quote(str(self.site.path))
        script = f"mount --bind {path}/etc-passwd /etc/passwd || exit 99\n"
        script += f"mount --bind {path}/etc-shadow /etc/shadow || exit 99\n"
        script += f'{first} || exit 99\n exec {wrapper} "$@"'
        unshared = [need("unshare"), "-m", "--propagation", "private"]
        return [*unshared, "sh", "-c", script, "sh", *SERVER]

    def session(
        self,
        first: str = "true",
        wrapper: str = "",
        user: str = "anna",
        then: bytes = b"STAT\r\nQUIT\r\n",
    ) -> Ended:
        """A session of hers, with all of its output."""
        script = b"USER %s\r\nPASS secret\r\n%s" % (user.encode(), then)
        command = [*self.command(first, wrapper), "--inetd"]
        ended = converse(self.site.conf, script, command=command)
        assert len(ended.lines) > 2, ended.stderr
        return ended

    @contextmanager
    def conversation(self, first: str = "true") -> Iterator[doors.Wire]:
        """A session of hers that is not over, behind the login."""
        ours, theirs = socket.socketpair()
        with theirs, (self.site.path / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [*self.command(first), "--inetd", "-f", str(self.site.conf)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=stderr,
                env=ENVIRONMENT,
                cwd="/",
            )
        wire = doors.Wire.on(ours)
        try:
            wire.login("anna")
            yield wire
        finally:
            wire.close()
            try:
                process.wait(PATIENCE)  # the end of the connection must be enough
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def status(self) -> dict[str, list[str]]:
        """What the kernel says of her process, by its keys."""
        for pid in self.site.processes():
            text = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in text.splitlines())
            if fields["Uid"].split() == [str(UID)] * 4:
                return {key: value.split() for key, value in fields.items()}
        raise AssertionError("she has no process")

    def attempt(self, first: str = "true", wrapper: str = "", user: str = "anna") -> Outcome:
        """`--test-login` for her."""
        command = [*self.command(first, wrapper), "--test-login", user]
        done = subprocess.run(
            [*command, "-f", str(self.site.conf)],
            input=b"secret\n",
            capture_output=True,
            env=ENVIRONMENT,
            cwd="/",
            timeout=PATIENCE,
        )
        return Outcome(done)
