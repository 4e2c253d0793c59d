"""Opening, checking and reading a maildrop."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsite import IS_ROOT
from spools import (
    content_of,
    good,
    mbox,
    messages_of,
    odd_spools,
    on_the_wire,
    opened,
    separators_lead,
    unstuffed,
)
from tpop3d.mailspool import spool as spool_module
from tpop3d.mailspool.failures import Truncated
from tpop3d.pop3.stuffing import encode, top
from tpop3d.system.refusal import IN_USE, PERMANENT, Refusal

TWO = mbox(b"Subject: one\n\nfirst\n", b"Subject: two\n\nsecond\n")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(TWO)
    return path


@given(octets=odd_spools, block=st.integers(1, 30), lines=st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_what_is_sent_is_what_is_stored(tmp_path_factory, octets, block, lines):
    path = tmp_path_factory.mktemp("spool") / "spool"
    path.write_bytes(octets)
    spool = good(path)
    before = spool_module.BLOCK
    spool_module.BLOCK = block
    try:
        messages = messages_of(octets)
        assert len(spool) == len(messages)
        for index, message in enumerate(messages):
            stored = b"".join(spool.blocks(index))
            assert stored == content_of(message, separators_lead(octets))
            sent = unstuffed(b"".join(encode(spool.blocks(index))))
            assert sent == on_the_wire(stored)
            assert len(sent) == spool.octets[index]
            shown = unstuffed(b"".join(encode(top(spool.blocks(index), lines))))
            assert sent.startswith(shown)
    finally:
        spool_module.BLOCK = before
        spool.close()


def test_a_missing_spool_is_an_empty_maildrop(tmp_path):
    spool = good(tmp_path / "spool")
    assert len(spool) == 0
    assert spool.changed() is None
    assert list(spool.unique_ids()) == []
    spool.close()


def directory(path):
    path.mkdir()


def fifo(path):
    os.mkfifo(path)


def link(path):
    (path.parent / "elsewhere").write_bytes(TWO)
    path.symlink_to("elsewhere")


def socket(path):
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def garbage(path):
    path.write_bytes(b"no mbox\n")


@pytest.mark.parametrize("make", [directory, fifo, link, socket, garbage])
def test_what_is_no_mbox_file_is_refused_for_somebody_to_mend(tmp_path, make):
    path = tmp_path / "spool"
    make(path)
    refused = opened(path)
    assert isinstance(refused, Refusal)
    assert refused.kind == PERMANENT
    assert str(path) in refused.reason


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a file away")
def test_a_spool_of_another_user_is_refused(path):
    os.chown(path, 65534, -1)
    refused = opened(path)
    assert isinstance(refused, Refusal)
    assert refused.kind == PERMANENT
    assert "owned by uid 65534" in refused.reason


def test_garbage_is_logged_with_its_offset_and_never_touched(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(b"\n\nwhat is this\n\n" + TWO)
    refused = opened(path)
    assert isinstance(refused, Refusal)
    assert "offset 2" in refused.reason
    assert path.read_bytes() == b"\n\nwhat is this\n\n" + TWO


def test_a_second_session_is_told_that_the_maildrop_is_in_use(path):
    first = good(path)
    second = opened(path)
    assert isinstance(second, Refusal)
    assert second.kind == IN_USE
    first.close()
    good(path).close()


def test_no_lock_is_held_between_scan_and_expunge(path):
    import fcntl

    spool = good(path)
    assert not Path(f"{path}.lock").exists()
    with path.open("r+b") as file:
        # Our own POSIX lock conflicts with an open-file-description lock of the same process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    spool.close()


def append(path, octets):
    with path.open("ab") as file:
        file.write(octets)


GROWTH = [
    mbox(b"Subject: new\n\ntext\n"),
    b"From n",
    b"F",
    b"\n",
    b"\nFrom somebody",
]


@pytest.mark.parametrize("grown", GROWTH)
def test_growing_is_no_change(path, grown):
    spool = good(path)
    append(path, grown)
    assert spool.changed() is None
    assert spool.changed() is None
    spool.close()


def shorter(path):
    os.truncate(path, len(TWO) - 1)


def other_octets(path):
    path.write_bytes(TWO.replace(b"first", b"f1rst"))


def first_removed_and_new_mail(path):
    path.write_bytes(messages_of(TWO)[1] + TWO)


def another_file(path):
    path.rename(path.with_suffix(".old"))
    path.write_bytes(TWO)


def removed(path):
    path.unlink()


def status_in_the_first(path):
    path.write_bytes(TWO.replace(b"Subject: one\n", b"Subject: one\nStatus: RO\n"))


def status_in_the_last(path):
    path.write_bytes(TWO.replace(b"Subject: two\n", b"Subject: two\nStatus: RO\n"))


def last_message_longer(path):
    append(path, b"more of it\n")


@pytest.mark.parametrize(
    "change",
    [
        shorter,
        other_octets,
        first_removed_and_new_mail,
        another_file,
        removed,
        status_in_the_first,
        status_in_the_last,
        last_message_longer,
    ],
)
def test_any_other_change_is_noticed_and_nothing_is_removed(path, change):
    spool = good(path)
    change(path)
    after = path.read_bytes() if path.exists() else None
    assert spool.changed() is not None
    refused = spool.expunge(bytearray([1, 0]))
    assert isinstance(refused, Refusal)
    assert (path.read_bytes() if path.exists() else None) == after
    spool.close()


def test_messages_of_the_same_length_are_told_apart(tmp_path):
    # Nightly reports: all of one size, so that every boundary fits after one was removed.
    path = tmp_path / "spool"
    reports = [b"From cron Sun Nov 22 08:00:%02d 2026\nall well\n\n" % n for n in range(5)]
    path.write_bytes(b"".join(reports))
    spool = good(path)
    path.write_bytes(b"".join(reports[1:]) + reports[0].replace(b":00 ", b":59 "))
    assert "message 1" in spool.changed().reason
    spool.close()


def test_a_message_that_is_gone_while_it_is_read_is_an_error(path):
    path.write_bytes(mbox(b"x" * 1_000_000))
    spool = good(path)
    blocks = spool.blocks(0)
    next(blocks)
    os.truncate(path, 300_000)
    with pytest.raises(Truncated):
        list(blocks)
    spool.close()


def test_closing_twice_closes_nothing_of_others(path):
    spool = good(path)
    spool.close()
    with path.open("rb") as other:
        spool.close()
        assert other.read() == TWO
