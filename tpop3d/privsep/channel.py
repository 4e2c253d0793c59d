"""The messages between gatekeeper and monitor: they have fixed forms and hard limits.

One message is one packet of a SOCK_SEQPACKET socketpair (unix(7)). A gatekeeper serves one
connection after the other. A connection with a refused login, and then a good one:

    monitor                                        gatekeeper
    ---------------------------------------------  --------------------------------------------
    Order, with the client's descriptors       ->  greets the client, and reads its commands
    asks the auth switch                       <-  LoginRequest: name, secret, octets behind it
    REFUSED or UNDECIDED, when that is due     ->  tells the client, and reads its commands
    asks the auth switch                       <-  LoginRequest
    ADMITTED                                   ->  closes the connection, and says nothing on it
    knows of the session                       <-  Ending, its `how` is "": a report of the login
    next Order                                 ->  ...

In the listener it is the login process that sends ADMITTED, on its copy of the monitor's end: it
becomes the session. The process of per_connection decides itself, and sends no ADMITTED: it ends
the gatekeeper, and becomes the session. Without a login the connection ends with the gatekeeper's
Ending, whose `how` says why (QUIT, TIMEOUT, ...); REFUSED_FOR_LAST and UNDECIDED_FOR_LAST have the
gatekeeper tell the client, and end. With STLS:

    is there a relay?                          <-  TlsWanted
    BEGIN_TLS                                  ->  sends the client +OK, closes the connection
    hands the connection to a relay, awaits    <-  Ending, its `how` is STLS
    the handshake (relay_channel.py)
    Order, with the inner end of the relay's   ->  reads commands, and does not greet again
    socket, to any gatekeeper

NO_TLS has the gatekeeper tell the client, and read on. Where TLS comes first, so does the relay,
and the Order behind the handshake is the first one: the gatekeeper greets. A Line for the log may
come at any time, and has no answer. lifecycle.py says which message may come in which state of the
connection.

The gatekeeper trusts the monitor, and waits for its answers. The monitor sends and receives without
blocking, and takes every octet from the gatekeeper for hostile: what does not have exactly one of
these forms, or comes with a descriptor, is a `Violation`.
"""

from __future__ import annotations

import struct

from tpop3d.pop3.authorization import Attempt, Policy
from tpop3d.pop3.commands import MAX_RESPONSE
from tpop3d.session.wire import EOF, ERROR, HTTP, INJECTION, QUIT, RECEIVE, SIGNAL, TIMEOUT
from tpop3d.system import socket
from tpop3d.system.io import PacketSocket, Violation, packet_pair

MAX_NAME = MAX_RESPONSE  # octets of a name, and of a password: no line holds more
MAX_PENDING = RECEIVE + MAX_RESPONSE  # octets that the client has sent behind its login attempt
LOG_ERR, LOG_DEBUG = 3, 7  # the levels of a gatekeeper's lines (syslog(3))
MAX_LINE = 1000  # octets of a line for the log
MAX_ORDER = 512  # octets of an order, or of a verdict
MAX_MESSAGE = 2 * MAX_NAME + MAX_PENDING + 64

# Verdicts, from the monitor.
ADMITTED = b"+"
REFUSED = b"-"
REFUSED_FOR_LAST = b"="
UNDECIDED = b"?"
UNDECIDED_FOR_LAST = b"!"
BEGIN_TLS = b"z"
NO_TLS = b"Z"
VERDICTS = (ADMITTED, REFUSED, REFUSED_FOR_LAST, UNDECIDED, UNDECIDED_FOR_LAST, BEGIN_TLS, NO_TLS)

STLS = "stls"  # `how` of the Ending of a gatekeeper that leaves the connection to TLS

# kind; plaintext, stls, secured, greets; seconds to log in; length of the timestamp
_ORDER = struct.Struct("!c????dB")
_ATTEMPT = struct.Struct("!ccHHIQQ")  # kind, method, lengths of name, secret, pending; octets
_TLS = struct.Struct("!cQQ")  # kind; octets in and out
_ENDED = struct.Struct("!ccQQ")  # kind, how, octets in and out
_LINE = struct.Struct("!cB")  # kind, level; the line follows
_METHODS = {b"U": "USER", b"P": "PLAIN", b"A": "APOP"}
_ENDS = {b"q": QUIT, b"e": EOF, b"t": TIMEOUT, b"s": SIGNAL, b"x": ERROR, b"a": "",
         b"i": INJECTION, b"h": HTTP, b"z": STLS}  # fmt: skip
DIGEST_LENGTH = 32


