"""Recovery: what a spool is to a journal that is found, and what becomes of both."""

import os
import stat

import pytest

from spools import good, mbox, messages_of, opened
from tpop3d.mailspool import expunge as expunge_module
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool import recovery
from tpop3d.system.refusal import PARTIAL, PERMANENT, Refusal

BLOCK = journals.BLOCK
NEW = mbox(b"Subject: new\n\nnew mail\n")
SMALL = mbox(*[b"message %d\n" % n for n in range(4)])
LARGE = mbox(*[b"%d\n" % n + os.urandom(4000 + 800 * n).hex().encode() + b"\n" for n in range(4)])


def on_a_border(octets, n):
    """The same, and message `n` starts where a block does."""
    messages = messages_of(octets)
    start = len(b"".join(messages[:n]))
    messages[0] = messages[0][:-1] + b"p" * (-start % BLOCK - 1) + b"\n\n"
    assert len(b"".join(messages[:n])) % BLOCK == 0
    return b"".join(messages)


SPOOLS = {
    "small": SMALL,
    "large": LARGE,
    "first on a border": on_a_border(LARGE, 1),
    "size on a border": on_a_border(LARGE + NEW, 4)[: -len(NEW)],
    "without a last line end": LARGE[:-2],
}
SUBSETS = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 0, 1), (0, 0, 1, 1), (0, 0, 0, 1)]


class Case:
    """A spool with a journal that nobody has carried out yet."""

    def __init__(self, directory, octets, marks):
        self.path = directory / "spool"
        self.state = directory / "spool.state"
        self.path.write_bytes(octets)
        self.inode = self.path.stat().st_ino
        self.old = octets
        messages = zip(messages_of(octets), marks, strict=True)
        self.new = b"".join([message for message, mark in messages if not mark])

        def fails(*_):
            raise OSError(5, "Input/output error")

        before, expunge_module.carry_out = expunge_module.carry_out, fails
        try:
            spool = good(self.path)
            refused = spool.expunge(bytearray(marks))
            spool.close()
        finally:
            expunge_module.carry_out = before
        assert refused.kind == PARTIAL
        assert self.path.read_bytes() == octets

    def put(self, octets):
        """Have something else in the same file."""
        with self.path.open("r+b") as file:
            file.truncate(0)
            file.write(octets)

    def recover(self):
        """Open it; returns what was made of the journal."""
        spool = good(self.path)
        found = spool.found
        spool.close()
        assert not list(self.state.glob("journal"))
        assert not list(self.state.glob("journal.new"))
        assert self.path.stat().st_ino == self.inode
        return found

    def is_done(self, new=b""):
        found = self.recover()
        return self.path.read_bytes() == self.new + new and not found.is_alarming

    def is_put_aside(self, octets):
        found = self.recover()
        assert found.is_alarming
        kept = self.state / "journal.unfit.1"
        return kept.exists() and str(kept) in found.line and self.path.read_bytes() == octets


@pytest.fixture(params=SPOOLS)
def octets(request):
    return SPOOLS[request.param]


@pytest.fixture(params=SUBSETS, ids=str)
def case(request, octets, tmp_path):
    return Case(tmp_path, octets, request.param)


