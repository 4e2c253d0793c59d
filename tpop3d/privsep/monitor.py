"""The decisions about one connection: who is let in, and what the gatekeeper may ask.

The monitor has all the program's privileges, and reads nothing from the client. Its only input and
output is the log. A door hands it each message (`receive`) and whatever else happens (`note`). Both
return the connection's state, and the door does what that state wants.
"""

from __future__ import annotations

import os
from time import monotonic, time_ns

from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Verdict
from tpop3d.auth.switch import Switch
from tpop3d.config.addresses import IMMEDIATE, PLAIN, STLS, Unresolved
from tpop3d.pop3.authorization import Policy
from tpop3d.privsep import channel as channels
from tpop3d.privsep import lifecycle
from tpop3d.privsep.channel import Ending, Line, ReceivedLogin, TlsWanted
from tpop3d.session.summary import Summary
from tpop3d.session.wire import ERROR
from tpop3d.system import logs, processes
from tpop3d.system.io import Violation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from tpop3d.auth.driver import Driver
    from tpop3d.auth.switch import Rules
    from tpop3d.config.addresses import Tls
    from tpop3d.privsep.channel import Message
    from tpop3d.tls.relay_channel import Failed, Secured

    class MonitorRules(Rules, Protocol):
        """What a monitor goes by, beyond what the auth switch does: directives, by their names."""

        drivers: dict[str, Driver]
        login_seconds: int
        timeout_seconds: int

        def takes_plaintext(self, client: str) -> bool: ...

        def local_domain(self, host: str, port: int) -> bytes: ...


MAX_FAILED_LOGINS = 3
MAX_LINES = 2  # of one connection, without those of -v
MAX_UNDECIDED = 10  # attempts that could not be checked, of one connection
GRACE = 5.0  # seconds after `login-seconds` in which a gatekeeper has to report the end
HOST_NAME = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"


