"""Message bodies: from stored octets to the octets that RETR and TOP send (RFC 1939 section 3).

`encode` and `top` take blocks of any size, cut anywhere, and hold one block at a time.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class WrongSize(Exception):
    """The body has another size than the client was told."""


def encode(blocks: Iterable[bytes], octets: int | None = None) -> Iterator[bytes]:
    """Yield the blocks with every bare LF as CRLF, dot-stuffed, and the final "." line.

    A last line without an end gets one. All other octets stay, a lone CR and a NUL, too. The body
    must have a size of `octets`, without dot-stuffing and the final line. If it has another,
    `WrongSize` is raised in place of the final line.
    """
    sent = 0
    held = b""  # a CR that ends a block: the LF of a CRLF may begin the next block
    at_line_start = True
    for block in blocks:
        block = held + block
        held = b""
        if block.endswith(b"\r"):
            held = b"\r"
            block = block[:-1]
        if not block:
            continue
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n")
        stuffed = block.replace(b"\n.", b"\n..")
        if at_line_start and block.startswith(b"."):
            stuffed = b"." + stuffed
        at_line_start = block.endswith(b"\n")
        line_ends = stuffed.replace(b"\n", b"\r\n")
        sent += len(line_ends) - (len(stuffed) - len(block))
        yield line_ends
    end = b"\r\r\n" if held else b"" if at_line_start else b"\r\n"
    if octets is not None and sent + len(end) != octets:
        raise WrongSize
    if end:
        yield end
    yield b".\r\n"


def top(blocks: Iterable[bytes], lines: int) -> Iterator[bytes]:
    """Yield the headers, the empty line, and the first `lines` lines of the body, as stored."""
    before = b"\n"  # up to two octets before the block: they decide whether a line is empty
    in_headers = True
    for block in blocks:
        if in_headers:
            window = before + block
            end = _end_of_headers(window)
            if end < 0:
                before = window[-2:]
                yield block
                continue
            in_headers = False
            yield block[: end - len(before)]
            block = block[end - len(before) :]
        if not lines:
            return
        found = block.count(b"\n")
        if found >= lines:
            end = 0
            for _ in range(lines):
                end = block.index(b"\n", end) + 1
            yield block[:end]
            return
        lines -= found
        yield block


def _end_of_headers(window: bytes) -> int:
    """The offset behind the first empty line; -1 if there is none."""
    ends = [found + len(mark) for mark in (b"\n\n", b"\n\r\n") if (found := window.find(mark)) >= 0]
    return min(ends, default=-1)
