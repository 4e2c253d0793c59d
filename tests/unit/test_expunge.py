"""Removing messages: exactly the others stay, octet for octet, in the same file."""

import os
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spools import covered_whole, good, mbox, messages_of, odd_spools, opened, separators_lead
from tpop3d.mailspool import journal
from tpop3d.mailspool.deletion import kept_ranges
from tpop3d.system.refusal import PARTIAL, TEMPORARY


def expunged(path, marks, meanwhile=b""):
    """Open, let mail arrive, expunge; returns what is left and the refusal."""
    spool = good(path)
    with path.open("ab") as file:
        file.write(meanwhile)
    refused = spool.expunge(bytearray(marks[: len(spool)]))
    spool.close()
    return path.read_bytes(), refused


NEW = mbox(b"Subject: new\n\nnew mail\n", b"Subject: newer\n\nmore\n")


@given(
    octets=odd_spools,
    marks=st.lists(st.integers(0, 1), min_size=60, max_size=60),
    meanwhile=st.sampled_from([b"", NEW]),
    block=st.integers(1, 50),
)
@settings(max_examples=400, deadline=None)
def test_any_subset_leaves_exactly_the_others(tmp_path_factory, octets, marks, meanwhile, block):
    path = tmp_path_factory.mktemp("expunge") / "spool"
    if meanwhile and messages_of(octets + meanwhile)[:-2] != messages_of(octets):
        meanwhile = b"\n\n" + meanwhile  # as a deliverer does where the last line is open
    path.write_bytes(octets)
    inode = path.stat().st_ino
    messages = messages_of(octets)
    before = octets[: len(octets) - sum(map(len, messages))]
    kept = [message for message, mark in zip(messages, marks, strict=False) if not mark]
    if kept and not marks[len(messages) - 1]:
        kept[-1] += meanwhile  # whatever is appended first may belong to the last message
        new = b""
    else:
        # The separator goes with the message that it separates.
        new = meanwhile.removeprefix(b"\n\n") if any(marks[: len(messages)]) else meanwhile
    if kept and marks[len(messages) - 1] and separators_lead(octets) and not meanwhile:
        # Of the empty lines before those that went a single one stays.
        text = covered_whole(kept[-1])
        kept[-1] = text + (b"\r\n" if kept[-1][len(text) :].startswith(b"\r\n") else b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "BLOCK", block)
        patch.setattr(journal, "CHUNK", 3 * block)
        left, refused = expunged(path, marks, meanwhile)
    assert refused is None
    assert left == before + b"".join(kept) + new
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("marks", "end", "size", "ranges"),
    [
        ([1, 0, 0], 30, 30, [(10, 30)]),
        ([0, 1, 0], 30, 30, [(20, 30)]),
        ([0, 0, 1], 30, 30, []),
        ([1, 1, 1], 30, 30, []),
        ([1, 0, 1], 30, 30, [(10, 20)]),
        ([1, 0, 1], 30, 40, [(10, 20), (30, 40)]),
        ([0, 1, 0], 30, 40, [(20, 40)]),
        ([1, 1, 1], 30, 40, [(30, 40)]),
    ],
)
def test_kept_ranges(marks, end, size, ranges):
    assert kept_ranges([0, 10, 20], end, bytearray(marks), size) == ranges


@pytest.mark.parametrize("grown", [b"", b"\n", b"\n\n", b"\r\n\r\n"])
def test_a_last_message_whose_separator_came_later_is_removed_with_it(tmp_path, grown):
    path = tmp_path / "spool"
    path.write_bytes(mbox(b"first\n") + b"From last\ntext" + (b"\n\n" if not grown else b""))
    if grown == b"\n":  # an open line and one LF is no empty line, so what follows is no message
        path.write_bytes(path.read_bytes() + b"\n")
    left, refused = expunged(path, [0, 1], grown + NEW)
    assert refused is None
    assert left == mbox(b"first\n") + NEW


