"""A spool that two processes scan: what one would find, whatever becomes of the other."""

import errno
import hashlib
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailsite import CHECKOUT
from spools import mbox, messages_of, odd_spools
from test_scan import memory_file
from tpop3d.mailspool import parallel_scan
from tpop3d.mailspool.failures import Truncated
from tpop3d.mailspool.parallel_scan import scan_all
from tpop3d.mailspool.scan import COLUMNS, NotAnMbox, scan
from tpop3d.mailspool.uidl import unique_ids

SPOOL = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"text\n" * n) for n in range(200)])
FIELDS = (*COLUMNS, "digests", "end", "hides_first")


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    """Whatever there are; and every spool is a large one."""
    monkeypatch.setattr(parallel_scan, "WORTH", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.fixture
def forks(monkeypatch):
    """Pids of the processes that were made."""
    found, real = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: found.append(real()) or found[-1])
    return found


def same(one, other):
    return all(getattr(one, name) == getattr(other, name) for name in FIELDS)


def both(octets, with_digests=True):
    """What two processes find, and what one does."""
    fd = memory_file(octets)
    try:
        return scan_all(fd, len(octets), with_digests), scan(fd, 0, len(octets), with_digests)
    finally:
        os.close(fd)


def test_two_find_what_one_does(forks):
    two, one = both(SPOOL)
    assert len(forks) == 1
    assert same(two, one)
    assert len(two) == 200
    assert bytes(two.digests) == b"".join(
        hashlib.md5(message[:512]).digest() for message in messages_of(SPOOL)
    )


@given(octets=odd_spools, with_digests=st.booleans())
@example(octets=b"From a\n\nFrom b\n\n", with_digests=True)
@example(octets=b"x" * 100 + b"\n\nFrom b\n", with_digests=False)
@settings(max_examples=150, deadline=None)
def test_of_any_spool_they_find_the_same(octets, with_digests):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_scan, "WORTH", 0)
        patch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        try:
            two, one = both(octets, with_digests)
        except NotAnMbox:
            return  # so says each
    assert same(two, one)


@given(octets=odd_spools)
@settings(max_examples=150, deadline=None)
def test_ids_are_the_same_with_digests_and_without(octets):
    fd = memory_file(octets)
    try:
        with_digests = unique_ids(fd, scan(fd, 0, len(octets), with_digests=True))
        assert list(with_digests) == list(unique_ids(fd, scan(fd, 0, len(octets))))
    finally:
        os.close(fd)


def test_garbage_is_found_where_it_is():
    fd = memory_file(b"x\n" + SPOOL)
    with pytest.raises(NotAnMbox) as caught:
        scan_all(fd, 2 + len(SPOOL))
    assert caught.value.offset == 0
    os.close(fd)


def test_a_small_spool_takes_one_process(forks, monkeypatch):
    monkeypatch.setattr(parallel_scan, "WORTH", len(SPOOL) + 1)
    assert same(*both(SPOOL))
    assert not forks


def test_one_processor_takes_one_process(forks, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert same(*both(SPOOL))
    assert not forks


def test_one_message_is_not_cut(forks):
    assert same(*both(mbox(b"Subject: one\n\n" + b"line\n" * 10_000)))
    assert not forks


def test_where_no_process_can_be_made_one_does_it(monkeypatch):
    before = set(os.listdir("/proc/self/fd"))

    def refused():
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", refused)
    assert same(*both(SPOOL))
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("written", [0, 5, 8, 2000])
def test_what_the_other_did_not_write_down_is_found_again(written, monkeypatch):
    """It was killed, or has met an error, before it was done."""
    parent, real = os.getpid(), os.write

    def write(fd, octets):
        if os.getpid() == parent:
            return real(fd, octets)
        real(fd, octets[:written])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "write", write)
    assert same(*both(SPOOL))


def test_a_spool_that_becomes_shorter_is_truncated_in_either_half(forks):
    for cut in (len(SPOOL) // 4, len(SPOOL) - 10):
        fd = memory_file(SPOOL)
        os.truncate(fd, cut)
        with pytest.raises(Truncated):
            scan_all(fd, len(SPOOL))
        os.close(fd)
    (pid,) = forks  # where nothing is in the middle, nobody else looks
    with pytest.raises(ChildProcessError):  # nobody is left behind
        os.waitpid(pid, os.WNOHANG)


SLOW = """
import os, signal, sys
from tpop3d.mailspool import parallel_scan as halves
halves.WORTH = 0
os.sched_getaffinity = lambda pid: {0, 1}
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
parent, real = os.getpid(), os.preadv
def preadv(fd, buffers, offset):
    if os.getpid() != parent:
        print(os.getpid(), flush=True)
        os.read(int(sys.argv[1]), 1)
    return real(fd, buffers, offset)
os.preadv = preadv
print(len(halves.scan_all(0, os.fstat(0).st_size)), flush=True)
"""


def test_a_signal_to_both_is_told_once(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(SPOOL)
    read_end, write_end = os.pipe()
    with path.open("rb") as spool:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(read_end)],
            stdin=spool, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT, pass_fds=[read_end],
        )  # fmt: skip
    with process:
        other = int(process.stdout.readline())
        for pid in (other, process.pid):
            os.kill(pid, signal.SIGTERM)
        assert process.stdout.readline() == "told\n"
        os.write(write_end, b"x")
        assert process.stdout.read() == "200\n"
    assert process.returncode == 0
    for fd in (read_end, write_end):
        os.close(fd)
