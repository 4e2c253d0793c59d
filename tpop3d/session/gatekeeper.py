"""Before login: AUTHORIZATION with the client.

The gatekeeper speaks POP3 and decides nothing: it asks the monitor about each attempt, and gets a
yes or a no. It needs no configuration beyond its policy, no password file and no mailbox.
"""

from __future__ import annotations

import os
from time import time_ns

from tpop3d.pop3 import replies
from tpop3d.pop3.authorization import Attempt, Authorization
from tpop3d.pop3.replies import Reply
from tpop3d.session.conversation import Conversation
from tpop3d.session.wire import SIGNAL, Ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.pop3.authorization import Policy
    from tpop3d.session.wire import Wire

MAX_FAILED_LOGINS = 3
HOST_NAME = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"

# What the monitor says of an attempt.
ADMITTED = "admitted"
REFUSED = "refused"
UNDECIDED = "undecided"


def apop_timestamp() -> bytes:
    """A msg-id that no greeting had before (RFC 1939 section 7)."""
    host = bytes(c for c in os.fsencode(os.uname().nodename) if c in HOST_NAME)
    unique = b"%d.%d.%b" % (os.getpid(), time_ns(), os.urandom(8).hex().encode())
    return b"<%b@%b>" % (unique, host[:64] or b"localhost")


def authorize(
    wire: Wire,
    policy: Policy,
    login_seconds: float,
    failure_delay: float,
    ask: Callable[[Attempt], str],
) -> Reply | None:
    """Greet the client and let it try to log in.

    Returns None when the monitor has admitted somebody: no reply was sent to that attempt yet.
    Otherwise the last reply, after which nothing follows. Raises `wire.Ended`.

    `failure_delay` (seconds) passes before a failed attempt is answered; all of it is within
    `login_seconds`.
    """
    wire.deadline = wire.now() + login_seconds
    conversation = Conversation(wire)
    conversation.say(replies.greeting(policy.apop_timestamp))
    state = Authorization(policy)
    failed = 0
    while True:
        answer = conversation.run(state)
        if isinstance(answer, Reply):
            wire.flush()
            return answer
        decision = ask(answer)
        if decision == ADMITTED:
            return None
        _hold_back(wire, failure_delay)
        if decision == UNDECIDED:
            conversation.say(replies.LOGIN_UNDECIDED)
            continue
        failed += 1
        if failed >= MAX_FAILED_LOGINS:
            conversation.say(replies.LOGIN_FAILED_LAST)
            wire.flush()
            return replies.LOGIN_FAILED_LAST
        conversation.say(replies.LOGIN_FAILED)


def _hold_back(wire: Wire, seconds: float) -> None:
    """Let time pass before an answer: guessing costs time, whatever was guessed."""
    wire.flush()
    left = wire.deadline - wire.now()
    if wire.pause(max(0.0, min(seconds, left))):
        raise Ended(SIGNAL)
