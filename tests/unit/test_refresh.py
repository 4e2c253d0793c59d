"""What takes long says meanwhile that the spool is still locked."""

import os

import pytest

from spools import good, mbox
from test_recovery import Case
from tpop3d.mailspool import journal, locks, parallel_scan, recovery
from tpop3d.mailspool.parallel_scan import scan_all
from tpop3d.mailspool.scan import BLOCK, scan

# Each spool has some blocks and chunks.
LARGE = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"x" * 900_000) for n in range(4)])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(LARGE)
    return path


class Counter:
    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1


def test_a_scan_does_so_for_each_block(path):
    refresh = Counter()
    with path.open("rb") as file:
        scan(file.fileno(), 0, len(LARGE), refresh=refresh)
        assert refresh.count >= len(LARGE) // BLOCK
        one = refresh.count
        scan_all(file.fileno(), len(LARGE), refresh=refresh)
    assert refresh.count == 2 * one


def test_who_waits_for_the_other_half_does_so_now_and_then(path, monkeypatch):
    monkeypatch.setattr(parallel_scan, "PATIENCE", 0.001)
    read_end, write_end = os.pipe()
    calls = []

    def refresh():
        calls.append(1)
        if len(calls) == 3:
            os.write(write_end, b"first")
        if len(calls) == 6:
            os.write(write_end, b"second")
            os.close(write_end)

    assert parallel_scan._read_all(read_end, refresh) == b"firstsecond"
    assert len(calls) == 6
    os.close(read_end)


def test_a_scan_by_two_processes_does_so(path, monkeypatch):
    monkeypatch.setattr(parallel_scan, "WORTH", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    refresh = Counter()
    with path.open("rb") as file:
        assert len(scan_all(file.fileno(), len(LARGE), refresh=refresh)) == 4
    assert refresh.count >= len(LARGE) // BLOCK // 2 - 1


def test_a_journal_does_so_when_it_is_written_read_and_carried_out(tmp_path):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    chunks = len(case.new) // journal.CHUNK
    assert chunks >= 2
    with case.path.open("r+b") as spool:
        fd = spool.fileno()
        reading = Counter()
        found = journal.read(str(case.state), len(LARGE), reading)
        assert reading.count >= chunks
        checking = Counter()
        recovery.state_of(found, fd, checking)
        assert checking.count >= chunks
        writing = Counter()
        kept = [(fd, len(LARGE) - len(case.new), len(LARGE))]
        again = journal.write(str(case.state), found.plan, fd, kept, writing)
        assert writing.count >= 2 * chunks
        carrying = Counter()
        recovery.carry_out(again, fd, str(case.state), carrying)
        assert carrying.count >= chunks
        again.close()
        found.close()
    assert case.path.read_bytes() == case.new


def test_a_spool_refreshes_its_dotlock_when_it_is_opened_expunged_and_recovered(
    tmp_path, path, monkeypatch
):
    refreshed = []
    real = os.utime

    def utime(name, *rest, **more):
        assert str(name) == f"{path}.lock"
        real(name, *rest, **more)
        refreshed.append(name)

    def times():
        count = len(refreshed)
        refreshed.clear()
        return count

    monkeypatch.setattr(os, "utime", utime)
    with monkeypatch.context() as patch:
        patch.setattr(locks, "REFRESH_AFTER", 1e6)
        spool = good(path, index=False)
        assert times() == 0
        spool.close()
    monkeypatch.setattr(locks, "REFRESH_AFTER", 0)
    spool = good(path, index=False)
    assert times() >= len(LARGE) // BLOCK

    def broken(*_, **named):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("tpop3d.mailspool.expunge.carry_out", broken)
        assert spool.expunge([1, 0, 0, 0]) is not None
    assert times() >= 4
    spool.close()
    with monkeypatch.context() as patch:
        patch.setattr("tpop3d.mailspool.spool.scan_all", scan_nothing(scan_all))
        spool = good(path, index=False)
    assert len(spool) == 3
    assert times() >= 6
    assert spool.expunge([1, 0, 0]) is None
    assert times() >= 4
    spool.close()


def scan_nothing(real):
    """A scan that refreshes nothing."""

    def scan_all(fd, end, with_digests, leads, refresh):
        return real(fd, end, with_digests, leads)

    return scan_all
