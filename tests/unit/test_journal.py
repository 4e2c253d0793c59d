"""The redo journal: what is written is read again, or it is none."""

import os
import stat
from binascii import crc32

import pytest

from tpop3d.mailspool import journal as journals

OCTETS = bytes(range(251)) * 400  # no two blocks are the same
# first, final and size around the ends of blocks, and around the end of a chunk, made small here
SIZES = [
    (0, 1, 2),
    (0, 4096, 4097),
    (0, 4095, 8192),
    (1, 4096, 9000),
    (4095, 4097, 12_288),
    (4096, 8192, 8193),
    (4096, 8193, 20_000),
    (5000, 12_000, 25_600),
    (4097, 4097, 5000),
    (4096, 16_384, 16_385),
    (16_383, 16_385, 40_000),
    (100, 50_000, 100_000),
]


@pytest.fixture
def spool(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "CHUNK", 16_384)
    path = tmp_path / "spool"
    path.write_bytes(OCTETS)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def plan_of(spool, first, final, size):
    return journals.Plan("/var/mail/\udcff", os.fstat(spool).st_ino, first, final, size)


def written(directory, spool, first, final, size):
    """What is kept are the last octets."""
    plan = plan_of(spool, first, final, size)
    kept = [(spool, size - (final - first), size)]
    journals.write(str(directory), plan, spool, kept).close()
    return plan


@pytest.mark.parametrize(("first", "final", "size"), SIZES)
def test_it_is_read_as_it_was_written(tmp_path, spool, first, final, size):
    plan = written(tmp_path, spool, first, final, size)
    found = journals.read(str(tmp_path), len(OCTETS))
    for name in journals.Plan.__slots__:
        assert getattr(found.plan, name) == getattr(plan, name)
    assert found.read(first, final) == OCTETS[size - (final - first) : size]
    assert found.read(final, plan.border) == OCTETS[final : plan.border]
    assert found.table == journals.digests(spool, first, final)
    assert len(found.table) == len(list(journals.borders(first, final)))
    assert found.rest == journals.digest(spool, plan.border, size)
    fd, start, end = found.kept()
    assert os.pread(fd, end - start, start) == found.read(first, final)
    found.close()


def briefly(monkeypatch, octets):
    """From now on no call reads or writes more octets than so many: system calls may do less than
    they were asked for."""
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(
        os, "pread", lambda fd, length, position: pread(fd, min(length, octets), position)
    )
    monkeypatch.setattr(
        os, "pwrite", lambda fd, view, position: pwrite(fd, view[:octets], position)
    )


@pytest.mark.parametrize("octets", [1, 2, 3, 5, 7, 100])
def test_all_is_read_where_calls_read_little(spool, monkeypatch, octets):
    briefly(monkeypatch, octets)
    for position in (0, 1, 20, len(OCTETS) - 9):
        for length in (0, 1, 2, 4, 6, 9):
            got = journals.read_all(spool, position, length)
            assert got == OCTETS[position : position + length]
    with pytest.raises(OSError, match="unexpected end"):
        journals.read_all(spool, len(OCTETS) - 9, 10)


@pytest.mark.parametrize("octets", [1000, 4096, 10_000])
@pytest.mark.parametrize(("first", "final", "size"), [SIZES[1], SIZES[7], SIZES[-1]])
def test_it_is_the_same_where_calls_do_little(
    tmp_path, spool, monkeypatch, octets, first, final, size
):
    written(tmp_path, spool, first, final, size)
    whole = (tmp_path / "journal").read_bytes()
    briefly(monkeypatch, octets)
    written(tmp_path, spool, first, final, size)
    assert (tmp_path / "journal").read_bytes() == whole
    found = journals.read(str(tmp_path), len(OCTETS))
    assert found.read(first, final) == OCTETS[size - (final - first) : size]
    found.close()


@pytest.mark.parametrize("length", [0, 1, 16_383, 16_384, 16_385, 2 * 16_384, 2 * 16_384 + 1])
@pytest.mark.parametrize("start", [0, 1, 4096])
def test_what_is_read_block_by_block_is_all_of_it(spool, start, length):
    read = list(journals.blocks(spool, start, start + length))
    assert b"".join(read) == OCTETS[start : start + length]
    assert [len(one) for one in read[:-1]] == [journals.CHUNK] * (len(read) - 1)
    crc = crc32(OCTETS[start : start + length])
    assert journals.digest(spool, start, start + length) == crc


@pytest.mark.parametrize(("first", "final", "size"), SIZES)
def test_blocks_end_where_offsets_in_the_spool_say(first, final, size):
    blocks = list(journals.borders(first, final))
    assert [start for start, _ in blocks[1:]] == [end for _, end in blocks[:-1]]
    assert all(end % journals.BLOCK == 0 for _, end in blocks[:-1])
    assert sum(end - start for start, end in blocks) == final - first


def test_it_is_the_users_alone_and_under_its_name_only_when_complete(tmp_path, spool):
    (tmp_path / "journal.new").write_bytes(b"x" * 100_000)
    old = os.umask(0)
    try:
        written(tmp_path, spool, 5000, 6000, 7000)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) & 0o077 == 0
    assert {name.name for name in tmp_path.iterdir()} == {"spool", "journal"}
    journals.read(str(tmp_path), len(OCTETS)).close()


