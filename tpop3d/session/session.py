"""After login: the maildrop's user serves TRANSACTION and UPDATE on the connection itself."""

from __future__ import annotations

import os

from tpop3d.config.directive import size_text
from tpop3d.mailspool import state_directory
from tpop3d.mailspool.failures import Truncated
from tpop3d.mailspool.spool import Spool, Terms, open_spool
from tpop3d.pop3 import replies
from tpop3d.pop3.stuffing import WrongSize
from tpop3d.pop3.transaction import Transaction
from tpop3d.session.choice import Choice, choose
from tpop3d.session.conversation import Conversation
from tpop3d.session.wire import EOF, ERROR, QUIT, Ended, Wire
from tpop3d.system import logs, titles
from tpop3d.system.privileges import (
    OUT_OF_MEMORY,
    become,
    cannot_become,
    limit_memory,
    take_group,
    use_reserve,
)
from tpop3d.system.refusal import IN_USE, PARTIAL, PERMANENT, TEMPORARY, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from tpop3d.auth.driver import Account
    from tpop3d.mailspool.locks import Pause
    from tpop3d.pop3.authorization import Policy
    from tpop3d.session.summary import Summary

    class SpoolRules(Protocol):
        """What a spool is opened and recovered by: directives, by their names."""

        @property
        def dotlocks(self) -> str: ...

        lock_timeout_seconds: int
        mailspool_flock: bool
        mailspool_index: bool
        session_memory: int
        state_directory: str
        uidl_style: str

    class SessionRules(SpoolRules, Protocol):
        """What a session goes by."""

        no_commit_on_early_close: bool
        timeout_seconds: int


RELAYED_SECONDS = 0.1  # until a relay has told that the client has hung up

OPENING = {
    IN_USE: replies.MAILDROP_IN_USE,
    TEMPORARY: replies.MAILDROP_TROUBLE,
    PERMANENT: replies.MAILDROP_REFUSED,
}
EXPUNGING = {
    IN_USE: replies.NOTHING_REMOVED,
    TEMPORARY: replies.NOTHING_REMOVED,
    PERMANENT: replies.NOTHING_REMOVED,
    PARTIAL: replies.STILL_TO_REMOVE,
}


def serve(
    fds: tuple[int, int],
    pending: bytes,
    wakeup: int,
    account: Account,
    policy: Policy,
    rules: SessionRules,
    summary: Summary,
) -> None:
    """Become the account's user, for good, and serve the session to its end.

    `pending` is what the client sent after the login. Whatever happens, one line of the log says
    how the session ended.

    Everything that a session needs is imported by now: the user may not be allowed to read the
    program's own files.
    """
    titles.show(logs.printable(account.name))
    choice = prepare(account, rules.state_directory)
    if refused := enter(account, choice):
        logs.error(summary.line("maildrop refused", reason=refused.reason))
        # Still privileged, so nothing is read from the client: one line out, and the end.
        wire = Wire(*fds, wakeup)
        _say_and_hope(wire, replies.MAILDROP_REFUSED.line)
        summary.log_end(ERROR)
        return
    limit_memory(rules.session_memory)
    os.umask(0o077)
    wire = Wire(*fds, wakeup, pending)
    wire.octets_in, wire.octets_out = summary.octets_in, summary.octets_out
    session = _Session(wire, rules, policy, summary)
    try:
        end = session.run(choice, account)
    except Ended as ended:
        end = ended.how
    except Exception as error:
        # A bug, or a broken machine. The client learns nothing of it.
        logs.error(f"internal error: {logs.describe(error)}")
        _say_and_hope(wire, replies.INTERNAL_ERROR.line)
        end = ERROR
    summary.octets_in, summary.octets_out = wire.octets_in, wire.octets_out
    summary.log_end(end)
    if end in (QUIT, ERROR) and wire.has_unread():
        wire.part()


