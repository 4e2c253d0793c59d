"""Random sessions beside a model of a maildrop: a program of its own, since it forks often.

usage: modelling.py DIRECTORY FIRST COUNT

Each number from FIRST on, COUNT of them, is one life of a maildrop. Mail is delivered, the empty
line behind it or before it; there are twins, messages without a body, and short ones. Sessions
come, with an index and without, ask for ids or not, remove some, and are killed anywhere. Other
programs remove messages, change them in place, and lose the index. The model says what must be
true of every session: the messages, what is sent of each, its size; and that an id, once given, is
that message's for as long as it is there. Prints how many sessions there were; exit status 1 and
what is wrong at the first life in which something is.
"""

import os
import random
import sys
import traceback
from collections.abc import Sequence

from killing import in_a_process, opened_for
from tpop3d.mailspool import index as indexes
from tpop3d.mailspool.spool import Spool
from tpop3d.mailspool.uidl_styles import STYLES
from tpop3d.pop3.stuffing import WrongSize, encode
from tpop3d.system.refusal import Refusal

STEPS = 30
FROM = b"From sender@example.org Sun Nov 22 08:00:00 2026\n"
BASE = b"X-IMAPbase: 1500000000 0000000030\n"

Seen = tuple[list[bytes], list[int], list[bytes] | None]  # what is sent, sizes, and unique-ids


class Message:
    """One that was delivered: what is stored of it, and the id that it was given."""

    def __init__(self, content: bytes, leads: bool) -> None:
        self.content = content
        self.leads = leads
        self.id: bytes | None = None

    def is_by_history(self) -> bool:
        return not self.id or b"-" in self.id or len(self.id) == 16 or b"X-UID" in self.content

    def sent(self) -> bytes:
        # Where separators lead, nobody can tell the end of a header without a body from one.
        content = self.content.rstrip(b"\n") if self.leads else self.content
        return b"".join(line + b"\r\n" for line in content.splitlines())


