"""Holds unique-ids in little memory. Nearly all are 32 hex digits, and are kept as 16 octets each:
a million take 16 MB, and would take 90 MB in a list."""

from __future__ import annotations

from binascii import unhexlify

from tpop3d.mailspool.scan import DIGEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIGITS = 2 * DIGEST
HEX = b"0123456789abcdef"
BLOCK = 1 << 16  # octets that are turned into ids at a time


class Ids:
    """The ids of the first messages of a maildrop, in their order.

    `packed` has the ids of 32 hex digits in front of the first other one, as 16 octets each. `rest`
    is a list of all that follow.
    """

    __slots__ = ("packed", "rest")

    def __init__(self, packed: bytes | bytearray = b"", rest: list[bytes] | None = None) -> None:
        self.packed = bytearray(packed)
        self.rest = rest or []

    def append(self, unique_id: bytes) -> None:
        """Add the id of the next message."""
        if not self.rest and _is_plain(unique_id):
            self.packed += unhexlify(unique_id)
        else:
            self.rest.append(unique_id)

    def cut(self, count: int) -> None:
        """Forget all but the first `count`."""
        del self.rest[max(0, count - self._count) :]
        del self.packed[DIGEST * count :]

    def without(self, deleted: Sequence[int]) -> Ids:
        """The ids of the messages whose entry in `deleted` is 0."""
        count, packed = self._count, self.packed
        left = Ids()
        first = 0  # the first message of a run of messages that stay
        for index in range(count):
            if deleted[index]:
                left.packed += packed[DIGEST * first : DIGEST * index]
                first = index + 1
        left.packed += packed[DIGEST * first :]
        marks = deleted[count:]
        left.rest = [one for one, mark in zip(self.rest, marks, strict=True) if not mark]
        return left

    def find(self, unique_id: bytes) -> int:
        """The index of the message that has this id, or -1. This searches all ids."""
        if _is_plain(unique_id):
            digest = unhexlify(unique_id)
            at = self.packed.find(digest)
            while at > 0 and at % DIGEST:  # it is the end of one id and the start of the next
                at = self.packed.find(digest, at + 1)
            if at >= 0:
                return at // DIGEST
        return self._count + self.rest.index(unique_id) if unique_id in self.rest else -1

    @property
    def _count(self) -> int:
        """The number of packed ids."""
        return len(self.packed) // DIGEST

    def __len__(self) -> int:
        return self._count + len(self.rest)

    def __getitem__(self, index: int) -> bytes:
        """The id of a message; `index` is not negative."""
        if index >= self._count:
            return self.rest[index - self._count]
        return self.packed[DIGEST * index : DIGEST * (index + 1)].hex().encode()

    def __iter__(self) -> Iterator[bytes]:
        for first in range(0, len(self.packed), BLOCK):
            digits = self.packed[first : first + BLOCK].hex("\n", DIGEST)
            yield from digits.encode().split(b"\n")
        yield from self.rest


def _is_plain(unique_id: bytes) -> bool:
    return len(unique_id) == DIGITS and not unique_id.translate(None, HEX)
