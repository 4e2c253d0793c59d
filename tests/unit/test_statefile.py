"""A user can put anything into his state directory. None of it is followed or waited for."""

import os
import socket
import threading
from array import array

import pytest

from mailsite import poll
from tpop3d.mailspool import statefile
from tpop3d.mailspool.statefile import NotRegular

OCTETS = b"1 0000000002\n"


def fifo(path):
    os.mkfifo(path)


def directory(path):
    path.mkdir()


def link(path):
    path.with_name("target").write_bytes(OCTETS)
    path.symlink_to("target")


def link_to_nothing(path):
    path.symlink_to("nowhere")


def link_to_a_terminal(path):
    path.symlink_to("/dev/ptmx")


def link_to_itself(path):
    path.symlink_to(path.name)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


ODD = [
    fifo, directory, link, link_to_nothing, link_to_a_terminal, link_to_itself, unix_socket,
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT])
def test_what_is_no_regular_file(path, make, flags):
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    assert statefile.read(str(path), 1000) is None
    with pytest.raises(NotRegular, match="not a regular file"):
        statefile.open_regular(str(path), flags)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not path.with_name("nowhere").exists()


def test_what_is_not_there(path):
    assert statefile.read(str(path), 1000) is None
    with pytest.raises(FileNotFoundError):
        statefile.open_regular(str(path))


@pytest.mark.parametrize(("limit", "found"), [(0, False), (12, False), (13, True), (1000, True)])
def test_no_more_is_read_than_it_can_be(path, limit, found):
    path.write_bytes(OCTETS)
    assert statefile.read(str(path), limit) == (OCTETS if found else None)


def test_a_sparse_file_is_not_read(path):
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 43)
    assert statefile.read(str(path), 1 << 42) is None


def test_a_file_that_nobody_may_read(path):
    path.write_bytes(OCTETS)
    path.chmod(0)
    assert statefile.read(str(path), 1000) == (OCTETS if os.geteuid() == 0 else None)


def test_a_part(path):
    path.write_bytes(OCTETS)
    fd = statefile.open_regular(str(path))
    assert statefile.read_part(fd, 2, 4) == b"0000"
    assert statefile.read_part(fd, 2, 4000) == OCTETS[2:]
    assert statefile.read_part(fd, 4000, 1) == b""
    os.close(fd)


def test_opened_for_others_to_lock(path):
    fd = statefile.open_regular(str(path), os.O_RDWR | os.O_CREAT)
    assert path.stat().st_mode & 0o777 == 0o600
    os.close(fd)


@pytest.mark.parametrize("make", ODD)
def test_whatever_has_the_name_of_a_new_file(path, make):
    """It is removed, not written to; and so is what is left of an earlier one."""
    make(path.with_name("file.new"))
    statefile.replace(str(path), [OCTETS])
    assert path.read_bytes() == OCTETS
    assert {one.name for one in path.parent.iterdir()} <= {"file", "target"}


def test_a_directory_that_is_in_the_way(path):
    path.write_bytes(OCTETS)
    path.with_name("file.new").mkdir()
    path.with_name("file.new").joinpath("more").write_bytes(b"")
    with pytest.raises(OSError, match=r"/file\.new is in the way"):
        statefile.replace(str(path), [b"other"])
    assert path.read_bytes() == OCTETS
    assert not statefile.remove(f"{path}.new")


def test_a_file_is_replaced_as_a_whole(path):
    path.write_bytes(b"before")
    statefile.replace(str(path), [b"a", bytearray(b"b"), memoryview(b"c"), array("I", [1])], True)
    assert path.read_bytes() == b"abc" + array("I", [1]).tobytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_or_not_at_all(path):
    path.write_bytes(b"before")

    def parts():
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        statefile.replace(str(path), parts())
    assert path.read_bytes() == b"before"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_somebody_who_waits_at_the_fifo_gets_nothing(path):
    """A FIFO whose other end is open could be written to."""
    os.mkfifo(path.with_name("file.new"))
    got = []
    reader = threading.Thread(target=lambda: got.append(path.with_name("file.new").read_bytes()))
    reader.start()
    end = []

    def is_open():
        try:
            end.append(os.open(path.with_name("file.new"), os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    poll(is_open, "the reader to open its end")
    statefile.replace(str(path), [OCTETS])
    os.close(end[0])
    reader.join()
    assert got == [b""]
    assert path.read_bytes() == OCTETS


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_bytes(b""), *ODD])
def test_removing(path, make):
    make(path)
    assert statefile.remove(str(path))
    assert not os.path.lexists(path)
