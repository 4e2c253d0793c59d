"""A full disk: what can be done without space is done, and nothing is lost."""

import os
import subprocess
from contextlib import contextmanager

import pytest

import doors
from mailsite import IS_ROOT
from spools import mbox, messages_of

SPOOL = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"x" * 900) for n in range(100)])


@pytest.fixture
def small_disk(site):
    """A file system of 2 MB for the spools."""
    if not IS_ROOT:
        pytest.skip("only root can mount a small file system")
    options = "size=2m,nr_inodes=40,mode=1777"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tpop3d-test", site.spools], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    yield site.spools
    subprocess.run(["umount", site.spools], check=True)


@contextmanager
def filled(directory):
    """No octet and no file more."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    assert os.statvfs(directory).f_bavail == 0
    yield
    filler.unlink()


@pytest.mark.parametrize("deleted", [[1], [50], [100], [1, 2, 100], list(range(1, 101))])
def test_messages_are_removed_on_a_full_disk(site, small_disk, inetd, deleted):
    site.add("anna", SPOOL)
    with filled(small_disk):
        inetd.login("anna")
        for number in deleted:
            assert inetd.ask(f"DELE {number}").startswith(b"+OK")
        assert inetd.ask("QUIT").startswith(b"+OK")
        kept = [m for n, m in enumerate(messages_of(SPOOL), 1) if n not in deleted]
        assert site.spool("anna").read_bytes() == b"".join(kept)
    assert not list(small_disk.glob("*.lock"))


def test_a_state_directory_without_room_is_a_temporary_refusal(site, small_disk):
    site.add("anna", SPOOL)
    site.configure({"state-directory": small_disk})
    (small_disk / "empty").mkdir(mode=0o555)  # there since the first connection
    for number in range(os.statvfs(small_disk).f_ffree):
        (small_disk / f"file{number}").touch()
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"-ERR [SYS/TEMP]")
        assert wire.line() == b""
        wire.logs.wait_for("maildrop refused user=anna .*No space left on device")
    assert site.spool("anna").read_bytes() == SPOOL