class Life:
    """A maildrop, and what the model knows of it."""

    def __init__(self, directory: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.style = self.chance.choice(STYLES)
        self.has_index = self.chance.random() < 0.7
        # Where the empty line is written before a mail from the first one on, or from some on.
        self.leads = self.chance.random() < 0.4
        self.changes = self.chance.randrange(1, 8) if self.chance.random() < 0.2 else 0
        if self.changes:
            self.leads = False
        self.path, self.state = f"{directory}/spool", f"{directory}/state"
        self.messages: list[Message] = []
        self.count = 0
        self.sessions = 0
        with open(self.path, "wb"):
            pass
        os.mkdir(self.state)

    def content(self) -> bytes:
        """What is delivered next."""
        self.count += 1
        kind = self.chance.randrange(6)
        header = b"Message-ID: <%d>\n" % self.count
        if self.style == "x-uidl" and self.chance.random() < 0.7:
            header += b"X-UIDL: %b\n" % (b"ab"[self.chance.randrange(2) :][:1] * 70)
        if self.style == "dovecot" and self.chance.random() < 0.7:
            # Written by dovecot, or come with the mail.
            number = self.count if self.chance.random() < 0.7 else self.chance.randrange(40)
            header = (BASE if self.count == 1 else b"") + b"X-UID: %d\n" % number + header
        if kind == 0 and self.messages:
            return self.chance.choice(self.messages).content
        if kind == 1:  # the same at the start
            return b"Subject: twin\n\n" + b"x" * 600 + b"\n%d\n" % self.count
        if kind == 2 and not self.changes:  # then its end may be a separator, or not
            return header + b"\n"  # no body
        return header + b"\n" + b"some text\n" * self.chance.choice([1, 3, 80])

    def deliver(self) -> None:
        content = self.content()
        self.leads = self.leads or self.count == self.changes
        with open(self.path, "ab") as file:
            file.write(b"\n" + FROM + content if self.leads else FROM + content + b"\n")
        self.messages.append(Message(content, self.leads))

    def session(self) -> str:
        """One that sees everything, and may remove something."""
        self.sessions += 1
        marks = self.marks()
        asks = self.chance.random() < 0.8
        found = self.in_session(marks, asks)
        if isinstance(found, str):
            return found
        return self.compare(*found) or self.remove(marks)

    def marks(self) -> list[bool]:
        share = self.chance.choice([0, 0, 0.2, 0.5, 1])
        return [self.chance.random() < share for _ in self.messages]

    def in_session(self, marks: Sequence[int], asks: bool = True) -> str | Seen:
        """What a session sees; or what is wrong."""
        spool = opened_for(self.path, self.state, style=self.style, index=self.has_index)
        if isinstance(spool, Refusal):
            return repr(spool)
        try:
            sent = [
                b"".join(encode(spool.blocks(n), size))[:-3] for n, size in enumerate(spool.octets)
            ]
            octets = list(spool.octets)
            ids = list(spool.unique_ids()) if asks else None
            if any(marks) and (refused := spool.expunge(bytearray(marks))):
                return repr(refused)
            return sent, octets, ids
        finally:
            spool.close()

    def compare(self, sent: list[bytes], octets: list[int], ids: list[bytes] | None) -> str:
        """What is wrong with what a session has seen."""
        wanted = [one.sent() for one in self.messages]
        if sent != wanted:
            return f"sent {sent}, and not {wanted}"
        if octets != list(map(len, sent)):
            return f"sizes {octets} of {sent}"
        if ids is None:
            return ""
        if len(set(ids)) != len(ids):
            return f"ids are the same: {ids}"
        for number, (one, found) in enumerate(zip(self.messages, ids, strict=True)):
            if one.id not in (None, found):
                return f"message {number + 1} had the id {one.id!r}, and has {found!r}"
            one.id = found
        return ""

    def remove(self, marks: Sequence[int]) -> str:
        self.messages = [one for one, mark in zip(self.messages, marks, strict=True) if not mark]
        return ""

    def killed(self) -> str:
        """A session that is killed anywhere; afterwards all are there, or none of the removed."""
        marks = self.marks()
        if any(one.id is None for one in self.messages):
            return ""  # nobody was told of it, and its twin may be gone by now
        before = self.messages
        at = self.chance.randrange(5, 70)
        how = self.chance.choice(["before", "after", "within"])
        in_a_process(lambda: 0 if self.in_session(marks) else 1, at, how)
        found = self.in_session([0])
        if isinstance(found, str):
            return found
        if len(found[0]) != len(before):
            self.remove(marks)
        return self.compare(*found)

    def lose_index(self) -> str:
        name = f"{self.state}/index"
        if os.path.exists(name):
            os.unlink(name)
        return ""

    def removed_by_others(self) -> str:
        """A mail program rewrites the spool without one message, and stays in the same file. One
        with a twin is left: of two that are the same nobody knows which one went."""
        contents = [one.content for one in self.messages]
        lone = [n for n, one in enumerate(contents) if contents.count(one) == 1]
        if not lone or self.style == "dovecot" or any(one.id is None for one in self.messages):
            return ""
        del self.messages[self.chance.choice(lone)]
        with open(self.path, "r+b") as file:
            file.truncate(0)
            for one in self.messages:
                file.write((b"\n" if self.leads else b"") + FROM + one.content)
                file.write(b"" if self.leads else b"\n")
        return ""

    def changed_in_place(self) -> str:
        """Somebody takes away a line end far from where a message starts; the size stays. Of one
        whose id depends on another message that is another message then."""
        heads = [one.content[:400] for one in self.messages]
        for one in self.messages:
            content = one.content
            there = content.find(b"\n", 650)
            if (
                not 0 < there < len(content) - 1
                or heads.count(content[:400]) > 1
                or one.is_by_history()
            ):
                continue
            one.content = content[:there] + b"_" + content[there + 1 :]
            with open(self.path, "r+b") as file:
                at = file.read().find(FROM + content)
                file.seek(at + len(FROM) + there)
                file.write(b"_")
            # A session that was told another size is ended; then it is known.
            self.in_session_that_may_end()
            break
        return ""

    def in_session_that_may_end(self) -> None:
        spool = opened_for(self.path, self.state, style=self.style, index=self.has_index)
        assert isinstance(spool, Spool), spool
        try:
            for n, size in enumerate(spool.octets):
                for _ in encode(spool.blocks(n), size):
                    pass
        except WrongSize:
            spool.distrust()
        spool.close()

    def step(self) -> str:
        """One thing that happens; returns what is wrong."""
        roll = self.chance.random()
        if roll < 0.4 or not self.messages:
            self.deliver()
            return ""
        if roll < 0.75:
            return self.session()
        others = [self.killed, self.lose_index, self.removed_by_others, self.changed_in_place]
        return self.chance.choice(others)()


def main() -> int:
    directory, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    indexes.WORTH = 0  # also the smallest has one
    sessions = 0
    for seed in range(first, first + count):
        place = f"{directory}/{seed}"
        os.mkdir(place)
        life = Life(place, seed)
        done = []
        for step in range(STEPS):
            try:
                wrong = life.step()
            except Exception:
                wrong = traceback.format_exc()
            if wrong:
                print(f"{seed}, {life.style}, index {life.has_index}, step {step}: {wrong}")
                return 1
            done.append(step)
        sessions += life.sessions
    print(sessions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
