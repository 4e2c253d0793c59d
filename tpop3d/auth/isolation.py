"""Asks a driver in a process of its own, which can be cut off, and whose memory goes with it.

This is for drivers that read secrets of other users or run foreign code: the process that becomes
the session must have neither. The child writes its answer to a pipe, in a fixed form, and the
answer is trusted no more than the code that has run there.
"""

from __future__ import annotations

import os
import resource
import struct
from time import monotonic

from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Account, Login, Verdict, checked
from tpop3d.system import logs, signal, titles
from tpop3d.system.io import MAX_POLL, close_all_but, ready
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.auth.driver import Driver
    from tpop3d.auth.hosts import Hosts

MAX_ANSWER = 1 << 16  # octets
MAX_REASON = 1000  # octets of a reason for the log
# Answer, uid, gid, gid for dotlocks or 0, lengths of reason and name, number of mailboxes.
_HEADER = struct.Struct("!cIIIHHB")
_LENGTHS = struct.Struct("!HH")  # of a path, and of the required directory at its start
_ANSWERS = {b"y": YES, b"n": NO, b"i": NO, b"?": CANNOT_SAY}
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IMPOSSIBLE = b"i"  # a no that is not a guess
_NOTE = struct.Struct("!cH")  # kind and length of a note, which comes before the answer
_NOTED = b"#"
MAX_NOTE = 200  # octets

# In a driver's process: the pipe for its answer, and the time of monotonic() when it is cut off.
_write_end = -1
_deadline = float("inf")


def ask(driver: Driver, login: Login, seconds: float) -> Verdict:
    """Ask a driver; returns its verdict, or *cannot say* if it gives none within `seconds`."""
    return _run(lambda: checked(driver.authenticate(login)), seconds, _needed(driver))


def tell(
    driver: Driver, on_login: Callable[[Login], Refusal | None], login: Login, seconds: float
) -> Refusal | None:
    """Tell a driver of a good login."""

    def work() -> Verdict:
        refused = on_login(login)
        return Verdict.no("" if refused is None else refused.reason)

    why = _run(work, seconds, _needed(driver)).reason
    return Refusal(why) if why else None


def serve(work: Callable[[], object], seconds: float, keep: tuple[int, ...]) -> None:
    """In a child that was forked for this: call `work`, with the descriptors `keep` open, and exit.

    Does not return. An alarm ends the process soon after `seconds`.
    """

    def silently() -> Verdict:
        work()
        return Verdict.no("")

    _work(silently, -1, seconds, keep)


def seconds_left() -> float:
    """In a driver's process: the seconds until it is cut off. Elsewhere: infinity."""
    return _deadline - monotonic()


def note(what: str) -> None:
    """In a driver's process: say what it waits for from now on, for the log if it is cut off."""
    if _write_end >= 0:
        octets = what.encode("utf-8", "surrogatepass")[:MAX_NOTE]
        os.write(_write_end, _NOTE.pack(_NOTED, len(octets)) + octets)


def _needed(driver: Driver) -> tuple[int, ...]:
    """The descriptors that a driver's process keeps."""
    hosts: Hosts | None = getattr(driver, "hosts", None)
    return () if hosts is None else hosts.descriptors