def test_every_octet_counts(tmp_path, spool):
    written(tmp_path, spool, 4000, 4200, 4300)
    path = tmp_path / "journal"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(journals.Invalid):
            journals.read(str(tmp_path), len(OCTETS))
        path.write_bytes(whole[:at])
        with pytest.raises(journals.Invalid):
            journals.read(str(tmp_path), len(OCTETS))
    path.write_bytes(whole + b"\0")
    with pytest.raises(journals.Invalid):
        journals.read(str(tmp_path), len(OCTETS))


def sparse(path, first, final, size):
    """4 KB on a disk, and as long as its header says that it is."""
    form = journals._HEADER
    plan = journals.Plan("", 1, first, final, size)
    blocks = -(-final // journals.BLOCK) - first // journals.BLOCK
    path.write_bytes(form.pack(journals.MAGIC, 1, first, final, size, 0))
    os.truncate(path, form.size + plan.border - first + 4 * blocks + 8)


@pytest.mark.parametrize("final", [len(OCTETS) + 1, 1 << 42])
def test_what_promises_more_than_the_spool_has_is_not_read(tmp_path, monkeypatch, final):
    sparse(tmp_path / "journal", 0, final, final + 5000)
    real, octets = os.pread, 0

    def pread(fd, length, position):
        nonlocal octets
        found = real(fd, length, position)
        octets += len(found)
        return found

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(journals.Unfit, match="shorter than it shall be"):
        journals.read(str(tmp_path), len(OCTETS))
    assert journals.plan(str(tmp_path)).final == final
    assert octets < 1000


def test_the_path_is_known_without_the_rest(tmp_path, spool):
    assert journals.plan(str(tmp_path)) is None
    written(tmp_path, spool, 5000, 12_000, 25_600)
    with (tmp_path / "journal").open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"damaged")
    assert journals.plan(str(tmp_path)).path == "/var/mail/\udcff"
    with pytest.raises(journals.Invalid, match="checksum"):
        journals.read(str(tmp_path), len(OCTETS))


def test_a_path_that_can_be_none(tmp_path, spool):
    written(tmp_path, spool, 5000, 12_000, 25_600)
    with (tmp_path / "journal").open("r+b") as file:
        file.seek(journals._HEADER.size + 2)
        file.write(b"\0")
    with pytest.raises(journals.Invalid, match="of no known form"):
        journals.plan(str(tmp_path))


@pytest.mark.parametrize("name", ["journal", "journal.new"])
def test_what_a_user_has_put_in_its_way(tmp_path, spool, name):
    """It waits for nobody, and there is no journal after it."""
    os.mkfifo(tmp_path / name)
    written(tmp_path, spool, 5000, 12_000, 25_600)
    journals.read(str(tmp_path), len(OCTETS)).close()
    (tmp_path / "journal").unlink()
    (tmp_path / name).mkdir()
    if name == "journal":
        with pytest.raises(IsADirectoryError):
            written(tmp_path, spool, 5000, 12_000, 25_600)
    else:
        written(tmp_path, spool, 5000, 12_000, 25_600)
        (tmp_path / "journal").unlink()
        (tmp_path / "journal.new" / "more").mkdir(parents=True)
        with pytest.raises(OSError, match=r"journal\.new is in the way"):
            written(tmp_path, spool, 5000, 12_000, 25_600)
    assert journals.withdraw(str(tmp_path))
    assert not (tmp_path / "journal").is_file()


def test_a_fifo_is_withdrawn_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "journal")
    assert journals.withdraw(str(tmp_path))


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ["open", "pwrite", "pread", "fsync", "rename"])
@pytest.mark.parametrize("after", range(3))
def test_what_cannot_be_written_is_withdrawn(tmp_path, spool, monkeypatch, name, after):
    """Whichever call fails, there is none afterwards, and no descriptor is left open."""
    real = getattr(os, name)
    calls = 0

    def failing(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise OSError(5, "Input/output error")
        return real(*arguments, **named)

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        try:
            written(tmp_path, spool, 5000, 12_000, 25_600)
        except OSError:
            assert journals.withdraw(str(tmp_path))
            assert not list(tmp_path.glob("journal*"))
        else:
            assert calls <= after
    assert descriptors() == before


def test_one_whose_name_cannot_be_removed_for_certain_is_emptied(tmp_path, spool, monkeypatch):
    """The name may be on the disk, and come back after a power cut."""
    written(tmp_path, spool, 5000, 12_000, 25_600)
    real, directory = os.fsync, tmp_path.stat().st_ino
    with (tmp_path / "journal").open("rb") as file, monkeypatch.context() as patch:

        def fsync(fd):
            if os.fstat(fd).st_ino == directory:
                raise OSError(5, "Input/output error")
            real(fd)

        patch.setattr(os, "fsync", fsync)
        assert journals.withdraw(str(tmp_path))
        assert file.read() == b""


def test_one_that_can_neither_be_removed_nor_emptied_is_there(tmp_path, spool, monkeypatch):
    written(tmp_path, spool, 5000, 12_000, 25_600)

    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    assert not journals.withdraw(str(tmp_path))
