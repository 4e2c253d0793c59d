"""The TRANSACTION state: the commands on an open maildrop (RFC 1939 section 5)."""

from __future__ import annotations

from tpop3d.pop3 import replies
from tpop3d.pop3.capabilities import capa
from tpop3d.pop3.commands import MAX_COMMAND, Command, number, parse
from tpop3d.pop3.replies import Reply
from tpop3d.pop3.stuffing import encode, top

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    from tpop3d.pop3.authorization import Policy
    from tpop3d.system.refusal import Refusal

    class Ids(Protocol):
        """The unique-id of each message."""

        def __getitem__(self, index: int, /) -> bytes: ...

        def __iter__(self) -> Iterator[bytes]: ...

    class Maildrop(Protocol):
        """The interface of an open maildrop. The first message has the index 0."""

        @property
        def octets(self) -> Sequence[int]:
            """The size of each message in octets, as RETR sends it, without dot-stuffing."""

        def changed(self) -> Refusal | None:
            """Refuse a maildrop that has changed other than by growing."""

        def blocks(self, index: int) -> Iterator[bytes]:
            """Yield the stored octets of a message in blocks."""

        def unique_ids(self) -> Ids:
            """The unique-id of each message, 1 to 70 octets of 0x21 to 0x7E."""


LINES_PER_BLOCK = 1024  # lines of a listing that are built and sent at a time


class Tally:
    """Counts the messages that were sent completely, and their octets."""

    __slots__ = ("messages", "octets")

    def __init__(self) -> None:
        self.messages = 0
        self.octets = 0

    def add(self, octets: int) -> None:
        """Count one message of this size."""
        self.messages += 1
        self.octets += octets

    def __str__(self) -> str:
        return f"{self.messages}/{self.octets}"


def _at_once(action: Callable[[], None]) -> None:
    action()


