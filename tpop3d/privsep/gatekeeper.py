"""Before login: AUTHORIZATION with the client, in a process that may do nothing else.

The gatekeeper speaks POP3 and decides nothing: it asks the monitor about each attempt, and gets a
yes or a no. It has no configuration beyond its orders, no password file and no mailbox; it runs as
a user of its own, in an empty directory, with no descriptor but the channel and the connection.
"""

from __future__ import annotations

import os

from tpop3d.pop3 import replies
from tpop3d.pop3.authorization import Authorization, StartTls
from tpop3d.pop3.replies import Reply
from tpop3d.privsep import channel as channels
from tpop3d.privsep import sandbox as sandboxes
from tpop3d.privsep.channel import Channel, Ending, LoginRequest, Order
from tpop3d.session.conversation import Conversation
from tpop3d.session.wire import ERROR, HTTP, INJECTION, QUIT, Ended, Wire
from tpop3d.system import logs, processes, signal, titles
from tpop3d.system.io import ready
from tpop3d.system.privileges import OUT_OF_MEMORY, confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.pop3.authorization import Attempt
    from tpop3d.system.privileges import Sandbox
    from tpop3d.system.refusal import Refusal

ANSWERS = {
    channels.REFUSED: replies.LOGIN_FAILED,
    channels.REFUSED_FOR_LAST: replies.LOGIN_FAILED_LAST,
    channels.UNDECIDED: replies.LOGIN_UNDECIDED,
    channels.UNDECIDED_FOR_LAST: replies.LOGIN_UNDECIDED_LAST,
}

PATIENCE = 10.0  # seconds that one may take to come up
UNCONFINED = 4  # what one ends with that cannot be locked in, and has said why

ENDS = {replies.GOODBYE: QUIT, replies.NOT_HTTP: HTTP}  # how a connection ends with such a reply


class Unconfined(Exception):
    """This process cannot be locked in; the text says why, and what root needs for it."""


class MonitorGone(Exception):
    """Nobody is there to ask any more; the process ends."""


def start(sandbox: Sandbox) -> tuple[int, Channel]:
    """Fork a gatekeeper; returns its pid and the monitor's end of the channel to it.

    It serves one order after the other until the channel is closed.
    """
    ours, theirs = channels.pair()
    pid = processes.spawn(lambda: _run(sandbox, theirs))
    theirs.close()
    return pid, ours


def _run(sandbox: Sandbox, channel: Channel) -> int:
    """What the process does; returns its exit status."""
    try:
        wakeup = _lock_in(sandbox, channel)
        logs.hand_over(channel.log)
        while not _is_told_to_end(wakeup, channel):
            order = channel.take_order()
            if order is None:
                break
            _serve(order, channel, wakeup)
    except Unconfined as error:
        logs.error(str(error))
        return UNCONFINED
    except (MonitorGone, ConnectionError):
        pass
    except Exception as error:
        logs.error(f"gatekeeper: {logs.describe(error)}")
        return 1
    return 0


def _lock_in(sandbox: Sandbox, channel: Channel) -> int:
    """Lock this process in; returns the descriptor that a signal makes readable. Raises
    `Unconfined`."""
    wakeup, _ = processes.descriptors()
    titles.show(titles.GATEKEEPER)
    try:
        confine(sandbox, (channel.fileno(), *processes.descriptors()))
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        raise Unconfined(f"gatekeepers cannot be locked in: {why}") from None
    return wakeup


def prove(sandbox: Sandbox) -> Refusal | None:
    """Start a gatekeeper and end it again, to prove that both can be done.

    The listener does this before it says that it serves: otherwise each client would find out.
    """
    ours, theirs = channels.pair()

    def work() -> None:
        try:
            ours.close()  # should whoever tries this be killed, it is over
            _lock_in(sandbox, theirs)
            theirs.log(channels.LOG_DEBUG, "")
            theirs.take_order()
        except Unconfined as error:
            theirs.log(channels.LOG_ERR, str(error))
        except Exception as error:
            theirs.log(channels.LOG_ERR, f"gatekeeper: {logs.describe(error)}")

    try:
        pid = processes.spawn(work)
    except OSError as error:
        from tpop3d.system.refusal import Refusal

        return Refusal(f"no gatekeeper: {error.strerror}")
    theirs.close()
    said = ours.receive() if ready(PATIENCE, ours.fileno()) else None
    why = said.text if isinstance(said, channels.Line) else "gatekeepers die as they are born"
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        why = why or f"gatekeepers cannot be ended: {error.strerror} (kill(2) takes CAP_KILL)"
    if why and (users := sandboxes.mapped_users()) < sandboxes.ALL_USERS:
        why = f"{why}; in this user namespace the number of users is {users} (/etc/subuid)"
    ours.close()  # which ends it, too
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # whoever started us has SIGCHLD ignored
    if not why:
        return None
    from tpop3d.system.refusal import Refusal

    return Refusal(why)


