"""Asking a driver in a process of its own, which can be cut off and whose memory goes with it.

For drivers that hold secrets of others or run foreign code: who becomes the session must have
neither. The answer comes through a pipe, in a fixed form: the process that gave it is no more
trusted than the code that ran in it.
"""

from __future__ import annotations

import os
import resource
import struct
from time import monotonic

from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Account, Login, Verdict, checked
from tpop3d.system import logs, signal, titles
from tpop3d.system.files import close_all_but
from tpop3d.system.io import MAX_POLL, ready
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.auth.driver import Driver
    from tpop3d.auth.hosts import Hosts

MAX_ANSWER = 1 << 16  # octets
MAX_REASON = 1000  # octets that go into the log
# Answer, uid, gid, gid for dotlocks or 0, lengths of reason and name, mailboxes.
_HEADER = struct.Struct("!cIIIHHB")
_LENGTHS = struct.Struct("!HH")  # of a path, and of the directory at its start that is required
_ANSWERS = {b"y": YES, b"n": NO, b"i": NO, b"?": CANNOT_SAY}
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IMPOSSIBLE = b"i"  # a no that is no guess
_NOTE = struct.Struct("!cH")  # kind and length, before an answer
_NOTED = b"#"
MAX_NOTE = 200  # octets

# In a driver's process: where its answer goes, and at which moment of monotonic() it is cut off.
_write_end = -1
_deadline = float("inf")


def ask(driver: Driver, login: Login, seconds: float) -> Verdict:
    """The driver's verdict, or *cannot say* where it gives none within `seconds`."""
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
    """In a process that was forked for nothing else: do it with the descriptors `keep`, and end. It
    is ended soon after `seconds`. Does not return."""

    def silently() -> Verdict:
        work()
        return Verdict.no("")

    _work(silently, -1, seconds, keep)


def seconds_left() -> float:
    """In a driver's process: how long it is waited for; elsewhere for ever."""
    return _deadline - monotonic()


def note(what: str) -> None:
    """In a driver's process: name what it waits for, should it be cut off in that."""
    if _write_end >= 0:
        octets = what.encode("utf-8", "surrogatepass")[:MAX_NOTE]
        os.write(_write_end, _NOTE.pack(_NOTED, len(octets)) + octets)


def _needed(driver: Driver) -> tuple[int, ...]:
    """The descriptors that a driver's process keeps."""
    hosts: Hosts | None = getattr(driver, "hosts", None)
    return () if hosts is None else hosts.descriptors


def _run(work: Callable[[], Verdict], seconds: float, keep: tuple[int, ...]) -> Verdict:
    """What `work` gives in a process of its own; *cannot say* where it gives nothing in time.

    When this returns, the process is gone, and what it has started in its process group, too; if
    it was cut off, so is all below it, except what has been made an orphan.
    """
    read_end, write_end = os.pipe()
    # An ending signal raises an exception here, which must not come before there is who kills.
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
    """In the child: do it, with these signals `masked`, and pass on what comes of it, unless nobody
    waits for that. Does not return."""
    global _write_end, _deadline
    try:
        titles.restore()
        _write_end, _deadline = write_end, monotonic() + seconds
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold passwords
        # Should whoever waits for it be killed, nobody else would cut it off.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(min(seconds, MAX_POLL)) + 2)
        signal.set_wakeup_fd(-1)
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        if masked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        # A terminal on stdin is that of who tries a login, and nothing that a client has.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        # The client's connection is none of its business, nor of what it may leave running.
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
    """What a process has started, in whatever process group. All are stopped, to start no more."""
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
        pass  # it is gone, or has become somebody whom we may not end


def _read(fd: int, watched: int, deadline: float) -> tuple[bytes, bool]:
    """What the process has written, and whether that is all: whether it has ended or has closed
    its end in time, and has not written too much."""
    received = b""
    while len(received) <= MAX_ANSWER:
        found = ready(deadline - monotonic(), fd, watched)
        if fd in found:
            octets = os.read(fd, MAX_ANSWER)
            if not octets:
                return received, True
            received += octets
        elif watched in found:
            return received, True  # it has ended, and something that it started has not
        else:
            break
    return received, False


def _noted(received: bytes) -> tuple[str, bytes]:
    """The last of the notes that an answer begins with, and the answer."""
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
    """The verdict behind an answer; *cannot say* for what is none."""
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
