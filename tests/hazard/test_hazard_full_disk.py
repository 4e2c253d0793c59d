"""A full disk: what can be done without space is done, and nothing is lost."""

import os
import subprocess
from contextlib import contextmanager

import pytest

import doors
from mailsite import IS_ROOT, need
from spools import mbox, messages_of

SPOOL = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"x" * 900) for n in range(100)])
NEW = mbox(b"Subject: new\n\n%b\n" % (b"n" * 900))
ALL = list(range(1, 101))


@contextmanager
def mounted(directory):
    """A file system of 2 MB there."""
    if not IS_ROOT:
        pytest.skip("only root can mount a small file system")
    options = "size=2m,nr_inodes=40,mode=1777"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tpop3d-test", directory], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.fixture
def small_disk(site):
    """Such a file system for the spools."""
    with mounted(site.spools) as directory:
        yield directory


@pytest.fixture
def small_state(site):
    """For the state directories."""
    with mounted(site.state) as directory:
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def small_both(site, small_disk):
    """For both."""
    site.configure({"state-directory": small_disk / "state"})
    (small_disk / "state").mkdir(mode=0o711)
    return small_disk


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
    small_disk.chmod(0o755)
    (small_disk / "empty").mkdir(mode=0o555)  # there since the first connection
    for number in range(os.statvfs(small_disk).f_ffree):
        (small_disk / f"file{number}").touch()
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER anna").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"-ERR [SYS/TEMP]")
        assert wire.line() == b""
        wire.logs.wait_for("maildrop refused .*user=anna .*No space left on device")
    assert site.spool("anna").read_bytes() == SPOOL


def deleted_on_a_full_disk(wire, site, disk, deleted, new=b""):
    """The answer to QUIT, when the disk has become full during the session."""
    site.add("anna", SPOOL)
    wire.login("anna")
    for number in deleted:
        assert wire.ask(f"DELE {number}").startswith(b"+OK")
    with site.spool("anna").open("ab") as file:
        file.write(new)
    with filled(disk):
        answer = wire.ask("QUIT")
        assert wire.line() == b""
        return answer


def quit_after(site, deleted):
    """What a session that deletes these is told at its end."""
    with doors.inetd(site) as wire:
        wire.login("anna")
        for number in deleted:
            assert wire.ask(f"DELE {number}").startswith(b"+OK")
        return wire.ask("QUIT")


def check_nothing_removed(site, answer, new=b""):
    """Nothing is left of the attempt, and the next session can do it."""
    assert answer.startswith(b"-ERR [SYS/TEMP]")
    assert site.spool("anna").read_bytes() == SPOOL + new
    assert not list(site.path.rglob("journal*"))
    assert quit_after(site, [1]).startswith(b"+OK")
    assert site.spool("anna").read_bytes() == b"".join(messages_of(SPOOL)[1:]) + new


@pytest.mark.parametrize("disk", ["small_state", "small_both"])
@pytest.mark.parametrize("deleted", [[1], [1, 2, 100], ALL[:-1]], ids=["1", "3", "99"])
def test_without_room_for_the_journal_nothing_is_removed(request, site, disk, deleted):
    disk = request.getfixturevalue(disk)
    with doors.inetd(site) as wire:
        answer = deleted_on_a_full_disk(wire, site, disk, deleted)
        wire.logs.wait_for("maildrop not updated .*user=anna .*No space left on device")
    check_nothing_removed(site, answer)


@pytest.mark.parametrize("disk", ["small_disk", "small_state", "small_both"])
@pytest.mark.parametrize("deleted", [ALL, ALL[50:], [100]], ids=["all", "second half", "last"])
def test_cutting_the_end_off_always_works(request, site, disk, deleted):
    disk = request.getfixturevalue(disk)
    with doors.inetd(site) as wire:
        answer = deleted_on_a_full_disk(wire, site, disk, deleted)
    assert answer.startswith(b"+OK")
    kept = [one for n, one in enumerate(messages_of(SPOOL), 1) if n not in deleted]
    assert site.spool("anna").read_bytes() == b"".join(kept)
    assert not list(site.path.rglob("journal*"))


@pytest.mark.parametrize("disk", ["small_state", "small_both"])
@pytest.mark.parametrize("deleted", [[1], ALL], ids=["one", "all"])
def test_new_mail_behind_is_kept(request, site, disk, deleted):
    """It has to be moved, so that there must be a journal."""
    disk = request.getfixturevalue(disk)
    with doors.inetd(site) as wire:
        answer = deleted_on_a_full_disk(wire, site, disk, deleted, NEW)
    check_nothing_removed(site, answer, NEW)


def test_new_mail_behind_on_a_full_disk_of_spools(site, small_disk):
    with doors.inetd(site) as wire:
        answer = deleted_on_a_full_disk(wire, site, small_disk, ALL, NEW)
    assert answer.startswith(b"+OK")
    assert site.spool("anna").read_bytes() == NEW


@pytest.mark.parametrize("octets", [4096, 50_000, len(SPOOL) - 5000])
def test_a_limit_of_file_sizes(site, monkeypatch, octets):
    """The journal would be longer than files may be, or the spool's end may not be written."""
    site.add("anna", SPOOL)
    limited = [need("prlimit"), f"--fsize={octets}:{octets}", *doors.SERVER]
    with monkeypatch.context() as patch:
        patch.setattr(doors, "SERVER", limited)
        answer = quit_after(site, ALL)
        assert answer.startswith(b"+OK")
        assert site.spool("anna").read_bytes() == b""
        site.spool("anna").write_bytes(SPOOL)
        answer = quit_after(site, [1])
    check_nothing_removed(site, answer)


@pytest.mark.parametrize("code", ["EDQUOT", "ENOSPC", "EIO"])
def test_a_quota_that_is_used_up(tmp_path, site, monkeypatch, code):
    """Every write to a file is refused from the first, the second, the third on."""
    site.add("anna", SPOOL)
    command = [need("strace"), "-f", "-o", str(tmp_path / "trace"), "-e", "trace=pwrite64"]
    for first in (1, 2, 3):
        inject = ["-e", f"inject=pwrite64:error={code}:when={first}+"]
        with monkeypatch.context() as patch:
            patch.setattr(doors, "SERVER", [*command, *inject, *doors.SERVER])
            answer = quit_after(site, [1])
        assert f"{code} " in (tmp_path / "trace").read_text()
        check_nothing_removed(site, answer)
        site.spool("anna").write_bytes(SPOOL)