def test_a_last_message_that_grew_is_not_removed(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(mbox(b"first\n") + b"From last\nhalf a mess")
    whole = path.read_bytes() + b"age\n\n" + NEW
    left, refused = expunged(path, [1, 1], b"age\n\n" + NEW)
    assert left == whole
    assert refused is not None
    assert refused.kind == TEMPORARY
    assert "grew" in refused.reason


def test_without_marks_the_file_is_not_touched(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(mbox(b"first\n", b"second\n"))
    before = path.stat()
    assert expunged(path, [0, 0]) == (mbox(b"first\n", b"second\n"), None)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_the_internal_message_stays(tmp_path):
    internal = mbox(
        b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\ntext\n"
    )
    path = tmp_path / "spool"
    path.write_bytes(internal + mbox(b"first\n", b"second\n"))
    left, refused = expunged(path, [1, 1])
    assert (left, refused) == (internal, None)


def failing(monkeypatch, name, after, error=28):
    """Let the system call fail from the call after the first `after` ones."""
    real = getattr(os, name)
    calls = 0

    def call(*arguments):
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    monkeypatch.setattr(os, name, call)


def test_a_first_write_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "spool"
    octets = mbox(b"first\n", b"second\n", b"third\n")
    path.write_bytes(octets)
    failing(monkeypatch, "pwrite", after=0)
    left, refused = expunged(path, [1, 0, 0])
    assert left == octets
    assert refused is not None
    assert refused.kind == TEMPORARY
    assert not (tmp_path / "spool.lock").exists()


def test_a_later_write_that_fails_loses_nothing(tmp_path, monkeypatch):
    """The journal is complete: the next one to open the spool goes on."""
    path = tmp_path / "spool"
    octets = mbox(*[b"message %d\n" % n for n in range(20)])
    path.write_bytes(octets)
    monkeypatch.setattr(journal, "BLOCK", 32)
    monkeypatch.setattr(journal, "CHUNK", 32)
    real, writes = os.pwrite, []

    def pwrite(fd, data, position):
        if os.path.lexists(f"{path}.state/journal"):
            writes.append(position)
            if len(writes) == 6:
                raise OSError(28, "No space left on device")
        return real(fd, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    left, refused = expunged(path, [0, 1] + [0] * 18)
    assert refused is not None
    assert refused.kind == PARTIAL
    assert left not in (octets, octets[:-1])
    good(path).close()
    messages = messages_of(octets)
    assert path.read_bytes() == b"".join(messages[:1] + messages[2:])


@pytest.mark.parametrize(("name", "after"), [("fsync", 3), ("fsync", 4), ("ftruncate", 0)])
def test_an_end_that_cannot_be_cut_loses_nothing(tmp_path, monkeypatch, name, after):
    path = tmp_path / "spool"
    octets = mbox(b"first\n", b"second\n")
    path.write_bytes(octets)
    with monkeypatch.context() as patch:
        failing(patch, name, after, error=5)
        left, refused = expunged(path, [1, 0])
    assert refused is not None
    assert refused.kind == PARTIAL
    kept = messages_of(octets)[1]
    assert left.startswith(kept)
    good(path).close()
    assert path.read_bytes() == kept


def test_short_writes_are_continued(tmp_path, monkeypatch):
    path = tmp_path / "spool"
    octets = mbox(b"first\n", b"second\n" * 100, b"third\n")
    path.write_bytes(octets)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    left, refused = expunged(path, [1, 0, 0])
    assert refused is None
    assert left == b"".join(messages_of(octets)[1:])


def test_a_file_size_limit_is_noticed_before_anything_moves(tmp_path):
    path = tmp_path / "spool"
    octets = mbox(*[b"x" * 999 + b"\n"] * 20)
    path.write_bytes(octets)
    spool = good(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        refused = spool.expunge(bytearray([1] + [0] * 19))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spool.close()
    assert refused is not None
    assert refused.kind == TEMPORARY
    assert path.read_bytes() == octets


def test_a_missing_spool_has_nothing_to_remove(tmp_path):
    spool = opened(tmp_path / "spool")
    assert spool.expunge(bytearray()) is None
    spool.close()
    assert not (tmp_path / "spool").exists()