def _is_told_to_end(wakeup: int, channel: Channel) -> bool:
    """Wait for an order, or a signal."""
    return wakeup in ready(None, wakeup, channel.fileno())


def _serve(order: Order, channel: Channel, wakeup: int) -> None:
    """Serve one connection up to its login, or to its end without one."""
    fd_in, fd_out = order.fds
    wire = Wire(fd_in, fd_out, wakeup)
    try:
        how = authorize(wire, order, channel)
        if how in (QUIT, ERROR, INJECTION, HTTP) and wire.has_unread():
            wire.part()
    except Ended as ended:
        how = ended.how
    except (MonitorGone, ConnectionError):
        raise
    except MemoryError:
        logs.error(f"gatekeeper: {OUT_OF_MEMORY}")
        _apologize(wire)
        how = ERROR
    except Exception as error:
        # A bug. The client learns nothing of it.
        logs.error(f"internal error: {logs.describe(error)}")
        _apologize(wire)
        how = ERROR
    wire.close()
    for fd in {fd_in, fd_out}:
        os.close(fd)
    channel.report(Ending(how, wire.octets_in, wire.octets_out))


def authorize(wire: Wire, order: Order, channel: Channel) -> str:
    """Greet the client and let it try to log in.

    Returns how that ended: "" when somebody is admitted, and has no answer yet; `channels.STLS`
    when TLS begins with the next octet. Raises `wire.Ended`, and `MonitorGone`.
    """
    wire.deadline = wire.now() + order.login_seconds
    conversation = Conversation(wire)
    if order.greets:
        conversation.say(replies.greeting(order.policy.apop_timestamp))
    state = Authorization(order.policy)
    while True:
        answer: Reply | Attempt | StartTls = conversation.run(state)
        if isinstance(answer, Reply):
            wire.flush()
            return ENDS.get(answer, ERROR)
        wire.flush()
        if isinstance(answer, StartTls):
            if how := _leave_to_tls(wire, conversation, channel):
                return how
            continue
        request = LoginRequest(answer, wire.pending(), wire.octets_in, wire.octets_out)
        verdict = channel.ask(request)
        if verdict == channels.ADMITTED:
            return ""
        if verdict not in ANSWERS:
            raise MonitorGone
        conversation.say(ANSWERS[verdict])
        if ANSWERS[verdict].outcome == replies.CLOSE:
            wire.flush()
            return ERROR


def _leave_to_tls(wire: Wire, conversation: Conversation, channel: Channel) -> str:
    """Have TLS begin with the client's next octet; returns how this ended, "" if TLS cannot begin.

    What the client sent behind STLS, before it was told to begin, comes from somebody in between
    (RFC 2595 section 4; CVE-2011-0411). No state of ours survives: who comes next has none.
    """
    verdict = channel.ask_for_tls(wire.octets_in, wire.octets_out)
    if verdict not in (channels.BEGIN_TLS, channels.NO_TLS):
        raise MonitorGone
    if wire.has_sent_more():
        conversation.say(replies.COMMANDS_BEHIND_STLS)
        wire.flush()
        return INJECTION
    conversation.say(replies.BEGIN_TLS if verdict == channels.BEGIN_TLS else replies.TLS_TROUBLE)
    wire.flush()
    return channels.STLS if verdict == channels.BEGIN_TLS else ""


def _apologize(wire: Wire) -> None:
    """Tell the client, if it can be told, that this is not its fault."""
    try:
        wire.send((replies.INTERNAL_ERROR.line, b"\r\n"))
        wire.flush()
    except Ended:
        pass
