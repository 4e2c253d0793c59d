"""Mailspools for tests: an oracle that reads one line by line, and ways to make odd ones."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

from hypothesis import strategies as st

from tpop3d.mailspool.locks import TRY
from tpop3d.mailspool.spool import Spool, Terms, open_spool
from tpop3d.mailspool.uidl_styles import TPOP3D
from tpop3d.system.refusal import Refusal

EMPTY_LINES = (b"\n", b"\r\n")


def lines_of(octets: bytes) -> list[bytes]:
    """Lines with their ends; a CR alone ends none."""
    return re.findall(rb"[^\n]*\n|[^\n]+", octets)


def messages_of(spool: bytes) -> list[bytes]:
    """The raw messages, each with its From_ line and separator, found the slow and plain way."""
    messages: list[list[bytes]] = []
    before = b"\n"
    for line in lines_of(spool):
        if line.startswith(b"From ") and before in EMPTY_LINES:
            messages.append([])
        if messages:
            messages[-1].append(line)
        before = line
    return [b"".join(lines) for lines in messages]


def separators_lead(spool: bytes) -> bool:
    """Is mail delivered here with the empty line before it? As the man page says."""
    lines = lines_of(spool)
    return bool(lines) and (
        lines[0] in EMPTY_LINES or (lines[-1].endswith(b"\n") and lines[-1] not in EMPTY_LINES)
    )


def is_envelope(line: bytes) -> bool:
    """Is a line that begins a message one that is not sent?"""
    return len(line) <= 512 and b"\r" not in line.removesuffix(b"\n").removesuffix(b"\r")


def content_of(message: bytes, leads: bool = False) -> bytes:
    """What of a raw message is content: no From_ line, no separator; of a spool whose separators
    lead, no empty line at the end."""
    lines = lines_of(message)
    if is_envelope(lines[0]):
        lines.pop(0)
    while lines and lines[-1] in EMPTY_LINES:
        lines.pop()
        if not leads:
            break
    return b"".join(lines)


def covered_whole(message: bytes) -> bytes:
    """A raw message without the empty lines at its end."""
    lines = lines_of(message)
    while lines[-1] in EMPTY_LINES:
        lines.pop()
    return b"".join(lines)


def covered(message: bytes, leads: bool = False) -> bytes:
    """What of a raw message its id is made of, as if one empty line stood behind it."""
    from_line, content = lines_of(message)[0], content_of(message, leads)
    text = from_line + content if is_envelope(from_line) else content
    newline = b"\r\n" if from_line.endswith(b"\r\n") else b"\n"
    return (text + (b"" if text.endswith(b"\n") else newline) + newline)[:512]


def on_the_wire(content: bytes) -> bytes:
    """The octets that RETR sends of a content, before dot-stuffing."""
    sent = b"".join(
        line if line.endswith(b"\r\n") else line.removesuffix(b"\n") + b"\r\n"
        for line in lines_of(content)
    )
    return sent


def unstuffed(body: bytes) -> bytes:
    """What a client makes of a multi-line body, which must end as it should."""
    assert body.endswith(b".\r\n")
    lines = body.split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    assert all(line != b"." for line in lines[:-2])
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:-2])


def mbox(*contents: bytes) -> bytes:
    """A tidy spool of these contents."""
    return b"".join(
        b"From sender@example.org Sun Nov 22 08:00:%02d 2026\n%b\n" % (n, content)
        for n, content in enumerate(contents)
    )


# Pieces that come out as all that is odd: separators that are none, CRLF, lone CR, NUL, 8-bit.
PIECES = [
    b"\n", b"\n", b"\n\n", b"\r\n", b"\r", b"\r\r\n", b"From ", b"\nFrom ", b"\n\nFrom a\n",
    b"\r\n\r\nFrom b\r\n", b">From ", b".", b"..", b"\n.\n", b"\0", b"\xff\xe4", b"text",
    b"Subject: x\n", b"F", b"Fr", b"\n\nFrom", b"\n\nFro", b"x" * 70,
]  # fmt: skip
odd_octets = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
# A spool begins with empty lines at most, then a message.
odd_spools = st.builds(
    lambda blank, rest: blank + b"From first\n" + rest, st.sampled_from([b"", b"\n"]), odd_octets
)
tidy_contents = st.lists(
    st.builds(
        lambda n, lines: b"Message-ID: <%d>\n\n%b" % (n, b"".join(lines)),
        st.integers(0, 99),
        st.lists(st.sampled_from([b"text\n", b"\n", b".\n", b"From the text\n", b"\r\n"])),
    ).filter(lambda content: not re.search(rb"\n\r?\nFrom ", content)),
    min_size=1,
    max_size=6,
)


def never_pause(seconds: float) -> bool:
    """A pause that gives up at once: no test waits for a lock that nobody gives back."""
    return True


Pause = Callable[[float], bool]


class How(TypedDict, total=False):
    """How a spool is opened: what `terms` takes."""

    dotlocks: str
    lock_timeout: float
    pause: Pause
    index: bool
    style: str
    flock: bool


def terms(
    dotlocks: str = TRY,
    lock_timeout: float = 0.2,
    pause: Pause = never_pause,
    *,
    index: bool = True,
    style: str = TPOP3D,
    flock: bool = True,
) -> Terms:
    return Terms(dotlocks, lock_timeout, pause, index, style, flock)


def opened(path: str | Path, **how: Unpack[How]) -> Spool | Refusal:
    """Open a spool as a session does; its state directory is beside it."""
    path = Path(path)
    state = path.parent / f"{path.name}.state"
    state.mkdir(exist_ok=True)
    return open_spool(str(path), os.geteuid(), str(state), terms(**how))


def good(path: str | Path, **how: Unpack[How]) -> Spool:
    spool = opened(path, **how)
    assert isinstance(spool, Spool), spool
    return spool
