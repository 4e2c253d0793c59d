"""One connection from greeting to end: AUTHORIZATION, TRANSACTION, UPDATE, and the log line."""

from __future__ import annotations

from tpop3d import logs
from tpop3d.mailspool import refusal
from tpop3d.mailspool.refusal import Refusal, Truncated
from tpop3d.pop3 import replies
from tpop3d.pop3.authorization import Policy
from tpop3d.session.conversation import Conversation
from tpop3d.session.gatekeeper import apop_timestamp, authorize
from tpop3d.session.monitor import Monitor
from tpop3d.session.wire import EOF, ERROR, Ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config
    from tpop3d.mailspool.spool import Spool
    from tpop3d.pop3.transaction import Transaction
    from tpop3d.session.wire import Wire

QUIT = "quit"  # the fifth way to end, besides the wire's

OPENING = {
    refusal.IN_USE: replies.MAILDROP_IN_USE,
    refusal.TEMPORARY: replies.MAILDROP_TROUBLE,
    refusal.PERMANENT: replies.MAILDROP_REFUSED,
}
EXPUNGING = {
    refusal.IN_USE: replies.NOTHING_REMOVED,
    refusal.TEMPORARY: replies.NOTHING_REMOVED,
    refusal.PERMANENT: replies.NOTHING_REMOVED,
    refusal.PARTIAL: replies.PARTLY_REMOVED,
}


class Connection:
    """One connection, in one process."""

    def __init__(self, wire: Wire, config: Config) -> None:
        self._wire = wire
        self._config = config
        self._monitor = Monitor(config, wire.peer(), wire.local())
        self._started = wire.now()
        self._transaction: Transaction | None = None
        self._deleted = 0  # messages, for the log

    def serve(self) -> None:
        """Serve the client to the end. Whatever happens, one line says how it ended."""
        try:
            end = self._serve()
        except Ended as ended:
            end = ended.how
        except Exception as error:
            # A bug, or a broken machine. The client learns nothing of it.
            logs.error(f"internal error: {logs.describe(error)}")
            self._apologize()
            end = ERROR
        self._log_end(end)
        if end in (QUIT, ERROR) and self._wire.has_unread():
            self._wire.part()

    def _serve(self) -> str:
        config = self._config
        policy = Policy(
            apop_timestamp() if self._monitor.checks_apop else b"", plaintext=not config.apop_only
        )
        last = authorize(
            self._wire,
            policy,
            config.login_seconds,
            config.auth_failure_delay_seconds,
            self._monitor.ask,
        )
        if last is not None:
            return QUIT if last is replies.GOODBYE else ERROR
        account = self._monitor.verdict.account
        assert account is not None
        spool = self._monitor.admit(account, self._wire.pause)
        conversation = Conversation(self._wire)
        if isinstance(spool, Refusal):
            self._log("maildrop refused", reason=spool.reason)
            conversation.say(OPENING[spool.kind])
            self._wire.flush()
            return ERROR
        try:
            return self._transact(conversation, spool, policy)
        finally:
            spool.close()

    def _transact(self, conversation: Conversation, spool: Spool, policy: Policy) -> str:
        """TRANSACTION, from the answer to the login on."""
        from tpop3d.pop3.transaction import Transaction

        if spool.warning:
            logs.warning(spool.warning)
        self._log("login", messages=len(spool))
        self._wire.extension = self._config.timeout_seconds
        self._wire.deadline = self._wire.now() + self._wire.extension
        self._transaction = transaction = Transaction(spool, policy)
        conversation.say(replies.logged_in(len(spool), transaction.left_octets))
        try:
            last = conversation.run(transaction)
        except Truncated:
            # In the middle of a message: the client must not take what it has for the whole.
            self._log("maildrop changed", reason="it became shorter while it was read")
            raise Ended(ERROR) from None
        if last.outcome == replies.UPDATE:
            return self._update(conversation, spool)
        if last.outcome == replies.BROKEN:
            self._log("maildrop changed", reason=spool.changed())
        self._wire.flush()
        return ERROR

    def _update(self, conversation: Conversation, spool: Spool) -> str:
        """UPDATE: remove what is marked, let go of the maildrop, and only then answer."""
        assert self._transaction is not None
        if self._config.no_commit_on_early_close and self._wire.has_hung_up():
            return EOF
        refused = spool.expunge(self._transaction.deleted)
        spool.close()
        if refused is None:
            self._deleted = len(spool) - self._transaction.left
            conversation.say(replies.GOODBYE)
        else:
            self._log("maildrop not updated", reason=refused.reason)
            conversation.say(EXPUNGING[refused.kind])
        self._wire.flush()
        return QUIT if refused is None else ERROR

    def _apologize(self) -> None:
        """Tell the client, if it can be told, that this is not its fault."""
        try:
            self._wire.send((replies.INTERNAL_ERROR.line, b"\r\n"))
            self._wire.flush()
        except Ended:
            pass

    def _log(self, what: str, **more: object) -> None:
        """A line about the login that was good. Refusals are for the administrator to see."""
        monitor = self._monitor
        write = logs.info if what == "login" else logs.error
        account = monitor.verdict.account
        write(
            logs.event(
                what,
                user=account.name if account else b"",
                rip=monitor.client,
                method=monitor.method,
                driver=monitor.verdict.driver,
                **more,
            )
        )

    def _log_end(self, end: str) -> None:
        """The one line about the session."""
        monitor, wire, transaction = self._monitor, self._wire, self._transaction
        account = monitor.verdict.account
        count = len(transaction.deleted) if transaction else 0
        logs.notice(
            logs.event(
                "session",
                user=account.name if account else b"",
                rip=monitor.client,
                method=monitor.method,
                driver=monitor.verdict.driver,
                retr=transaction.retrieved if transaction else "0/0",
                top=transaction.topped if transaction else "0/0",
                dele=self._deleted,
                left=count - self._deleted,
                octets_in=wire.octets_in,
                octets_out=wire.octets_out,
                seconds=f"{wire.now() - self._started:.3f}",
                end=end,
            )
        )