class Order:
    """An order to serve a connection. `fds` are its descriptors, in and out. `login_seconds`: the
    time to log in. `greets`: is the client to be greeted? It is not after STLS."""

    __slots__ = ("fds", "greets", "login_seconds", "policy")

    def __init__(
        self, fds: tuple[int, int], policy: Policy, login_seconds: float, greets: bool = True
    ) -> None:
        self.fds = fds
        self.policy = policy
        self.greets = greets
        self.login_seconds = login_seconds


class LoginRequest:
    """A question: may the client log in? `pending` are the octets that it has sent behind the
    attempt. The octets in and out are counted since the order.

    The gatekeeper makes it; the monitor receives it as a `ReceivedLogin`.
    """

    __slots__ = ("attempt", "octets_in", "octets_out", "pending")

    def __init__(self, attempt: Attempt, pending: bytes, octets_in: int, octets_out: int) -> None:
        self.attempt = attempt
        self.pending = pending
        self.octets_in = octets_in
        self.octets_out = octets_out


class ReceivedLogin:
    """A `LoginRequest` as the monitor receives it. Its secret stays in one buffer until somebody
    reads `attempt`: the listener forks a login process, which reads it, and wipes its own buffer.

    Raises `Violation` if the message is not a valid request.
    """

    __slots__ = ("_attempt", "_buffer", "_length", "_name", "_secret", "method", "octets_in",
                 "octets_out")  # fmt: skip

    def __init__(self, buffer: bytearray, length: int) -> None:
        if length < _ATTEMPT.size:
            raise Violation("a short attempt")
        _, method, name, secret, pending, self.octets_in, self.octets_out = _ATTEMPT.unpack_from(
            buffer
        )
        if method not in _METHODS or not 0 < name <= MAX_NAME or secret > MAX_NAME:
            raise Violation("an impossible attempt")
        if pending > MAX_PENDING or length != _ATTEMPT.size + name + secret + pending:
            raise Violation("an attempt of the wrong length")
        self.method = _METHODS[method]
        self._buffer = buffer
        self._length = length
        self._name = _ATTEMPT.size + name  # the offset at which the name ends, and
        self._secret = self._name + secret  # that at which the secret ends
        if any(buffer.find(c, _ATTEMPT.size, self._name) >= 0 for c in b"\0\r\n"):
            raise Violation("an impossible name")
        if self.method == "APOP" and secret != DIGEST_LENGTH:
            raise Violation("an impossible digest")
        self._attempt: Attempt | None = None

    @property
    def attempt(self) -> Attempt:
        """The attempt: name, method, and the secret, which is copied out of the buffer."""
        if self._attempt is None:
            name = bytes(self._buffer[_ATTEMPT.size : self._name])
            secret = bytes(self._buffer[self._name : self._secret])
            if self.method == "APOP":
                self._attempt = Attempt(self.method, name, digest=secret)
            else:
                self._attempt = Attempt(self.method, name, password=secret)
        return self._attempt

    @property
    def pending(self) -> bytes:
        """The octets that the client has sent behind its attempt."""
        return bytes(self._buffer[self._secret : self._length])

    def wipe(self) -> None:
        """Overwrite the buffer. `attempt` and `pending` must not be read afterwards."""
        _wipe(self._buffer)


class TlsWanted:
    """A question: may TLS begin? With the octets in and out since the order."""

    __slots__ = ("octets_in", "octets_out")

    def __init__(self, octets_in: int, octets_out: int) -> None:
        self.octets_in = octets_in
        self.octets_out = octets_out


class Ending:
    """A report: the connection is over for the gatekeeper. `how` is "" after an admission, STLS if
    TLS is to begin, or how the connection has ended."""

    __slots__ = ("how", "octets_in", "octets_out")

    def __init__(self, how: str, octets_in: int, octets_out: int) -> None:
        self.how = how
        self.octets_in = octets_in
        self.octets_out = octets_out


class Line:
    """A line for the log, since the gatekeeper cannot reach the log itself."""

    __slots__ = ("level", "text")

    def __init__(self, level: int, text: str) -> None:
        self.level = level
        self.text = text


Message = ReceivedLogin | TlsWanted | Ending | Line  # what the monitor hears


