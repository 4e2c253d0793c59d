"""Programs that deliver to mailspools and lock them with flock(2) alone: dma(8), and qmail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mailsite import CHECKOUT, IS_ROOT, PATIENCE, Command, poll
from neighbours import MESSAGE, SENDER, USERS, Deliverer

# Written with so many calls that it shows who does not wait for the last.
LONG = MESSAGE + "a line of many\n" * 3000


class Dma(Deliverer):
    """The DragonFly mailer, as Debian has it: unpacked and not installed.

    It writes a line at a time, and the empty line before a mail: the last one has none behind it,
    and would be glued to what any other program appended. It waits for 100 seconds.
    """

    PROGRAM = CHECKOUT / ".unpacked/dma/usr/sbin/dma"
    SPOOLS = "/var/mail"
    shares = False
    message = LONG

    def prepare(self) -> None:
        if not (IS_ROOT and self.PROGRAM.exists()):
            pytest.skip("dma is not unpacked, or this is not root")
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            pytest.skip("there can be no mount namespace here")
        self.etc, self.queue = self.site.path / "etc", self.site.path / "dma"
        for directory in (self.etc, self.etc / "dma", self.queue):
            directory.mkdir()
        os.chown(self.queue, *self.mail)
        for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
            (self.etc / name).write_bytes(Path("/etc", name).read_bytes())
        with (self.etc / "passwd").open("a") as passwd:
            for user in USERS[1:]:
                passwd.write(f"{user}:x:65533:65533::/:/bin/false\n")
        (self.etc / "aliases").touch()
        (self.etc / "dma/dma.conf").write_text(f"SPOOLDIR {self.queue}\nMAILNAME example.org\n")

    @property
    def mail(self) -> tuple[int, int]:
        """The uid and gid of Debian's user `mail`, which it becomes."""
        (found,) = re.findall(r"^mail:[^:]*:(\d+):(\d+):", Path("/etc/passwd").read_text(), re.M)
        return int(found[0]), int(found[1])

    def run(self, spool: Path, said: bytes) -> subprocess.CompletedProcess[bytes]:
        """It knows only paths of its own, and users of the system: it gets a mount namespace."""
        os.chown(spool, -1, self.mail[1])
        spool.chmod(0o660)
        mounts = f"mount --bind {spool.parent} {self.SPOOLS} && mount --bind {self.etc} /etc"
        program = f"exec {self.PROGRAM} -D -i -f {SENDER} {spool.name}"
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{mounts} && {program}"],
            input=said,
            capture_output=True,
            timeout=12 * PATIENCE,
        )

    def finish(self) -> None:
        """What it could not deliver it would keep for another time."""
        poll(lambda: not list(self.queue.iterdir()), "dma's queue to be empty", PATIENCE)


class Qmail(Deliverer):
    """What qmail-local(8) does: no Debian has it. It waits for 30 seconds."""

    TEMPFAIL = 111
    PROGRAM = Path(__file__).with_name("qmail_local.py")
    shares = False
    message = LONG

    def prepare(self) -> None:
        self.code = self.PROGRAM.read_text()

    def command(self, spool: Path) -> Command:
        return sys.executable, "-I", "-S", "-c", self.code, spool, SENDER, "anna@example.org"