class Monitor:
    """The monitor of one connection, from the address `client`, made at `local`."""

    def __init__(
        self, rules: MonitorRules, client: str, local: tuple[str, int], tls: Tls = PLAIN
    ) -> None:
        self.summary = Summary(client)
        self.state = lifecycle.HANDSHAKE if tls.mode == IMMEDIATE else lifecycle.AUTHORIZING
        self.end = ERROR  # how it ended, once it is over; "" where its session has logged that
        self.verdict = Verdict.no("nothing was tried")
        self._rules = rules
        self._local = local
        self._switch = Switch(rules.drivers, rules)
        self._failed = 0
        self._undecided = 0
        self._closed = False
        self._lines = 0
        self._is_verbose = logs.is_verbose()  # as the gatekeeper is, whatever a reload says
        self.tls = tls
        self._octets = (0, 0)  # in and out, before TLS
        is_open = tls.mode == IMMEDIATE or rules.takes_plaintext(client)
        timestamp = apop_timestamp() if is_open and self._switch.offers_apop() else b""
        plaintext = is_open and not rules.apop_only
        self.policy = Policy(timestamp, plaintext, stls=tls.mode == STLS)
        self.summary.needs_tls = not is_open

    @property
    def patience(self) -> float:
        """How many seconds a client may take no octet of what is sent to it."""
        return self._rules.timeout_seconds

    @property
    def seconds_left(self) -> float:
        """How many seconds there are to log in. Negotiating TLS gives nobody more of them."""
        return max(0.0, self.summary.started + self._rules.login_seconds - monotonic())

    def receive(self, message: Message) -> str:
        """Take a gatekeeper's message; returns the connection's new state, "" if the message was
        only a line for the log. Raises `Violation`: see `lifecycle`."""
        if isinstance(message, Line):
            self._log(message)
            return ""
        event = _event(message)
        lifecycle.after(self.state, event)  # nothing has changed yet where this raises, or a check
        if isinstance(message, ReceivedLogin):
            self._check(message)
        elif isinstance(message, TlsWanted):
            self._check_tls(message)
        elif message.how:
            self._count(message)
        return self.note(event, message.how if isinstance(message, Ending) else ERROR)

    def note(self, event: str, how: str = ERROR) -> str:
        """Take note of an event; returns the connection's new state. `how` is how the connection
        ended, if it is over. Raises `Violation`."""
        before, self.state = self.state, lifecycle.after(self.state, event)
        if self.state == lifecycle.OVER:
            is_told = event == lifecycle.SESSION_OVER or before == lifecycle.ENDED_EARLY
            self.end = "" if is_told else how
        return self.state

    def _check_tls(self, wanted: TlsWanted) -> None:
        if self._closed or not self.policy.stls:
            raise Violation("TLS that was not offered")
        self._count(wanted)

    def secure(self, secured: Secured) -> None:
        """The connection has TLS from now on. Nothing that the client said in the clear counts."""
        self.note(lifecycle.SECURED)
        self.summary.tls, self.summary.cipher = secured.version, secured.cipher
        self._octets = self.summary.octets_in, self.summary.octets_out
        self.policy = Policy(self.policy.apop_timestamp, plaintext=True, secured=True)

    def log_failed_tls(self, failed: Failed) -> None:
        """Log why there is no TLS, or no more of it. Where the fault is ours, no filter may take it
        for the client's."""
        what, log = ("tls trouble", logs.error) if failed.is_ours else ("tls failed", logs.notice)
        log(logs.event(what, rip=self.summary.client, reason=failed.reason))

    def _count(self, told: ReceivedLogin | TlsWanted | Ending) -> None:
        """Take the octets that a gatekeeper has counted."""
        self.summary.octets_in = self._octets[0] + told.octets_in
        self.summary.octets_out = self._octets[1] + told.octets_out

    def _check(self, request: ReceivedLogin) -> None:
        """Raise `Violation` for a request that must not come now."""
        self._count(request)
        self.summary.method = request.method
        if self._closed:
            raise Violation("an attempt after the last one")
        if request.method == "APOP" and not self.policy.apop_timestamp:
            raise Violation("APOP that was not offered")
        if request.method != "APOP" and not self.policy.plaintext:
            raise Violation("a password that was not asked for")

    def decide(self, request: ReceivedLogin) -> Verdict:
        """Ask the auth switch about an attempt that `receive` has taken, and log it if refused.

        Raises `processes.Interrupted` when the process is told to end.
        """
        attempt = request.attempt
        # Ours, whatever the gatekeeper says: a digest of another connection is worth nothing.
        attempt.timestamp = self.policy.apop_timestamp
        processes.interrupt(True)
        try:
            domain, unresolved = b"", ""
            # Only now: a host name in listen-address may have to be looked up.
            if self._switch.appends_to(attempt.name):
                try:
                    domain = self._rules.local_domain(*self._local)
                except Unresolved as error:
                    unresolved = str(error)
            client = self.summary.client
            # Peers without an address have a word in its place, for the log.
            address = client if "." in client or ":" in client else ""
            self.verdict = self._switch.decide(attempt, domain, address)
            if unresolved and self.verdict.answer == NO:
                logs.error(unresolved)
                self.verdict = Verdict.cannot_say(unresolved)
        except Exception as error:
            logs.error(f"internal error: {logs.describe(error)}")
            self.verdict = Verdict.cannot_say("internal error")
            self._undecided = MAX_UNDECIDED
        finally:
            processes.interrupt(False)
        self.summary.note_attempt(attempt.method, self.verdict)
        if self.verdict.answer != YES:
            failed = "login failed" if self.verdict.is_guess else "login impossible"
            line = logs.event(
                "login undecided" if self.verdict.answer == CANNOT_SAY else failed,
                rip=self.summary.client,  # first: some log daemons cut long lines
                user=attempt.name,
                method=attempt.method,
                driver=self.verdict.driver,
                **self.summary.secured(),
                reason=self.verdict.reason,
            )
            logs.notice(line)
        return self.verdict

    def _log(self, line: Line) -> None:
        """Write a gatekeeper's line to the log: one about a failure, or with -v any.

        The line is marked as the gatekeeper's: whoever reads the log must not take it for ours.
        """
        is_error = line.level == channels.LOG_ERR
        self._lines += is_error
        if self._lines > MAX_LINES or not (is_error or self._is_verbose):
            raise Violation("lines for the log that nobody asked for")
        logs.write(line.level, logs.event("gatekeeper", rip=self.summary.client, says=line.text))

    def answer(self, answer: str) -> bytes:
        """The message that tells the gatekeeper of a verdict, and whether it was the last one."""
        if answer == YES:
            self._closed = True
            return channels.ADMITTED
        if answer == CANNOT_SAY:
            self._undecided += 1
            self._closed = self._undecided >= MAX_UNDECIDED
            return channels.UNDECIDED_FOR_LAST if self._closed else channels.UNDECIDED
        self._failed += 1
        self._closed = self._failed >= MAX_FAILED_LOGINS
        return channels.REFUSED_FOR_LAST if self._closed else channels.REFUSED


def _event(message: ReceivedLogin | TlsWanted | Ending) -> str:
    """The event that a gatekeeper's message tells of."""
    if isinstance(message, ReceivedLogin):
        return lifecycle.ASKS_LOGIN
    if isinstance(message, TlsWanted):
        return lifecycle.ASKS_TLS
    if not message.how:
        return lifecycle.REPORTED
    return lifecycle.LEFT if message.how == channels.STLS else lifecycle.ENDED


def apop_timestamp() -> bytes:
    """Make a msg-id that no greeting had before, in the form of RFC 1939's example (section 7): two
    numbers and a host. Some clients know no other form."""
    host = bytes(c for c in os.fsencode(os.uname().nodename) if c in HOST_NAME)
    number = int.from_bytes(os.urandom(8), "big")
    return b"<%d.%d@%b>" % (number, time_ns(), host[:64] or b"localhost")


def log_violation(client: str, number: int, what: object, who: str = "gatekeeper") -> None:
    """Log that a gatekeeper, or a relay, does what ours never do: it is in somebody else's hands.
    `client` is "" where it has no connection.

    An earlier client may have taken the gatekeeper over: so this one is named as `serving`, which
    no filter takes for the culprit.
    """
    logs.error(logs.event("attack", serving=client, **{who: number}, reason=str(what)))
