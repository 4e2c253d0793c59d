"""The child that the listener forks for a login attempt: it decides, and may become the session."""

from __future__ import annotations

import os

from tpop3d.auth import isolation  # noqa: F401  before the fork
from tpop3d.auth.driver import CANNOT_SAY, YES
from tpop3d.privsep import channel as channels
from tpop3d.session import session
from tpop3d.system import logs, processes, titles
from tpop3d.system.io import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.auth.driver import Account
    from tpop3d.privsep.channel import Channel, ReceivedLogin
    from tpop3d.privsep.monitor import Monitor
    from tpop3d.session.session import SessionRules

# Its exit statuses.
OVER = 0  # somebody was let in, and the session is over
REFUSED = 10
UNDECIDED = 11
BROKEN = 12  # somebody was let in, and there was no session


def start(
    fd: int,
    channel: Channel,
    monitor: Monitor,
    request: ReceivedLogin,
    rules: SessionRules,
    needed: tuple[int, ...],
) -> int:
    """Fork the child; returns its pid. Raises OSError where there can be no further process.

    `fd` is the connection, and drivers need the descriptors `needed`. `channel` leads to the
    gatekeeper that asks. The child tells it of an admission; the caller tells it of a refusal, when
    the child has ended.
    """

    def work() -> int:
        titles.show(titles.LOGIN)
        keep = (fd, channel.fileno(), *needed, *processes.descriptors())
        logs.reopen(lambda log: close_all_but((*keep, *log)))
        try:
            verdict = monitor.decide(request)
        except processes.Interrupted:
            return UNDECIDED
        account = verdict.account
        if verdict.answer != YES or account is None:
            return UNDECIDED if verdict.answer == CANNOT_SAY else REFUSED
        channel.give_verdict(channels.ADMITTED)
        channel.close()
        for descriptor in needed:
            os.close(descriptor)
        return _serve(fd, account, request, monitor, rules)

    return processes.spawn(work)


def _serve(
    fd: int, account: Account, request: ReceivedLogin, monitor: Monitor, rules: SessionRules
) -> int:
    """Be the session; returns how the process is to end."""
    wakeup, _ = processes.descriptors()
    try:
        policy, summary = monitor.policy, monitor.summary
        session.serve((fd, fd), request.pending, wakeup, account, policy, rules, summary)
    except Exception as error:
        logs.error(f"internal error: {logs.describe(error)}")
        return BROKEN
    return OVER