class Transaction:
    """The state of one connection after login. Message numbers do not change while it lasts.

    `when_sent` is called at the end of a message with an action, which counts the message. It calls
    the action when the client has been sent the whole message.
    """

    limit = MAX_COMMAND
    confidential = False

    def __init__(
        self,
        maildrop: Maildrop,
        policy: Policy,
        when_sent: Callable[[Callable[[], None]], None] = _at_once,
    ) -> None:
        self._maildrop = maildrop
        self._when_sent = when_sent
        self._policy = policy
        self._octets = maildrop.octets
        self.deleted = bytearray(len(self._octets))  # an entry for each message: 1 if it is marked
        self.left_octets = sum(self._octets)
        self.left = len(self._octets)
        self.retrieved = Tally()
        self.topped = Tally()

    def refuse_line(self, reply: Reply, line: bytes = b"") -> Reply:
        """Return `reply`: an unreadable line interrupts nothing in this state."""
        return reply

    def handle(self, line: bytes) -> Reply:
        """Answer one line, without its end."""
        command = parse(line)
        handler = COMMANDS.get(command.keyword)
        return handler(self, command) if handler else replies.UNKNOWN_COMMAND

    def _index(self, word: bytes) -> int | None:
        """The index of the message with the number `word`; None if it is absent or deleted."""
        n = number(word)
        if n is None or not 1 <= n <= len(self.deleted) or self.deleted[n - 1]:
            return None
        return n - 1

    def stat(self, command: Command) -> Reply:
        """STAT: the number and the total size of the messages that are not marked."""
        if command.words():
            return replies.WRONG_ARGUMENTS
        return Reply(b"+OK %d %d" % (self.left, self.left_octets))

    def list(self, command: Command) -> Reply:
        """LIST [msg]: sizes in octets, as RETR sends the messages."""
        header = b"+OK %d messages (%d octets)" % (self.left, self.left_octets)
        return self._listing(command, header, lambda: self._octets, b"%d %d")

    def uidl(self, command: Command) -> Reply:
        """UIDL [msg]: unique-ids."""
        if self._maildrop.changed():
            return replies.MAILDROP_CHANGED
        header = b"+OK unique-ids follow"
        return self._listing(command, header, self._maildrop.unique_ids, b"%d %b")

    def _listing(
        self,
        command: Command,
        header: bytes,
        values: Callable[[], Sequence[int] | Ids],
        form: bytes,
    ) -> Reply:
        """Answer with the value of one message, or with those of all that are not marked."""
        words = command.words()
        if len(words) > 1:
            return replies.WRONG_ARGUMENTS
        if words:
            index = self._index(words[0])
            if index is None:
                return replies.NO_SUCH_MESSAGE
            return Reply(b"+OK " + form % (index + 1, values()[index]))
        return Reply(header, self._lines(values(), form + b"\r\n"))

    def _lines(self, values: Sequence[int] | Ids, form: bytes) -> Iterator[bytes]:
        """Yield a listing in blocks. Its lines begin with a digit, so none needs dot-stuffing."""
        deleted = self.deleted
        lines: list[bytes] = []
        for index, value in enumerate(values):
            if not deleted[index]:
                lines.append(form % (index + 1, value))
                if len(lines) == LINES_PER_BLOCK:
                    yield b"".join(lines)
                    lines.clear()
        lines.append(b".\r\n")
        yield b"".join(lines)

    def retr(self, command: Command) -> Reply:
        """RETR msg: the whole message."""
        words = command.words()
        if len(words) != 1:
            return replies.WRONG_ARGUMENTS
        index = self._index(words[0])
        if index is None:
            return replies.NO_SUCH_MESSAGE
        if self._maildrop.changed():
            return replies.MAILDROP_CHANGED
        octets = self._octets[index]
        body = self._sent(encode(self._maildrop.blocks(index), octets), self.retrieved, octets)
        return Reply(b"+OK %d octets" % octets, body)

    def top(self, command: Command) -> Reply:
        """TOP msg n: the headers, the empty line, and n lines of the body."""
        words = command.words()
        lines = number(words[1]) if len(words) == 2 else None
        if lines is None:
            return replies.WRONG_ARGUMENTS
        index = self._index(words[0])
        if index is None:
            return replies.NO_SUCH_MESSAGE
        if self._maildrop.changed():
            return replies.MAILDROP_CHANGED
        body = encode(top(self._maildrop.blocks(index), lines))
        return Reply(b"+OK top of message follows", self._sent(body, self.topped, None))

    def _sent(self, body: Iterator[bytes], tally: Tally, octets: int | None) -> Iterator[bytes]:
        """Yield a body unchanged, and have it counted when it is sent.

        `octets` is the size to count; None: count the octets that were yielded.
        """
        passed = 0
        for block in body:
            passed += len(block)
            yield block
        counted = passed - len(b".\r\n") if octets is None else octets
        self._when_sent(lambda: tally.add(counted))

    def dele(self, command: Command) -> Reply:
        """DELE msg: marks the message. Nothing is removed before QUIT."""
        words = command.words()
        if len(words) != 1:
            return replies.WRONG_ARGUMENTS
        index = self._index(words[0])
        if index is None:
            return replies.NO_SUCH_MESSAGE
        self.deleted[index] = 1
        self.left -= 1
        self.left_octets -= self._octets[index]
        return replies.MESSAGE_DELETED

    def rset(self, command: Command) -> Reply:
        """RSET: unmarks all messages."""
        if command.words():
            return replies.WRONG_ARGUMENTS
        self.deleted = bytearray(len(self._octets))
        self.left = len(self._octets)
        self.left_octets = sum(self._octets)
        return Reply(b"+OK %d messages (%d octets)" % (self.left, self.left_octets))

    def noop(self, command: Command) -> Reply:
        """NOOP: does nothing."""
        return replies.WRONG_ARGUMENTS if command.words() else replies.NOTHING_DONE

    def capa(self, command: Command) -> Reply:
        """CAPA: the list as before login, without STLS."""
        return capa(command, self._policy.plaintext)

    def quit(self, command: Command) -> Reply:
        """QUIT: the only way into the UPDATE state (RFC 1939 section 6)."""
        return replies.WRONG_ARGUMENTS if command.words() else replies.QUIT_RECEIVED


COMMANDS: dict[bytes, Callable[[Transaction, Command], Reply]] = {
    b"STAT": Transaction.stat,
    b"LIST": Transaction.list,
    b"UIDL": Transaction.uidl,
    b"RETR": Transaction.retr,
    b"TOP": Transaction.top,
    b"DELE": Transaction.dele,
    b"RSET": Transaction.rset,
    b"NOOP": Transaction.noop,
    b"CAPA": Transaction.capa,
    b"QUIT": Transaction.quit,
}