def _run(work: Callable[[], Verdict], seconds: float, keep: tuple[int, ...]) -> Verdict:
    """Call `work` in a process of its own; returns its verdict, or *cannot say* if it is late.

    When this returns, the process is gone, and so is its process group. If it was cut off, all its
    descendants are gone, too, except those whose parent has died before.
    """
    read_end, write_end = os.pipe()
    # A signal that ends us raises an exception here. It must not come before `finally` can kill.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        raise
    if not pid:
        _work(work, write_end, seconds, keep, masked)
    os.close(write_end)
    deadline = monotonic() + seconds
    watched = -1
    in_time = False
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        watched = os.pidfd_open(pid)
        answer, is_whole = _read(read_end, watched, deadline)
        in_time = is_whole and bool(ready(deadline - monotonic(), watched))
    finally:
        os.close(read_end)
        if watched >= 0:
            os.close(watched)
        for descendant in () if in_time else _descendants(pid):
            _send(os.kill, descendant, signal.SIGKILL)
        for kill in (os.killpg, os.kill):
            _send(kill, pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    noted, answer = _noted(answer)
    if not in_time:
        why = f": it waited for {noted}" if noted else ""
        return Verdict.cannot_say(f"driver gave no answer in {seconds:g} seconds{why}")
    if os.WIFSIGNALED(status):
        return Verdict.cannot_say(f"driver was ended by signal {os.WTERMSIG(status)}")
    return _decode(answer)


def _work(
    work: Callable[[], Verdict],
    write_end: int,
    seconds: float,
    keep: tuple[int, ...],
    masked: set[int] | None = None,
) -> None:
    """In the child: call `work`, with the signals `masked` blocked, and exit. Does not return.

    The verdict goes to `write_end`, unless that is -1.
    """
    global _write_end, _deadline
    try:
        titles.restore()
        _write_end, _deadline = write_end, monotonic() + seconds
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold passwords
        # If the parent is killed, nobody else would cut this process off.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(min(seconds, MAX_POLL)) + 2)
        signal.set_wakeup_fd(-1)
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        if masked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        # A terminal on stdin is that of an administrator who tries a login; a client has none.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        # Neither the driver nor a process that it leaves running may have the client's connection.
        logs.reopen(lambda log: close_all_but((write_end, *keep, *log)))
        try:
            answer = _encode(work())
        except BaseException as error:
            answer = _encode(Verdict.cannot_say(f"driver failed: {logs.describe(error)}"))
        if write_end >= 0:
            os.write(write_end, answer)
    finally:
        os._exit(0)


def _descendants(pid: int) -> list[int]:
    """All descendants of a process, in any process group. Stops them, so that they fork no more."""
    found = [pid]
    for one in found:
        _send(os.kill, one, signal.SIGSTOP)
        try:
            for thread in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{thread}/children") as children:
                    found += map(int, children.read().split())
        except OSError:
            pass  # it is gone, or the kernel keeps no such list
    return found[1:]


def _send(kill: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it is gone, or runs as a user whose processes we may not kill


def _read(fd: int, watched: int, deadline: float) -> tuple[bytes, bool]:
    """Read what the process has written; returns it, and whether that is complete.

    It is complete if the process has exited or closed its end in time, and has not written more
    than `MAX_ANSWER` octets.
    """
    received = b""
    while len(received) <= MAX_ANSWER:
        found = ready(deadline - monotonic(), fd, watched)
        if fd in found:
            octets = os.read(fd, MAX_ANSWER)
            if not octets:
                return received, True
            received += octets
        elif watched in found:
            return received, True  # it has exited, and a process that it has started has not
        else:
            break
    return received, False


def _noted(received: bytes) -> tuple[str, bytes]:
    """Split the notes off the beginning of an answer; returns the last note, and the answer."""
    last = b""
    while received[:1] == _NOTED and len(received) >= _NOTE.size:
        _, length = _NOTE.unpack_from(received)
        end = _NOTE.size + length
        if length > MAX_NOTE or len(received) < end:
            break
        last, received = received[_NOTE.size : end], received[end:]
    return last.decode("utf-8", "replace"), received


def _encode(verdict: Verdict) -> bytes:
    kind = next(code for code, answer in _ANSWERS.items() if answer == verdict.answer)
    kind = _IMPOSSIBLE if verdict.answer == NO and not verdict.is_guess else kind
    reason = verdict.reason.encode("utf-8", "surrogatepass")[:MAX_REASON]
    account = verdict.account
    if account is None:
        return _HEADER.pack(kind, 0, 0, 0, len(reason), 0, 0) + reason
    ids = account.uid, account.gid, account.lock_gid or 0
    lengths = len(reason), len(account.name)
    answer = _HEADER.pack(kind, *ids, *lengths, len(account.mailboxes)) + reason + account.name
    for mailbox, required in zip(account.mailboxes, account.required, strict=True):
        path = os.fsencode(mailbox)
        answer += _LENGTHS.pack(len(path), len(os.fsencode(required))) + path
    return answer


def _decode(answer: bytes) -> Verdict:
    """Decode a verdict; *cannot say* if the answer is malformed."""
    try:
        kind, uid, gid, lock_gid, reason_length, name_length, count = _HEADER.unpack_from(answer)
        position = _HEADER.size
        reason = answer[position : position + reason_length]
        position += reason_length
        name = answer[position : position + name_length]
        position += name_length
        mailboxes, required = [], []
        for _ in range(count):
            length, start = _LENGTHS.unpack_from(answer, position)
            position += _LENGTHS.size
            path = answer[position : position + length]
            mailboxes.append(os.fsdecode(path))
            required.append(os.fsdecode(path[:start]))
            position += length
    except struct.error:
        return Verdict.cannot_say("driver failed: it ended without an answer")
    if position != len(answer) or kind not in _ANSWERS:
        return Verdict.cannot_say("driver failed: its answer is malformed")
    account = None
    if name or mailboxes:
        account = Account(name, uid, gid, mailboxes, required=required, lock_gid=lock_gid or None)
    verdict = Verdict(_ANSWERS[kind], account, reason.decode("utf-8", "replace"))
    verdict.is_guess = kind != _IMPOSSIBLE
    return checked(verdict)