class _Session:
    """One user's session. This process is the user by now."""

    def __init__(self, wire: Wire, rules: SessionRules, policy: Policy, summary: Summary) -> None:
        self._wire = wire
        self._rules = rules
        self._policy = policy
        self._summary = summary
        wire.extension = rules.timeout_seconds
        wire.deadline = wire.now() + wire.extension

    def run(self, choice: Choice | Refusal, account: Account) -> str:
        """Open the maildrop and serve it; returns how the session ended. Raises `Ended`."""
        conversation = Conversation(self._wire)
        try:
            return self._serve(conversation, choice, account)
        except MemoryError:
            pass  # what has taken it is let go of now
        use_reserve()
        limit = size_text(self._rules.session_memory)
        logs.error(self._summary.line("maildrop refused", reason=f"{OUT_OF_MEMORY}: {limit}"))
        if not conversation.is_speaking:
            # Otherwise the client must not take what it has of a reply for the whole.
            conversation.say(replies.MAILDROP_TOO_LARGE)
            self._wire.flush()
        return ERROR

    def _serve(self, conversation: Conversation, choice: Choice | Refusal, account: Account) -> str:
        terms = terms_of(self._rules, self._wire.pause, account)
        spool = open_chosen(choice, account, terms)
        if isinstance(spool, Refusal):
            logs.error(self._summary.line("maildrop refused", reason=spool.reason))
            conversation.say(OPENING[spool.kind])
            self._wire.flush()
            return ERROR
        try:
            return self._transact(conversation, spool)
        finally:
            spool.close()

    def _transact(self, conversation: Conversation, spool: Spool) -> str:
        """Serve TRANSACTION, from the answer to the login on; returns how the session ended."""
        summary = self._summary
        if spool.warning:
            logs.warning(spool.warning)
        if spool.found is not None:
            line = summary.line("maildrop recovered", reason=spool.found.line)
            (logs.error if spool.found.is_alarming else logs.warning)(line)
        logs.info(summary.line("login", messages=len(spool)))
        transaction = Transaction(spool, self._policy, self._wire.when_sent)
        summary.retrieved, summary.topped = transaction.retrieved, transaction.topped
        summary.left = len(spool)
        conversation.say(replies.logged_in(len(spool), transaction.left_octets))
        try:
            last = conversation.run(transaction)
        except (Truncated, WrongSize) as error:
            # In the middle of a message: the client must not take what it has for the whole.
            spool.distrust()
            why = "it became shorter while it was read"
            if isinstance(error, WrongSize):
                why = "a message was changed in place, and is not of the size that was told"
            logs.error(summary.line("maildrop changed", reason=why))
            raise Ended(ERROR) from None
        if last.outcome == replies.UPDATE:
            return self._update(conversation, spool, transaction)
        if last.outcome == replies.BROKEN:
            changed = spool.changed()
            logs.error(summary.line("maildrop changed", reason=changed.reason if changed else ""))
        self._wire.flush()
        return ERROR

    def _update(self, conversation: Conversation, spool: Spool, transaction: Transaction) -> str:
        """Serve UPDATE: remove what is marked, let go of the maildrop, and only then answer."""
        if any(transaction.deleted) and self._has_left_early():
            # It may read on: then it gets the answers to all that came before QUIT, and this one.
            conversation.say(replies.LEFT_EARLY)
            self._wire.flush()
            return EOF
        before = len(spool)
        spool.warning = ""
        refused = spool.expunge(transaction.deleted)
        if spool.warning:
            logs.warning(spool.warning)
        spool.close()
        if refused is None:
            self._summary.left = transaction.left
            self._summary.deleted = before - transaction.left
            conversation.say(replies.GOODBYE)
        else:
            logs.error(self._summary.line("maildrop not updated", reason=refused.reason))
            conversation.say(EXPUNGING[refused.kind])
        self._wire.flush()
        return QUIT if refused is None else ERROR

    def _has_left_early(self) -> bool:
        """Has the client hung up before QUIT is answered, and does that matter?"""
        news = RELAYED_SECONDS if self._policy.secured else 0
        return self._rules.no_commit_on_early_close and self._wire.has_hung_up(news)


def prepare(account: Account, directory: str) -> Choice | Refusal:
    """Choose the maildrop and make its state directory in `directory`; with all privileges still.
    Raises `StillPrivileged` and OSError; the process must then end.
    """
    uid, gid, lock_gid = account.uid, account.gid, account.lock_gid
    if refused := cannot_become(uid, gid, lock_gid):
        return refused  # nothing is made for such a user; `enter` refuses it, too
    choice = choose(account)
    if isinstance(choice, Choice):
        group = gid if lock_gid is None else lock_gid
        choice.place = state_directory.prepare(directory, choice.name, uid, group)
    return choice


def enter(account: Account, choice: Choice | Refusal) -> Refusal | None:
    """Become the account's user, for good. Where this is refused, the process is who it was. Raises
    `StillPrivileged` and OSError; the process must then end.
    """
    is_asleep = isinstance(choice, Choice) and not choice.needs_group
    return become(account.uid, account.gid, account.lock_gid, is_asleep=is_asleep)


def open_chosen(choice: Choice | Refusal, account: Account, terms: Terms) -> Spool | Refusal:
    """Open the maildrop, if there is one. This process is its user by now."""
    if isinstance(choice, Refusal):
        return choice
    if isinstance(choice.place, Refusal):
        return choice.place
    return open_spool(choice.path, account.uid, choice.place, terms)


def terms_of(rules: SpoolRules, pause: Pause, account: Account) -> Terms:
    """The terms on which a session opens its spool."""
    return Terms(
        dotlocks=rules.dotlocks,
        lock_timeout=rules.lock_timeout_seconds,
        pause=pause,
        index=rules.mailspool_index,
        style=rules.uidl_style,
        flock=rules.mailspool_flock,
        take_group=take_group(account.lock_gid) if account.lock_gid is not None else None,
    )


def _say_and_hope(wire: Wire, line: bytes) -> None:
    """Tell the client, if it can be told, that this is not its fault."""
    try:
        wire.send((line, b"\r\n"))
        wire.flush()
    except Ended:
        pass