@pytest.mark.parametrize("new", [b"", NEW, NEW * 400])
def test_every_state_of_an_expunge_is_finished(case, new):
    old, done = case.old, case.new
    if not old.endswith(b"\n\n") and new:
        new = b"\n\n" + new  # as a deliverer does where the last line is open
    mixed = b"".join(
        (done if n % 2 else old)[at : at + BLOCK].ljust(BLOCK, b"?")
        for n, at in enumerate(range(0, len(done), BLOCK))
    )[: len(done)]
    for name, octets in {
        "before": old,
        "half": done[: len(done) // BLOCK * BLOCK // 2] + old[len(done) // BLOCK * BLOCK // 2 :],
        "every other block": mixed + old[len(done) :],
        "written and not cut": done + old[len(done) :],
        "cut": done,
    }.items():
        case.put(octets + new)
        saved = (case.state / "journal").read_bytes()
        assert case.is_done(new), name
        (case.state / "journal").write_bytes(saved)


def test_a_cut_of_which_only_zeros_are_left(case):
    """A power cut may leave the old size, and zeros to the end of the block."""
    border = -(-len(case.new) // BLOCK) * BLOCK
    old = case.old
    case.put((case.new.ljust(border, b"\0") + old[border:])[: len(old)])
    assert case.is_done()


@pytest.mark.parametrize("torn", [1, 2])
def test_torn_blocks_are_written_again(tmp_path, torn):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    octets = bytearray(LARGE)
    for n in range(torn):
        octets[BLOCK * n : BLOCK * n + 700] = case.new[BLOCK * n : BLOCK * n + 700]
    case.put(octets)
    assert case.is_done()


def test_many_torn_blocks_beside_one_that_is_new(tmp_path):
    """On a disk with small sectors. The journal has been begun: there is no way back."""
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    octets = bytearray(LARGE)
    octets[:BLOCK] = case.new[:BLOCK]
    for n in range(1, 4):
        octets[BLOCK * n : BLOCK * n + 512] = case.new[BLOCK * n : BLOCK * n + 512]
    case.put(octets)
    assert case.is_done()


def changed(octets, *places):
    octets = bytearray(octets)
    for at in places:
        octets[at] ^= 1
    return bytes(octets)


CHANGES = {
    "three blocks": lambda old, new: changed(old, 100, 5000, 9000),
    "the old end": lambda old, new: changed(old, len(old) - 10),
    "the old end, when all is written": lambda old, new: new + changed(old, -10)[len(new) :],
    "one octet shorter": lambda old, new: old[:-1],
    "another message removed": lambda old, new: b"".join(messages_of(old)[:3]) + NEW,
    "shorter than what is kept": lambda old, new: new[:-1],
    "cut, and then changed": lambda old, new: changed(new, 5000),
    "cut, and then changed, and mail": lambda old, new: changed(new, 5000) + NEW * 500,
    "shrunk and grown": lambda old, new: old[:3000] + mbox(b"z" * len(old)),
    "emptied": lambda old, new: b"",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_spool_that_others_have_changed_is_left_alone(tmp_path, name):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    octets = CHANGES[name](case.old, case.new)
    case.put(octets)
    assert case.is_put_aside(octets)


def test_another_file_is_left_alone(tmp_path):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    other = tmp_path / "other"
    other.write_bytes(LARGE)
    other.rename(case.path)
    case.inode = case.path.stat().st_ino
    assert case.is_put_aside(LARGE)


def test_journals_that_are_put_aside_are_all_kept(tmp_path):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    journal = (case.state / "journal").read_bytes()
    for number in range(1, 4):
        case.put(NEW)
        (case.state / "journal").write_bytes(journal)
        assert case.recover().is_alarming
        assert (case.state / f"journal.unfit.{number}").read_bytes() == journal


def empty(path):
    path.write_bytes(b"")


def short(path):
    path.write_bytes(path.read_bytes()[:-1])


def damaged(path):
    path.write_bytes(changed(path.read_bytes(), 60))


def of_another_version(path):
    path.write_bytes(path.read_bytes().replace(b"tpop3dJ1", b"tpop3dJ9"))


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [empty, short, damaged, of_another_version, link, fifo, directory]
)
def test_what_is_no_journal_is_put_aside(tmp_path, damage):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    damage(case.state / "journal")
    assert case.is_put_aside(LARGE)


@pytest.mark.parametrize("make", [empty, link, fifo])
def test_what_was_left_of_a_journal_is_removed(tmp_path, make):
    path = tmp_path / "spool"
    path.write_bytes(SMALL)
    good(path).close()
    left = tmp_path / "spool.state" / "journal.new"
    left.touch()
    make(left)
    spool = good(path)
    assert spool.found is None
    assert not os.path.lexists(left)
    spool.close()


def test_a_journal_waits_for_a_spool_that_is_missing(tmp_path):
    """Perhaps a file system is not mounted yet."""
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    case.path.rename(tmp_path / "away")
    spool = good(case.path)
    assert len(spool) == 0
    assert spool.found.is_alarming
    assert "missing" in spool.found.line
    spool.close()
    (tmp_path / "away").rename(case.path)
    assert case.is_done()


def test_recovery_fails_at_every_call_and_loses_nothing(tmp_path, monkeypatch):
    """It is a refusal, and the next one does it."""
    calls = ("open", "pread", "pwrite", "fsync", "ftruncate", "unlink")
    for name in calls:
        for at in range(1, 100):
            case = Case(tmp_path, LARGE, (0, 1, 0, 1))
            case.put(LARGE + NEW)
            real, count = getattr(os, name), 0

            def failing(*arguments, real=real, at=at, **named):
                nonlocal count
                count += 1
                if count == at:
                    raise OSError(5, "Input/output error")
                return real(*arguments, **named)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing)
                spool = opened(case.path)
                if not isinstance(spool, Refusal):
                    spool.close()
            (tmp_path / "spool.lock").unlink(missing_ok=True)  # whose unlink has failed
            if (case.state / "journal").exists():
                assert isinstance(spool, Refusal), (name, at)
                assert case.is_done(NEW), (name, at)
            assert case.path.read_bytes() == case.new + NEW, (name, at)
            if count < at:
                break
        assert at > 1, name


def test_a_journal_that_may_not_be_read_is_for_people_to_mend(tmp_path, monkeypatch):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))

    def read(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(recovery.journals, "read", read)
    refused = opened(case.path)
    assert isinstance(refused, Refusal)
    assert refused.kind == PERMANENT
    assert case.path.read_bytes() == LARGE


def test_mail_that_comes_without_a_lock_while_it_is_written_is_kept(tmp_path, monkeypatch):
    """Once and again: at the last look before the cut there is more each time."""
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    real, inode, come = os.fsync, case.inode, []

    def fsync(fd):
        real(fd)
        if os.fstat(fd).st_ino == inode and len(come) < 4:
            come.append(NEW)
            with case.path.open("ab") as file:
                file.write(NEW)

    monkeypatch.setattr(os, "fsync", fsync)
    case.recover()
    assert case.path.read_bytes() == case.new + b"".join(come)


def test_files_are_the_users_alone(tmp_path):
    case = Case(tmp_path, LARGE, (1, 0, 0, 0))
    assert stat.S_IMODE((case.state / "journal").stat().st_mode) == 0o600
