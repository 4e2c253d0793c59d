"""A large spool is scanned by two processes at the same time, each half of it."""

from __future__ import annotations

import os
import select
import struct

from tpop3d.mailspool.scan import (
    BLOCK,
    COLUMNS,
    DIGEST,
    Listing,
    do_nothing,
    do_separators_lead,
    scan,
)
from tpop3d.system import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

WORTH = 1 << 26  # octets: a smaller spool is scanned in less time than anybody notices
PATIENCE = 10.0  # seconds between two refreshes, while the other process is at work
_COUNT = struct.Struct("<QB")  # messages; is there a surplus of separators?


def scan_all(
    fd: int,
    end: int,
    with_digests: bool = False,
    separators_lead: bool | None = None,
    refresh: Callable[[], None] = do_nothing,
) -> Listing:
    """What `scan` gives for a spool from its start to `end`, and raises; of a large one sooner
    where there are two processors."""
    leads = do_separators_lead(fd, end) if separators_lead is None else separators_lead
    middle = -1
    if end >= WORTH and len(os.sched_getaffinity(0)) > 1:
        middle = _start_of_a_message(fd, end // 2, end)
    if middle < 0:
        return scan(fd, 0, end, with_digests, leads, refresh)
    try:
        pid, pipe = _scan_beside(fd, middle, end, with_digests, leads)
    except OSError:
        return scan(fd, 0, end, with_digests, leads, refresh)
    try:
        listing = scan(fd, 0, middle, with_digests, leads, refresh)
        rest = _read_all(pipe, refresh)
    finally:
        os.close(pipe)
        os.kill(pid, signal.SIGKILL)  # it has ended already, unless we have no use for it
        os.waitpid(pid, 0)
    if not _append(listing, rest, with_digests):
        # Whatever it has met, we meet, too.
        listing = scan(fd, 0, end, with_digests, leads, refresh)
    listing.end = end
    return listing


def _start_of_a_message(fd: int, position: int, end: int) -> int:
    """The first message that is seen to start behind `position`; -1 where none is near."""
    for offset in range(position, min(end, position + 16 * BLOCK), BLOCK):
        found = os.pread(fd, BLOCK + 6, offset).find(b"\n\nFrom ")
        if found >= 0:
            return offset + found + 2
    return -1


def _scan_beside(fd: int, start: int, end: int, with_digests: bool, leads: bool) -> tuple[int, int]:
    """Scan in another process; returns its pid, and where what it found can be read. Raises
    OSError where there can be no such process."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # A signal to us all is for the one that remains, whose handlers the other one has, too.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _write_down(fd, start, end, with_digests, leads, write_end)
    except OSError:
        os.close(read_end)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write_end)  # the other process has it still
    return pid, read_end


def _write_down(
    fd: int, start: int, end: int, with_digests: bool, leads: bool, pipe: int
) -> NoReturn:
    """What the other process does. It says nothing of what it cannot do, and ends."""
    try:
        listing = scan(fd, start, end, with_digests, leads)
        columns = [getattr(listing, name).tobytes() for name in COLUMNS]
        rest = memoryview(
            b"".join([_COUNT.pack(len(listing), listing.has_surplus), *columns, listing.digests])
        )
        while rest:
            rest = rest[os.write(pipe, rest) :]
    finally:
        os._exit(0)


def _read_all(pipe: int, refresh: Callable[[], None]) -> bytes:
    """What comes up to the other end's closing."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        while not poll.poll(PATIENCE * 1000):
            refresh()
        if not (part := os.read(pipe, BLOCK)):
            return b"".join(parts)
        parts.append(part)


def _append(listing: Listing, octets: bytes, with_digests: bool) -> bool:
    """Add what the other process has written down; False where that is not all of it."""
    count, has_surplus = _COUNT.unpack_from(octets) if len(octets) >= _COUNT.size else (0, 0)
    lengths = [count * getattr(listing, name).itemsize for name in COLUMNS]
    digests = count * DIGEST if with_digests else 0
    if not count or len(octets) != _COUNT.size + sum(lengths) + digests:
        return False
    position = _COUNT.size
    for name, length in zip(COLUMNS, lengths, strict=True):
        getattr(listing, name).frombytes(octets[position : position + length])
        position += length
    listing.digests += octets[position:]
    listing.has_surplus |= bool(has_surplus)
    return True
