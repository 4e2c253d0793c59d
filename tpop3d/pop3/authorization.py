"""The AUTHORIZATION state (RFC 1939 sections 4 and 7, RFC 2595, RFC 5034, RFC 6856).

The state machine turns command lines into replies and login attempts. It decides no login: the
monitor does. This code runs in the gatekeeper, which reads no password file.
"""

from __future__ import annotations

import binascii

from tpop3d.pop3 import replies
from tpop3d.pop3.capabilities import capa
from tpop3d.pop3.commands import MAX_COMMAND, MAX_RESPONSE, Command, is_http, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.pop3.replies import Reply


MECHANISMS = (b"PLAIN",)  # SASL mechanisms: PLAIN is RFC 4616, its command AUTH is RFC 5034


class Policy:
    """What this connection may do before login.

    `apop_timestamp` is the timestamp of the banner, b"" if APOP is not accepted. `plaintext`: are
    plaintext passwords accepted (USER/PASS, AUTH PLAIN)? `stls`: may TLS begin? `secured`: has TLS
    begun?
    """

    __slots__ = ("apop_timestamp", "plaintext", "secured", "stls")

    def __init__(
        self, apop_timestamp: bytes, plaintext: bool, stls: bool = False, secured: bool = False
    ) -> None:
        self.apop_timestamp = apop_timestamp
        self.plaintext = plaintext
        self.stls = stls
        self.secured = secured

    @property
    def refusal(self) -> Reply:
        """The reply to a login by a method that this connection does not accept."""
        if self.stls:
            return replies.STLS_FIRST
        return replies.APOP_INSTEAD if self.apop_timestamp else replies.TLS_ONLY


class Attempt:
    """One login attempt: a name, and a password or an APOP digest. The repr shows none of them."""

    __slots__ = ("digest", "method", "name", "password", "timestamp")

    def __init__(
        self,
        method: str,
        name: bytes,
        password: bytes | None = None,
        timestamp: bytes = b"",
        digest: bytes = b"",
    ) -> None:
        self.method = method
        self.name = name
        self.password = password
        self.timestamp = timestamp
        self.digest = digest

    def __repr__(self) -> str:
        return f"<Attempt {self.method}>"


class StartTls:
    """The result of `Authorization.handle` for STLS.

    The caller asks the monitor whether TLS may begin, and sends the reply that follows from that.
    """


START_TLS = StartTls()


