"""Scans a large spool with two processes at the same time, half of it each."""

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

WORTH = 1 << 26  # octets: nobody notices how long a smaller spool takes
PATIENCE = 10.0  # seconds between two refreshes while we wait for the child
_COUNT = struct.Struct("<QB")  # number of messages; `has_surplus` of the listing


def scan_all(
    fd: int,
    end: int,
    with_digests: bool = False,
    separators_lead: bool | None = None,
    refresh: Callable[[], None] = do_nothing,
) -> Listing:
    """List the messages of a spool from its start to `end`; returns and raises what `scan` does.

    With two processors, a child scans the second half of a large spool.
    """
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
        os.kill(pid, signal.SIGKILL)  # the child has ended already, unless our scan has failed
        os.waitpid(pid, 0)
    if not _append(listing, rest, with_digests):
        # We meet what the child has met, and raise it.
        listing = scan(fd, 0, end, with_digests, leads, refresh)
    listing.end = end
    return listing


def _start_of_a_message(fd: int, position: int, end: int) -> int:
    """The offset of the first message that starts behind `position`; -1 if none is near."""
    for offset in range(position, min(end, position + 16 * BLOCK), BLOCK):
        found = os.pread(fd, BLOCK + 6, offset).find(b"\n\nFrom ")
        if found >= 0:
            return offset + found + 2
    return -1


def _scan_beside(fd: int, start: int, end: int, with_digests: bool, leads: bool) -> tuple[int, int]:
    """Fork a child that scans from `start`; returns its pid, and a pipe with what it has found.
    Raises OSError if there can be no child."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # The child has our signal handlers. A signal to the process group is for the parent alone.
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
        os.close(write_end)  # the child keeps its own
    return pid, read_end


def _write_down(
    fd: int, start: int, end: int, with_digests: bool, leads: bool, pipe: int
) -> NoReturn:
    """In the child: scan, write the listing to the pipe, and exit. On any error it exits silently,
    and its listing is not complete."""
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
    """Read a pipe to its end; `refresh` is called every `PATIENCE` seconds meanwhile."""
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
    """Append the messages that the child has found; False if its listing is not complete."""
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
