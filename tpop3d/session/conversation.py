"""The one loop that speaks with the client, in every state.

A state is asked with `handle(line)` and answers with a reply; only this file puts replies on the
wire, so there is one place for limits, gathering and the command log.
"""

from __future__ import annotations

from tpop3d.pop3 import replies
from tpop3d.pop3.commands import OVERLONG, is_malformed
from tpop3d.pop3.replies import BAD, CONTINUE, MAX_BAD_COMMANDS, Reply
from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    from tpop3d.session.wire import Wire

    T = TypeVar("T", covariant=True)

    class State(Protocol[T]):
        """AUTHORIZATION or TRANSACTION. T is what it may answer besides a reply."""

        @property
        def limit(self) -> int: ...
        @property
        def confidential(self) -> bool: ...
        def refuse_line(self, reply: Reply, line: bytes) -> Reply: ...
        def handle(self, line: bytes) -> Reply | T: ...


# Commands whose arguments are logged. Of others nothing is: a password may be where no
# password belongs.
OPEN_ARGUMENTS = (
    b"USER", b"UTF8", b"STLS", b"CAPA", b"STAT", b"LIST", b"UIDL", b"RETR", b"TOP", b"DELE",
    b"RSET", b"NOOP", b"QUIT",
)  # fmt: skip
SECRET_ARGUMENTS = (b"PASS", b"APOP", b"AUTH")


class Conversation:
    """The conversation on one wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._bad_in_a_row = 0
        self.is_speaking = False  # a reply is on the wire, and not yet whole

    def say(self, reply: Reply) -> None:
        """Put a reply on the wire; it is sent when no further command is waiting."""
        if logs.is_verbose():
            logs.debug(f"S: {logs.printable(reply.line)}")
        self.is_speaking = True
        self._wire.send((reply.line, b"\r\n"))
        if reply.body is not None:
            self._wire.send(reply.body)
        self.is_speaking = False

    def run(self, state: State[T]) -> Reply | T:
        """Answer commands until the state answers with something other than a reply to go on after.

        Returns that answer. If it is a reply, it is on the wire by then, unless it is UPDATE's.
        Raises `wire.Ended`.
        """
        while True:
            answer = self._next(state)
            if not isinstance(answer, Reply) or answer.outcome == replies.UPDATE:
                self._bad_in_a_row = 0
                return answer
            self._bad_in_a_row = self._bad_in_a_row + 1 if answer.outcome == BAD else 0
            if self._bad_in_a_row >= MAX_BAD_COMMANDS:
                answer = replies.TOO_MANY_BAD_COMMANDS
            self.say(answer)
            if answer.outcome not in (CONTINUE, BAD):
                return answer

    def _next(self, state: State[T]) -> Reply | T:
        line = self._wire.read_line(state.limit)
        if line is OVERLONG:
            return state.refuse_line(replies.LINE_TOO_LONG, self._wire.beginning())
        if is_malformed(line):
            logs.debug("C: (malformed)")
            return state.refuse_line(replies.MALFORMED_LINE, line)
        if logs.is_verbose():
            logs.debug(f"C: {_loggable(line, state.confidential)}")
        return state.handle(line)


def _loggable(line: bytes, confidential: bool) -> str:
    """Write a command for the log, without anything that might be a secret."""
    keyword = line.partition(b" ")[0].upper()
    if confidential:
        return "(a response)"
    if keyword in OPEN_ARGUMENTS:
        return logs.printable(line)
    return f"{keyword.decode()} ..." if keyword in SECRET_ARGUMENTS else "(no command)"
