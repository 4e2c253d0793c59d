"""Large spools: memory stays small. (How long they take is a matter of tests/bench.)"""

import os
from pathlib import Path

import pytest

import doors

MIB = 1 << 20
LINE = b"It was the best of times, it was the worst of times, it was the age of .\n"


def peak_memory(pid):
    """The most memory that a process has had so far, in octets (VmHWM of proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmHWM" in line)


def write_spool(path, messages, octets):
    """So many equal messages, for the disk's sake written in large pieces."""
    body = LINE * (octets // len(LINE))
    with path.open("wb") as file:
        for first in range(0, messages, 100):
            for n in range(first, min(first + 100, messages)):
                file.write(b"From a Sun Nov 22 08:00:00 2026\nSubject: %d\n\n" % n)
                file.write(body)
                file.write(b"\n")


@pytest.mark.slow
def test_a_hundred_thousand_messages_of_a_gigabyte_take_less_than_100_mb(site):
    site.add("anna")
    write_spool(site.spool("anna"), 100_000, 10_000)
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert wire.ask("STAT").startswith(b"+OK 100000 ")
        assert wire.ask_long("LIST")[1].count(b"\n") == 100_000
        assert peak_memory(wire.process.pid) < 100 * MIB
        listing = wire.ask_long("UIDL")[1]
        assert len(set(listing.split()[1::2])) == 100_000
        assert peak_memory(wire.process.pid) < 100 * MIB
        assert wire.ask("QUIT").startswith(b"+OK")


@pytest.mark.slow
def test_a_message_of_500_mb_is_sent_in_constant_memory(site):
    site.add("anna")
    write_spool(site.spool("anna"), 1, 500 * MIB)
    with doors.inetd(site) as wire:
        wire.login("anna")
        size = int(wire.ask("LIST 1").split()[2])
        assert wire.ask("RETR 1").startswith(b"+OK")
        received = 0
        buffer = bytearray(MIB)
        tail = b""
        while not tail.endswith(b"\r\n.\r\n"):
            got = wire.reader.readinto1(buffer)
            assert got, "the connection ended"
            received += got
            tail = (tail + buffer[max(0, got - 5) : got])[-5:]
        assert received == size + len(b".\r\n")  # no line of it needs a second dot
        assert peak_memory(wire.process.pid) < 64 * MIB
        assert wire.ask("QUIT").startswith(b"+OK")
    assert os.path.getsize(site.spool("anna")) > 500 * MIB - len(LINE)