class Authorization:
    """The state of one connection before login."""

    __slots__ = ("_awaits_plain", "_is_first", "_name", "_user_just_given", "policy", "utf8")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.utf8 = False
        self._name = b""
        self._user_just_given = False
        self._awaits_plain = False
        self._is_first = True  # is the next line the client's first?

    @property
    def limit(self) -> int:
        """The maximum length of the next line in octets, line end included."""
        return MAX_RESPONSE if self._awaits_plain else MAX_COMMAND

    @property
    def confidential(self) -> bool:
        """Is the next line secret whatever it looks like? A SASL response is."""
        return self._awaits_plain

    def refuse_line(self, reply: Reply, line: bytes = b"") -> Reply:
        """End the USER or AUTH dialogue that an unreadable line interrupts.

        `line` is the beginning of that line. Returns the reply to send: `reply`, or NOT_HTTP if
        the client speaks HTTP.
        """
        self._awaits_plain = self._user_just_given = False
        return replies.NOT_HTTP if self._is_http(line) else reply

    def _is_http(self, line: bytes) -> bool:
        """Is this the client's first line, and a line of HTTP?

        A foreign web page can make a browser connect here and send POP3 commands in its request.
        The browser would take the replies for a page of this site (ALPACA,
        https://alpaca-attack.com).
        """
        was_first, self._is_first = self._is_first, False
        return was_first and is_http(line)

    def handle(self, line: bytes) -> Reply | Attempt | StartTls:
        """Handle one line, without its end.

        Returns the reply, or an `Attempt` or `StartTls` for the monitor to decide on.
        """
        if self._is_http(line):
            return replies.NOT_HTTP
        if self._awaits_plain:
            self._awaits_plain = False
            return _plain(line)
        command = parse(line)
        # RFC 1939 section 7: PASS comes immediately after its USER, or not at all.
        user_given, self._user_just_given = self._user_just_given, False
        if command.keyword == b"PASS" and not user_given and self.policy.plaintext:
            return replies.USER_FIRST
        handler = COMMANDS.get(command.keyword)
        return handler(self, command) if handler else replies.UNKNOWN_COMMAND

    def user(self, command: Command) -> Reply:
        """USER name: every name gets the same answer."""
        if not self.policy.plaintext:
            return self.policy.refusal
        if not command.argument:
            return replies.WRONG_ARGUMENTS
        self._name = command.argument
        self._user_just_given = True
        return replies.SEND_PASS

    def password(self, command: Command) -> Reply | Attempt:
        """PASS string: the password is the rest of the line, spaces included."""
        if not self.policy.plaintext:
            return self.policy.refusal
        if command.argument is None:
            return replies.WRONG_ARGUMENTS
        return Attempt("USER", self._name, password=command.argument)

    def apop(self, command: Command) -> Reply | Attempt:
        """APOP name digest (RFC 1939 section 7).

        The digest is the MD5 of timestamp and secret, in 32 lower-case hex digits.
        """
        if not self.policy.apop_timestamp:
            return replies.APOP_UNAVAILABLE if self.policy.plaintext else self.policy.refusal
        name, _, digest = (command.argument or b"").rpartition(b" ")
        if not name or len(digest) != 32 or digest.strip(b"0123456789abcdef"):
            return replies.WRONG_ARGUMENTS
        return Attempt("APOP", name, timestamp=self.policy.apop_timestamp, digest=digest)

    def auth(self, command: Command) -> Reply | Attempt:
        """AUTH mechanism [initial-response] (RFC 5034 section 4).

        A bare AUTH lists the mechanisms, as it did in older servers.
        """
        words = command.words()
        if not words:
            return replies.multi_line(b"+OK", MECHANISMS if self.policy.plaintext else ())
        if words[0].upper() not in MECHANISMS:
            return replies.MECHANISM_UNKNOWN
        if not self.policy.plaintext:
            return self.policy.refusal
        if len(words) == 1:
            self._awaits_plain = True
            return replies.SASL_CONTINUE
        if len(words) > 2:
            return replies.WRONG_ARGUMENTS
        # RFC 5034 section 4: "=" stands for an initial response of no octets.
        return _plain(b"" if words[1] == b"=" else words[1])

    def stls(self, command: Command) -> Reply | StartTls:
        """STLS (RFC 2595 section 4): TLS begins behind a positive reply."""
        if command.words():
            return replies.WRONG_ARGUMENTS
        if self.policy.secured:
            return replies.TLS_ALREADY
        return START_TLS if self.policy.stls else replies.TLS_UNAVAILABLE

    def utf8_mode(self, command: Command) -> Reply:
        """UTF8 (RFC 6856 section 2). Messages are sent as they are stored, in either mode."""
        if command.words():
            return replies.WRONG_ARGUMENTS
        self.utf8 = True
        return replies.UTF8_ON

    def capa(self, command: Command) -> Reply:
        """CAPA (RFC 2449 section 5)."""
        return capa(command, self.policy.plaintext, self.policy.stls)

    def quit(self, command: Command) -> Reply:
        """QUIT before login never deletes (RFC 1939 section 4)."""
        return replies.WRONG_ARGUMENTS if command.words() else replies.GOODBYE


def _plain(response: bytes) -> Reply | Attempt:
    """Turn a PLAIN response into an attempt; returns a refusal if it is "*" or malformed."""
    if response == b"*":
        return replies.SASL_CANCELLED
    message = decode_base64(response)
    credentials = credentials_of(message) if message is not None else None
    if credentials is None:
        return replies.SASL_MALFORMED
    return Attempt("PLAIN", credentials[0], password=credentials[1])


def decode_base64(response: bytes) -> bytes | None:
    """Decode a base64 response (RFC 4648 section 4); returns None if it is malformed.

    Padding must complete the last group of four characters, and may not exceed it (section 3.3).
    The unused bits of the last character may be set: section 3.5 lets a decoder choose, nothing
    here depends on how a password was encoded, and Dovecot accepts them.
    """
    try:
        octets = binascii.a2b_base64(response, strict_mode=True) if response else b""
    except binascii.Error:
        return None
    # strict_mode accepts any number of "=" behind a complete group.
    return octets if len(response) == (len(octets) + 2) // 3 * 4 else None


def credentials_of(message: bytes) -> tuple[bytes, bytes] | None:
    """Split a PLAIN message (RFC 4616 section 2) into name and password.

    Returns None if it is malformed, or contains a CR or LF. The authorization identity must be
    empty or equal to the name: no user acts for another here.
    """
    parts = message.split(b"\0")
    if len(parts) != 3:
        return None
    identity, name, password = parts
    if not name or identity not in (b"", name):
        return None
    if b"\r" in message or b"\n" in message:
        return None
    return name, password


COMMANDS: dict[bytes, Callable[[Authorization, Command], Reply | Attempt | StartTls]] = {
    b"USER": Authorization.user,
    b"PASS": Authorization.password,
    b"APOP": Authorization.apop,
    b"AUTH": Authorization.auth,
    b"STLS": Authorization.stls,
    b"UTF8": Authorization.utf8_mode,
    b"CAPA": Authorization.capa,
    b"QUIT": Authorization.quit,
}
