"""Expunges that are interrupted, and what they leave: a program of its own, since it forks often.

usage: killing.py DIRECTORY PART PARTS

Every subset of a few messages is removed from spools of several shapes, and that is interrupted at
every call that touches spool, journal, index, ids or lock: the process is killed before it, within
it or after it, or the call fails or does half of what it should. Mail is delivered before, after,
and while it is recovered; recovery is interrupted, too, at every call of its own. PART of PARTS is
one part of all that, from 0 on: `0 1` is everything, which takes some minutes. Prints how many
cases there were; exit status 1 and what is wrong at the first one that ends neither old nor new.
"""

import errno
import fcntl
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tpop3d.mailspool import index as indexes
from tpop3d.mailspool import locks
from tpop3d.mailspool.locks import TRY
from tpop3d.mailspool.spool import Spool, Terms, open_spool
from tpop3d.mailspool.uidl_styles import TPOP3D
from tpop3d.system.refusal import PARTIAL, Refusal

OF_OS = "open", "link", "write", "pwrite", "fsync", "ftruncate", "rename", "unlink", "utime"
CALLS = [*((os, name) for name in OF_OS), (fcntl, "fcntl"), (fcntl, "flock")]
WRITES = ("write", "pwrite")
HOWS: list[str | int] = ["before", "within", "after", "half", errno.EIO, errno.ENOSPC, errno.EINTR]
DONE, UNCHANGED, LATER, NOT_OPENED, FEWER, BROKEN = range(6)
SHAPES = {
    "small": [b"message %d\n" % n for n in range(4)],
    "blocks": [b"%d\n" % n + b"x" * (3000 + 500 * n) + b"\n" for n in range(4)],
    "large and small": [b"a\n", b"y" * 20_000 + b"\n", b"b\n", b"c\n"],
    # What they have for ids depends on who else is there, or was.
    "twins": [b"z" * 600 + b"%d\n" % n for n in (1, 2, 1)] + [b"d\n"],
}
# Marks for the messages, and for what was delivered before.
SUBSETS = [(*marks, 0) for marks in itertools.product((0, 1), repeat=4) if any(marks)]
SUBSETS.append((1, 1, 1, 1, 1))
NEW = [b"From new@example.org Mon Nov 23 08:00:00 2026\nnew %d\n\n" % n for n in range(3)]


def spool_of(contents: Iterable[bytes]) -> list[bytes]:
    line = b"From sender@example.org Sun Nov 22 08:00:00 2026\n"
    return [line + content + b"\n" for content in contents]


