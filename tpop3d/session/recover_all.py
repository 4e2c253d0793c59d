"""`tpop3d --recover`: finish what a crash has interrupted, in all mailboxes.

A process of the mailbox's user recovers it. The user can make that process wait, stop it, or have
it read for hours: so it has a deadline, and others are recovered meanwhile.
"""

from __future__ import annotations

import os
import select
import stat
from time import monotonic

from tpop3d.config.directive import size_text
from tpop3d.mailspool import idfile, journal, statefile
from tpop3d.mailspool.spool import Terms, recover_spool
from tpop3d.system import logs, processes, signal
from tpop3d.system.io import milliseconds, ready
from tpop3d.system.privileges import OUT_OF_MEMORY, become, limit_memory, use_reserve
from tpop3d.system.refusal import IN_USE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.session.session import SpoolRules

AT_ONCE = 4  # mailboxes
SECONDS = 120.0  # for one mailbox, beyond the time for which its locks are waited for
GRACE = 1.0  # seconds in which a process that is told to end does so by itself
DONE, TOLD, BROKEN = 0, 1, 2  # exit statuses of a mailbox's process; TOLD: the log says why not


def recover_all(rules: SpoolRules) -> bool:
    """Carry out every journal that is found, and remove what is left of others; False: some are
    left. What was done is logged.

    A signal that ends a session ends this, too: no process is left then.
    """
    try:
        with os.scandir(rules.state_directory) as entries:
            places = sorted(entry.path for entry in entries)
    except FileNotFoundError:
        return True
    except OSError as error:
        logs.error(f"{rules.state_directory}: {error.strerror}")
        return False
    return _Recovery(rules).run([place for place in places if _has_left(place)])


def _has_left(place: str) -> bool:
    """Is anything in a state directory to be recovered? True, too, where only its user may look
    (root on NFS): the user's process finds out."""
    for name in (journal.NAME, idfile.NEXT, *statefile.LEFT):
        try:
            os.lstat(f"{place}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            return os.geteuid() == 0
        except OSError:
            pass
        return True
    return False


class _Child:
    """The process of one mailbox."""

    def __init__(self, place: str, pid: int, deadline: float) -> None:
        self.place = place
        self.pid = pid
        self.fd = os.pidfd_open(pid)  # readable when the process has ended
        self.deadline = deadline

    def send(self, number: int) -> None:
        """Send it a signal. It cannot have ended unnoticed: its pid is nobody else's yet."""
        try:
            os.kill(self.pid, number)
        except PermissionError:
            pass  # it ends when its time is over for others, too: they do not wait for it

    def abandon(self) -> None:
        """Kill it, and do not wait for its end: it may wait for what never comes."""
        self.send(signal.SIGKILL)
        os.close(self.fd)

    def reap(self) -> int:
        """Its exit status, or minus the signal that has ended it."""
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _Recovery:
    """Some mailboxes at a time, until all are done."""

    def __init__(self, rules: SpoolRules) -> None:
        self._rules = rules
        self._limit = SECONDS + rules.lock_timeout_seconds
        self._children: dict[int, _Child] = {}  # by descriptor
        self._wakeup, _ = processes.descriptors()
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._is_good = True

    def run(self, places: list[str]) -> bool:
        """Recover these; False: some are not recovered."""
        waiting = places[::-1]
        while waiting or self._children:
            while waiting and len(self._children) < AT_ONCE:
                self._start(waiting.pop())
            if self._turn():
                left = len(waiting) + len(self._children)
                logs.error(f"recovery was told to end, and {left} maildrops are not recovered")
                self._end_children()
                return False
        return self._is_good

    def _start(self, place: str) -> None:
        try:
            pid = processes.spawn(lambda: _run(place, self._rules), BROKEN)
        except OSError as error:
            self._fail(place, f"no further process: {error.strerror}")
            return
        child = _Child(place, pid, monotonic() + self._limit)
        self._children[child.fd] = child
        self._poll.register(child.fd, select.POLLIN)

    def _turn(self) -> bool:
        """Wait until something happens; take note of processes that have ended, and end those whose
        time is over. True: this process is told to end."""
        due = min([child.deadline for child in self._children.values()], default=monotonic())
        found = {fd for fd, _ in self._poll.poll(milliseconds(due - monotonic()) + 1)}
        for fd in found - {self._wakeup}:
            child = self._forget(fd)
            status = child.reap()
            if status < 0:
                self._fail(child.place, f"its process was ended by signal {-status}")
            elif status not in (DONE, TOLD):
                self._fail(child.place, f"its process ended with status {status}")
            self._is_good = self._is_good and status == DONE
        for child in [one for one in self._children.values() if one.deadline <= monotonic()]:
            self._forget(child.fd).abandon()
            self._fail(child.place, f"not done within {self._limit:g} seconds")
        return self._wakeup in found

    def _forget(self, fd: int) -> _Child:
        self._poll.unregister(fd)
        return self._children.pop(fd)

    def _end_children(self) -> None:
        """They give locks back if they can. None loses mail, however it ends."""
        self._poll.unregister(self._wakeup)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in self._children.values():
                child.send(number)
            deadline = monotonic() + GRACE
            while self._children and (left := deadline - monotonic()) > 0:
                for fd, _ in self._poll.poll(milliseconds(left) + 1):
                    self._forget(fd).reap()

    def _fail(self, place: str, why: str) -> None:
        logs.error(logs.event("maildrop not recovered", directory=place, reason=why))
        self._is_good = False


def _run(place: str, rules: SpoolRules) -> int:
    """Be the process of one mailbox; returns its exit status."""
    try:
        refused = _recover(place, rules)
    except MemoryError:
        use_reserve()
        refused = Refusal(f"{OUT_OF_MEMORY}: {size_text(rules.session_memory)}")
    if refused is None:
        return DONE
    logs.error(logs.event("maildrop not recovered", directory=place, reason=refused.reason))
    return TOLD


def _recover(place: str, rules: SpoolRules) -> Refusal | None:
    """Recover one mailbox as its user."""
    try:
        found = os.lstat(place)
    except OSError as error:
        return Refusal(error.strerror or "it cannot be found")
    if not stat.S_ISDIR(found.st_mode):
        return Refusal("no directory")
    if refused := become(found.st_uid, found.st_gid):
        return refused
    limit_memory(rules.session_memory)
    os.umask(0o077)
    style, flock = rules.uidl_style, rules.mailspool_flock
    terms = Terms(rules.dotlocks, rules.lock_timeout_seconds, _pause, style=style, flock=flock)
    result = recover_spool(found.st_uid, place, terms)
    if isinstance(result, Refusal):
        # A session that was about to finish this may have finished it.
        is_done = result.kind == IN_USE and not _has_left(place)
        return None if is_done else result
    if result is not None:
        line = logs.event("maildrop recovered", directory=place, reason=result.line)
        (logs.error if result.is_alarming else logs.warning)(line)
    return None


def _pause(seconds: float) -> bool:
    """Wait; True when this process is told to end."""
    wakeup, _ = processes.descriptors()
    return bool(ready(seconds, wakeup))
