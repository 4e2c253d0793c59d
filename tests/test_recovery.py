"""Whatever an expunge is interrupted by, and whenever, the spool becomes the old or the new one."""

import errno
import itertools
import os
import signal
import time
import traceback

import pytest

from spools import mbox, messages_of, opened
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool.refusal import PARTIAL, Refusal

DONE, UNCHANGED, LATER, FEWER, BROKEN = range(5)
CALLS = ("pwrite", "fsync", "ftruncate", "rename", "unlink")
NEW = [mbox(b"Subject: new %d\n\nnew mail %d\n" % (n, n)) for n in range(3)]


def kill_at(at, how):
    """From now on the call number `at` of those that change something is the last, or fails."""
    count = 0

    def instead_of(name, real):
        def call(*arguments):
            nonlocal count
            count += 1
            if count != at:
                return real(*arguments)
            if isinstance(how, int):
                raise OSError(how, os.strerror(how))
            if how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if how in ("within", "short") and name == "pwrite":
                fd, octets, position = arguments
                written = real(fd, bytes(octets)[: max(1, len(octets) // 3)], position)
                if how == "short":
                    return written
            elif how != "short":
                real(*arguments)
            else:
                return real(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CALLS:
        setattr(os, name, instead_of(name, getattr(os, name)))
    return lambda: count


def in_a_process(action, at, how):
    """What `action` came to in a process that is interrupted: its exit status, -9 if killed."""
    pid = os.fork()
    if not pid:
        status = BROKEN
        try:
            count = kill_at(at, how)
            result = action()
            status = FEWER if count() < at else result
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


SHAPES = {
    "small": [b"message %d\n" % n for n in range(4)],
    "blocks": [b"%d\n" % n + b"x" * (3000 + 500 * n) + b"\n" for n in range(4)],
    "large and small": [b"a\n", b"y" * 20_000 + b"\n", b"b\n", b"c\n"],
}
SUBSETS = [marks for marks in itertools.product((0, 1), repeat=4) if any(marks)]
HOWS = ["before", "within", "after", "short", errno.EIO, errno.ENOSPC, errno.EINTR]


def deliver(path, number):
    with path.open("ab") as file:
        file.write(NEW[number])
    path.with_name(f"delivered.{number}").touch()


def patient(path):
    """Open it; a dotlock that a dead process has left is broken, which takes a second try."""
    return opened(path, pause=lambda seconds: time.sleep(0.001))


def expunge(path, marks):
    spool = patient(path)
    deliver(path, 0)
    refused = spool.expunge(bytearray(marks))
    spool.close()
    if refused is None:
        return DONE
    return LATER if refused.kind == PARTIAL else UNCHANGED


def recover(path):
    spool = patient(path)
    if isinstance(spool, Refusal):
        return LATER
    assert spool.found is None or not spool.found.is_alarming
    spool.close()
    return DONE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", HOWS)
def test_interrupted_at_any_call(tmp_path, shape, how):
    """Mail comes before, between, and while it is recovered; recovery is interrupted, too."""
    old = mbox(*SHAPES[shape])
    path = tmp_path / "spool"
    path.touch()
    cases = 0
    for marks in SUBSETS:
        kept = [one for one, mark in zip(messages_of(old), marks, strict=True) if not mark]
        for at in itertools.count(1):
            path.write_bytes(old)
            (tmp_path / "delivered.0").unlink(missing_ok=True)
            status = in_a_process(lambda marks=marks: expunge(path, marks), at, how)
            if status == FEWER:
                break
            cases += 1
            assert status in (-signal.SIGKILL, DONE, UNCHANGED, LATER)
            deliver(path, 1)
            # Recovery is interrupted at its first call, then at its second, until it is done.
            again = 1
            while in_a_process(lambda: recover(path), again, how) != FEWER:
                again += 1
                assert again < 40
            new = b"".join(NEW[0 if (tmp_path / "delivered.0").exists() else 1 : 2])
            wanted = []
            if status != UNCHANGED:
                wanted.append(b"".join(kept) + new)
            if status not in (DONE, LATER):
                wanted.append(old + new)
            assert path.read_bytes() in wanted, (marks, at, status)
            assert set(os.listdir(f"{path}.state")) == {"lock"}, (marks, at, status)
    assert cases >= 60


def test_journal_survives_as_it_was_written(tmp_path):
    spool = tmp_path / "spool"
    spool.write_bytes(bytes(range(256)) * 100)
    fd = os.open(spool, os.O_RDWR)
    plan = journals.Plan("/var/mail/\udcff", os.fstat(fd).st_ino, 5000, 12_000, 25_600)
    kept = [(fd, 7000, 13_000), (fd, 24_600, 25_600)]
    journals.write(str(tmp_path), plan, fd, kept).close()
    found = journals.read(str(tmp_path))
    for name in journals.Plan.__slots__:
        assert getattr(found.plan, name) == getattr(plan, name)
    octets = spool.read_bytes()
    assert found.read(5000, 12_000) == octets[7000:13_000] + octets[24_600:]
    found.close()
    os.close(fd)