def interrupt_at(at: int, how: str | int) -> Callable[[], int]:
    """From now on the call number `at` is the last one, or goes wrong; returns a counter."""
    count = 0

    def instead_of(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count != at:
                return real(*arguments, **named)
            if isinstance(how, int):
                raise OSError(how, os.strerror(how))
            if how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if name in WRITES and how in ("within", "half"):
                fd, octets, *position = arguments
                result = real(fd, bytes(octets)[: max(1, len(octets) // 3)], *position)
            else:
                result = real(*arguments, **named)
            if how != "half":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for module, name in CALLS:
        setattr(module, name, instead_of(name, getattr(module, name)))
    return lambda: count


def in_a_process(action: Callable[[], int], at: int, how: str | int) -> int:
    """What `action` came to; minus a signal's number if that has ended it."""
    pid = os.fork()
    if not pid:
        status = BROKEN
        try:
            count = interrupt_at(at, how)
            result = action()
            status = FEWER if count() < at else result
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def deliver(path: str, number: int) -> None:
    with open(path, "ab", buffering=0) as file:
        os.writev(file.fileno(), [NEW[number]])


def opened(path: str, state: str) -> Spool | Refusal:
    return opened_for(path, state)


def _nap(seconds: float) -> bool:
    time.sleep(0.0005)
    return False  # do not give up


def opened_for(
    path: str, state: str, *, style: str = TPOP3D, index: bool = True
) -> Spool | Refusal:
    # A dotlock that a dead process has left is broken, which takes a second try.
    terms = Terms(TRY, 0.5, _nap, index, style)
    return open_spool(path, os.geteuid(), state, terms)


def expunge(path: str, state: str, marks: Sequence[int]) -> int:
    spool = opened(path, state)
    if isinstance(spool, Refusal):
        return NOT_OPENED
    spool.unique_ids()
    refused = spool.expunge(bytearray(marks))
    spool.close()
    if refused is None:
        return DONE
    return LATER if refused.kind == PARTIAL else UNCHANGED


def recover(path: str, state: str) -> int:
    spool = opened(path, state)
    if isinstance(spool, Refusal):
        return NOT_OPENED
    if spool.found is not None and spool.found.is_alarming:
        return BROKEN
    spool.close()
    return DONE


def check_listing(
    path: str, state: str, messages: Sequence[bytes], wanted_ids: list[bytes]
) -> bool:
    """What a session sees, index or not, is what is there; and each message has the id that it had
    when all were there."""
    spool = opened(path, state)
    assert isinstance(spool, Spool), spool
    bodies = [b"".join(spool.blocks(n)) for n in range(len(spool))]
    wanted = [one.partition(b"\n")[2][:-1] for one in messages]
    ids = spool.unique_ids()
    spool.close()
    return bodies == wanted and list(ids) == wanted_ids


def ids_of(path: str, state: str, messages: Sequence[bytes]) -> list[bytes]:
    """The ids of all messages when they are all there, and nobody has been there before."""
    put(path, state, messages)
    spool = opened(path, state)
    assert isinstance(spool, Spool), spool
    ids = list(spool.unique_ids())
    spool.close()
    return ids


def put(path: str, state: str, messages: Iterable[bytes]) -> None:
    with open(path, "r+b" if os.path.exists(path) else "wb") as file:
        file.truncate(0)
        file.write(b"".join(messages))
    for name in os.listdir(state):
        os.unlink(f"{state}/{name}")


def recover_interrupted(path: str, state: str, how: str | int) -> str:
    """Interrupt recovery at its first call, then at its second, until it is done; returns what is
    wrong. Mail comes meanwhile."""
    for again in itertools.count(1):
        end = in_a_process(lambda: recover(path, state), again, how)
        if end == BROKEN:
            return f"recovery has a bug, when interrupted at {again}"
        if again == 3:
            deliver(path, 2)
        if end == FEWER:
            break
    if again < 3:
        deliver(path, 2)
    return ""


def case(
    path: str,
    state: str,
    messages: list[bytes],
    ids: list[bytes],
    marks: tuple[int, ...],
    at: int,
    how: str | int,
) -> tuple[bool, str]:
    """One interruption; returns whether there was one, and what is wrong."""
    put(path, state, [*messages, NEW[0]])
    status = in_a_process(lambda: expunge(path, state, marks), at, how)
    if status == FEWER:
        return False, ""
    if status == BROKEN:
        return True, "the program has a bug"
    deliver(path, 1)
    if at % 5:
        deliver(path, 2)
        if recover(path, state) != DONE:
            return True, "it is not recovered"
    elif wrong := recover_interrupted(path, state, how):
        return True, wrong
    old = [*messages, *NEW]
    kept = [one for one, mark in zip(old, (*marks, 0, 0), strict=True) if not mark]
    kept_ids = [one for one, mark in zip(ids, (*marks, 0, 0), strict=True) if not mark]
    wanted = [] if status == UNCHANGED else [kept]
    if status not in (DONE, LATER):
        wanted.append(old)
    with open(path, "rb") as file:
        found = file.read()
    fitting = [one for one in wanted if b"".join(one) == found]
    if not fitting:
        return True, f"status {status}: {found[:500]!r}"
    if not check_listing(path, state, fitting[0], kept_ids if fitting[0] is kept else ids):
        return True, "the listing is wrong"
    left = {name for name in os.listdir(state) if name.startswith(("journal", "ids."))}
    return True, f"left behind: {left}" if left else ""


def main() -> int:
    directory, part, parts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    path, state = f"{directory}/spool", f"{directory}/state"
    os.mkdir(state)
    indexes.WORTH = 0  # also the smallest has one
    locks.REFRESH_AFTER = 0  # as if all took long
    cases = 0
    everything = itertools.product(SHAPES, SUBSETS, HOWS)
    for shape, marks, how in itertools.islice(everything, part, None, parts):
        messages = spool_of(SHAPES[shape])
        ids = ids_of(path, state, [*messages, *NEW])
        for at in itertools.count(1):
            is_one, wrong = case(path, state, messages, ids, marks, at, how)
            if wrong:
                print(f"{shape}, {marks}, {how} at call {at}: {wrong}")
                return 1
            if not is_one:
                break
            cases += 1
    print(cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
