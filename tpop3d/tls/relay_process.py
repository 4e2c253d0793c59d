"""The relay of a door that serves a single connection."""

from __future__ import annotations

import os

from tpop3d.system import processes, signal
from tpop3d.system.io import PARTING_SECONDS, Violation, ready
from tpop3d.tls import relay_channel
from tpop3d.tls.relay_channel import Failed, RelayChannel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config.addresses import Pairs
    from tpop3d.system.privileges import Sandbox

GRACE = 1.0  # seconds


class RelayProcess:
    """A relay, and the monitor's end of the channel to it."""

    def __init__(self, pid: int, channel: RelayChannel) -> None:
        self.channel = channel
        self.is_ready = False  # it has its certificates
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)  # readable when the process has ended

    def await_end(self, wakeup: int, seconds: float) -> Failed | None:
        """Wait, `seconds` at most, until the client has what was sent, or takes no more; returns
        what has broken the TLS, if anything. A process that is told to end, by `wakeup`, waits
        less."""
        self.channel.give_no_more()
        is_over = self._is_over(seconds, wakeup) or self._is_over(PARTING_SECONDS + GRACE)
        return self._reap() if is_over else self.kill()

    def kill(self) -> Failed | None:
        """End the relay; returns what has broken the TLS, if anything."""
        try:
            os.kill(self._pid, signal.SIGKILL)
        except PermissionError:
            return None  # we are the mailbox's user by now
        return self._reap(is_killed=True)

    def _is_over(self, seconds: float, *wakeup: int) -> bool:
        """Has the relay ended, when so many seconds are over or this process is told to end?"""
        return self._descriptor in ready(seconds, self._descriptor, *wakeup)

    def _reap(self, is_killed: bool = False) -> Failed | None:
        _, status = os.waitpid(self._pid, 0)
        os.close(self._descriptor)
        if not (is_killed and os.WIFSIGNALED(status)):
            processes.log_death("relay", self._pid, status)
        try:
            last = self.channel.receive()
        except (Violation, BlockingIOError):
            last = None
        self.channel.close()
        return last if isinstance(last, Failed) else None


def start(sandbox: Sandbox, pairs: Pairs, min_version: str, ciphers: str) -> RelayProcess:
    """Fork a relay, which reads its keys itself: no other process ever has them.

    Its first message says that it is ready, or why it cannot be. Raises OSError.
    """
    ours, theirs = relay_channel.pair()

    def work() -> int:
        ours.close()
        from tpop3d.tls import certificates, relay

        try:
            found = certificates.serving(pairs, min_version, ciphers, tickets=False, look=False)
        except certificates.UnusableCertificate as error:
            theirs.tell(relay_channel.BROKEN, str(error))
            return 0
        return relay.run(sandbox, theirs, [found.context])

    pid = processes.spawn(work)
    theirs.close()
    return RelayProcess(pid, ours)
