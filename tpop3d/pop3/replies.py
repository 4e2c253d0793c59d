"""Every reply: its text, its response code, and what the session does after it.

The texts are our own, in plain English. A "[" at the beginning of a text begins a response code
(RFC 2449 section 8), so no other text begins with one. The codes are from RFC 2449 (IN-USE) and
RFC 3206 (AUTH, SYS/TEMP, SYS/PERM).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Outcomes: what the session does after it has sent a reply.
CONTINUE = "continue"
BAD = "bad"  # as CONTINUE, but counted: too many in a row end the session
CLOSE = "close"
UPDATE = "update"  # the client said QUIT in TRANSACTION: nothing is sent before UPDATE is done
BROKEN = "broken"  # the maildrop can no longer be trusted: send, close, delete nothing

MAX_BAD_COMMANDS = 20  # in a row
TOO_MANY_CONNECTIONS = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"


class Reply:
    """A status line (without CRLF), the body of a multi-line reply, and what follows the reply.

    `body` yields octets as they are sent: dot-stuffed lines that end with CRLF, and the final "."
    line. `outcome` is one of the constants above.
    """

    __slots__ = ("body", "line", "outcome")

    def __init__(
        self, line: bytes, body: Iterable[bytes] | None = None, outcome: str = CONTINUE
    ) -> None:
        self.line = line
        self.body = body
        self.outcome = outcome


def multi_line(line: bytes, lines: Iterable[bytes]) -> Reply:
    """Make a multi-line reply of a few lines, none of which may need dot-stuffing."""
    return Reply(line, [b"".join([b"%b\r\n" % one for one in lines]), b".\r\n"])


# Any state
UNKNOWN_COMMAND = Reply(b"-ERR unknown command, or not allowed now", outcome=BAD)
WRONG_ARGUMENTS = Reply(b"-ERR wrong arguments", outcome=BAD)
LINE_TOO_LONG = Reply(b"-ERR line too long", outcome=BAD)
MALFORMED_LINE = Reply(b"-ERR line contains NUL or CR", outcome=BAD)
TOO_MANY_BAD_COMMANDS = Reply(b"-ERR too many bad commands", outcome=CLOSE)
GOODBYE = Reply(b"+OK goodbye", outcome=CLOSE)
# These answer no command: the program could not start, or met a bug.
SERVER_MISCONFIGURED = Reply(b"-ERR [SYS/PERM] server is not configured", outcome=CLOSE)
SERVER_NOT_READY = Reply(b"-ERR [SYS/TEMP] server is not ready, try again later", outcome=CLOSE)
INTERNAL_ERROR = Reply(b"-ERR [SYS/TEMP] internal error", outcome=CLOSE)

# AUTHORIZATION
SEND_PASS = Reply(b"+OK send PASS")
USER_FIRST = Reply(b"-ERR send USER first", outcome=BAD)
APOP_INSTEAD = Reply(b"-ERR plaintext logins are not allowed here, use APOP")
STLS_FIRST = Reply(b"-ERR plaintext logins are not allowed here, use STLS first")
TLS_ONLY = Reply(b"-ERR plaintext logins are not allowed here, use TLS")
BEGIN_TLS = Reply(b"+OK begin TLS")
TLS_ALREADY = Reply(b"-ERR TLS is in use already", outcome=BAD)
TLS_UNAVAILABLE = Reply(b"-ERR TLS is not available here", outcome=BAD)
TLS_TROUBLE = Reply(b"-ERR [SYS/TEMP] TLS is not available now, try again later")
NOT_HTTP = Reply(b"-ERR this is no web server", outcome=CLOSE)
COMMANDS_BEHIND_STLS = Reply(b"-ERR nothing may be sent behind STLS", outcome=CLOSE)
APOP_UNAVAILABLE = Reply(b"-ERR APOP is not available", outcome=BAD)
UTF8_ON = Reply(b"+OK UTF-8 mode")
MECHANISM_UNKNOWN = Reply(b"-ERR unknown authentication mechanism", outcome=BAD)
SASL_CONTINUE = Reply(b"+ ")  # an empty challenge (RFC 5034 section 4): the space stays
SASL_CANCELLED = Reply(b"-ERR authentication cancelled", outcome=BAD)
SASL_MALFORMED = Reply(b"-ERR malformed authentication response", outcome=BAD)
LOGIN_FAILED = Reply(b"-ERR [AUTH] wrong name or password")
LOGIN_FAILED_LAST = Reply(b"-ERR [AUTH] wrong name or password", outcome=CLOSE)
LOGIN_UNDECIDED = Reply(b"-ERR [SYS/TEMP] logins cannot be checked now, try again later")
LOGIN_UNDECIDED_LAST = Reply(LOGIN_UNDECIDED.line, outcome=CLOSE)

# Entering TRANSACTION
MAILDROP_IN_USE = Reply(b"-ERR [IN-USE] maildrop is in use, try again later", outcome=CLOSE)
MAILDROP_TROUBLE = Reply(b"-ERR [SYS/TEMP] maildrop cannot be opened now", outcome=CLOSE)
MAILDROP_TOO_LARGE = Reply(
    b"-ERR [SYS/PERM] maildrop needs more memory than it gets here", outcome=CLOSE
)
MAILDROP_REFUSED = Reply(b"-ERR [SYS/PERM] maildrop cannot be opened", outcome=CLOSE)

# TRANSACTION
NO_SUCH_MESSAGE = Reply(b"-ERR no such message")
MESSAGE_DELETED = Reply(b"+OK message deleted")
NOTHING_DONE = Reply(b"+OK")
MAILDROP_CHANGED = Reply(
    b"-ERR [SYS/TEMP] maildrop was changed by another program, nothing deleted", outcome=BROKEN
)
QUIT_RECEIVED = Reply(b"", outcome=UPDATE)

# UPDATE
NOTHING_REMOVED = Reply(
    b"-ERR [SYS/TEMP] deleted messages were not removed, try again later", outcome=CLOSE
)
LEFT_EARLY = Reply(
    b"-ERR deleted messages were not removed, you hung up before this answer", outcome=CLOSE
)
STILL_TO_REMOVE = Reply(
    b"-ERR [SYS/TEMP] deleted messages are not removed yet, and will be", outcome=CLOSE
)


def greeting(apop_timestamp: bytes) -> Reply:
    """The greeting. `apop_timestamp` is b"" if no driver can check an APOP digest."""
    return Reply(b"+OK POP3 server ready" + (b" " + apop_timestamp if apop_timestamp else b""))


def logged_in(messages: int, octets: int) -> Reply:
    """The reply to a login, when the maildrop is open: its number of messages, and their size."""
    return Reply(b"+OK maildrop has %d messages (%d octets)" % (messages, octets))