class Channel(PacketSocket):
    """One end of the channel; each side has methods of its own."""

    __slots__ = ()

    # The monitor's side

    def give_order(self, order: Order) -> None:
        """Hand a connection over, without waiting. Raises OSError, also if the gatekeeper does not
        read."""
        policy = order.policy
        header = _ORDER.pack(
            b"O",
            policy.plaintext,
            policy.stls,
            policy.secured,
            order.greets,
            order.login_seconds,
            len(policy.apop_timestamp),
        )
        self.send_packet(header + policy.apop_timestamp, *order.fds)

    def give_verdict(self, verdict: bytes) -> None:
        """Answer a question, without waiting. If the gatekeeper is gone or does not read, nothing
        happens."""
        try:
            self._socket.send(verdict, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            pass

    def receive(self) -> Message | None:
        """The gatekeeper's next message; None at the end of file. Does not wait.

        Raises `Violation`, BlockingIOError if there is no message, and other OSErrors.
        """
        try:
            # Most messages are short. A buffer for the longest would cost more than all else here.
            flags = socket.MSG_DONTWAIT | socket.MSG_PEEK | socket.MSG_TRUNC
            length = self._socket.recv_into(bytearray(1), 1, flags)
            buffer = bytearray(min(length, MAX_MESSAGE) or 1)
            length, rights, cut, _ = self._socket.recvmsg_into([buffer], 0, socket.MSG_DONTWAIT)
        except ConnectionError:
            return None
        try:
            if cut & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or rights:
                raise Violation("too large, or with descriptors")
            if not length:
                return None
            if buffer[:1] == b"A":
                return ReceivedLogin(buffer, length)
            if buffer[:1] == b"T":
                return _tls_wanted(bytes(buffer[:length]))
            if buffer[:1] == b"E":
                return _ending(bytes(buffer[:length]))
            if buffer[:1] == b"L":
                return _line(bytes(buffer[:length]))
            raise Violation("of no known kind")
        except Violation:
            _wipe(buffer)
            raise

    # The gatekeeper's side

    def take_order(self) -> Order | None:
        """Wait for the next connection to serve; returns None if the monitor is gone."""
        message = b"?"
        while len(message) == 1:  # a late verdict, on an attempt that is let in already, or gone
            message, fds = self.receive_packet(MAX_ORDER, 2)
        if not message:
            return None
        _, plaintext, stls, secured, greets, seconds, length = _ORDER.unpack_from(message)
        timestamp = message[_ORDER.size : _ORDER.size + length]
        return Order((fds[0], fds[1]), Policy(timestamp, plaintext, stls, secured), seconds, greets)

    def ask(self, request: LoginRequest) -> bytes:
        """Ask for a verdict and wait for it; returns b"" if the monitor is gone. Raises OSError."""
        attempt = request.attempt
        secret = attempt.digest if attempt.password is None else attempt.password
        header = _ATTEMPT.pack(
            b"A",
            attempt.method[:1].encode(),
            len(attempt.name),
            len(secret),
            len(request.pending),
            request.octets_in,
            request.octets_out,
        )
        message = header + attempt.name + secret + request.pending
        self._socket.send(message, socket.MSG_NOSIGNAL)
        return self._socket.recv(1)

    def ask_for_tls(self, octets_in: int, octets_out: int) -> bytes:
        """Ask whether TLS may begin, and wait for BEGIN_TLS or NO_TLS; returns b"" if the monitor
        is gone. Raises OSError."""
        self._socket.send(_TLS.pack(b"T", octets_in, octets_out), socket.MSG_NOSIGNAL)
        return self._socket.recv(1)

    def log(self, level: int, line: str) -> None:
        """Have the monitor log a line of at most `MAX_LINE` octets. Raises OSError."""
        self._socket.send(_LINE.pack(b"L", level) + line.encode()[:MAX_LINE], socket.MSG_NOSIGNAL)

    def report(self, ending: Ending) -> None:
        """Report that the connection is over for this gatekeeper. Raises OSError."""
        how = next(code for code, word in _ENDS.items() if word == ending.how)
        message = _ENDED.pack(b"E", how, ending.octets_in, ending.octets_out)
        self._socket.send(message, socket.MSG_NOSIGNAL)


def pair() -> tuple[Channel, Channel]:
    """Make a channel; returns the monitor's end and the gatekeeper's. Raises OSError."""
    ours, theirs = packet_pair()
    return Channel(ours), Channel(theirs)


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))


def _tls_wanted(message: bytes) -> TlsWanted:
    if len(message) != _TLS.size:
        raise Violation("a wish for TLS of the wrong length")
    return TlsWanted(*_TLS.unpack(message)[1:])


def _ending(message: bytes) -> Ending:
    if len(message) != _ENDED.size:
        raise Violation("an ending of the wrong length")
    _, how, octets_in, octets_out = _ENDED.unpack(message)
    if how not in _ENDS:
        raise Violation("an impossible ending")
    return Ending(_ENDS[how], octets_in, octets_out)


def _line(message: bytes) -> Line:
    if not _LINE.size <= len(message) <= _LINE.size + MAX_LINE:
        raise Violation("a line of the wrong length")
    _, level = _LINE.unpack_from(message)
    if level not in (LOG_ERR, LOG_DEBUG):
        raise Violation("a line of a level that is none of its own")
    return Line(level, message[_LINE.size :].decode("latin-1"))
