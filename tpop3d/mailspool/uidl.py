"""Unique-ids: a client knows by them which messages it has seen (RFC 1939 section 7, UIDL).

The id of a message is the MD5 of its first 512 octets, `From ` line included. The original tpop3d
makes the same ids, so that clients of a site that moves here download nothing twice. uidl_styles.py
has the ids of other servers. idfile.py remembers an id that its message would not have alone.
"""

from __future__ import annotations

import os

from tpop3d.mailspool import idfile
from tpop3d.mailspool.idfile import Given
from tpop3d.mailspool.ids import DIGITS, Ids
from tpop3d.mailspool.light import md5
from tpop3d.mailspool.scan import BLOCK, DIGEST, Listing, digest_of, line_end
from tpop3d.mailspool.uidl_styles import (
    DOVECOT,
    NUMBERED,
    TPOP3D,
    forget_old,
    header,
    note_validity,
    style_for,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpop3d.mailspool.uidl_styles import Style

SUFFIX_DIGITS = 8
FEW = 16  # searches through all ids; then a table of ids is built


def unique_ids(
    fd: int,
    listing: Listing,
    known: Ids | None = None,
    style: Style | None = None,
    given: Given | None = None,
) -> Ids:
    """The id of each message: the one that is remembered, or that of the style, or 32 hex digits;
    with a suffix if another message has it. Raises OSError.

    `known` are the ids of the first messages, which keep them; others may be added to it. `given`
    has the remembered ids, and gets those that must be remembered. The suffix is made of the whole
    message, so it does not depend on the messages between; messages that are the same octet for
    octet are numbered from the second one on.
    """
    ids = Ids() if known is None else known
    if given is None:
        given = Given(TPOP3D)
    has_digests = len(listing.digests) == DIGEST * len(listing)
    if has_digests and not (len(ids) or style or given.entries) and _are_unique(listing.digests):
        return Ids(listing.digests)
    maker = _Maker(fd, listing, ids, style, given)
    for index in range(len(ids), len(listing)):
        maker.assign(index, maker.remembered(index) or maker.made(index))
    return ids


def _are_unique(digests: bytearray) -> bool:
    """Do all digests differ in their first half? A set of numbers takes less memory than one of
    ids."""
    return len(set(memoryview(digests).cast("Q")[::2])) == len(digests) // DIGEST


class UniqueIds:
    """The unique-ids of a maildrop in a style, and the ids that its state directory remembers."""

    def __init__(self, style: str, state: str) -> None:
        self.given = Given(style)
        self.known = Ids()  # the ids of the first messages, perhaps not of all
        self._style = style
        self._state = state

    def load(self) -> None:
        """Read the remembered ids. Raises OSError."""
        self.given = idfile.load(self._state, self._style)

    def of(self, fd: int, listing: Listing) -> Ids:
        """Complete the ids of the messages of a listing; returns them. Raises OSError."""
        style = style_for(self._style, fd, listing, self.known, self.given)
        self.known = unique_ids(fd, listing, self.known, style, self.given)
        return self.known

    def prepare(self, deleted: Sequence[int], is_optional: bool) -> Given | None:
        """Write `ids.next` before the messages whose entry in `deleted` is 1 are removed.

        Returns its content, or None if it is not needed. Raises OSError if it cannot be written,
        unless it is optional: then there is none.
        """
        left = self.known.without(deleted)
        following = self._of(left, is_first_gone=bool(deleted[0]))
        if not (following.octets() or self.given.mark):
            return None
        try:
            idfile.prepare(self._state, following)
        except OSError:
            idfile.discard(self._state)
            if not is_optional:
                raise
            if not len(left):
                idfile.forget(self._state)
            return None
        return following

    def remove(self, deleted: Sequence[int], following: Given | None) -> None:
        """Forget the removed messages; `following` is the result of `prepare`."""
        self.known = self.known.without(deleted)
        self.given = following or self.given
        if self._style == DOVECOT:
            forget_old(self._state)

    def save(self, is_complete: bool) -> None:
        """Write the remembered ids, if possible. `is_complete`: are the ids of all messages known?
        If they are not, nothing is forgotten."""
        if is_complete:
            self.given = self._of(self.known)
        idfile.save(self._state, self.given)

    def _of(self, ids: Ids, is_first_gone: bool = False) -> Given:
        """The ids to remember if there are only the messages with these ids."""
        is_dovecot = self._style == DOVECOT
        given = self.given.of(ids, is_all_needed=is_dovecot)
        if is_dovecot:
            note_validity(given, ids, is_first_gone)
        given.separators_lead &= len(ids) > 0
        return given


class _Maker:
    """Makes the id of one message after the other."""

    def __init__(
        self, fd: int, listing: Listing, ids: Ids, style: Style | None, given: Given
    ) -> None:
        self._ids = ids
        self._fd = fd
        self._listing = listing
        self._style = style
        self._given = given
        self._indexes: dict[bytes, int] | None = None  # by id; None: not built yet
        self._looked = 0  # searches through all ids so far
        self._counts: dict[bytes, int] = {}  # the last number that each suffix has got
        self._header = b""
        # Indexes of messages with numbers of dovecot's, by the ids that they would have without.
        self._numbered: dict[bytes, list[int]] | None = None

    def assign(self, index: int, unique_id: bytes) -> None:
        """Give the message `index`, which is the next one, this id."""
        if self._indexes is not None:
            self._indexes[unique_id] = index
        self._ids.append(unique_id)
        if self._numbered is not None and len(unique_id) == NUMBERED:
            self._numbered.setdefault(self._hashed(index), []).append(index)

    def __contains__(self, unique_id: object) -> bool:
        return isinstance(unique_id, bytes) and self._index(unique_id) >= 0

    def _index(self, unique_id: bytes) -> int:
        """The index of the message that has this id, or -1."""
        if self._indexes is None:
            self._looked += 1
            if self._looked <= FEW:
                return self._ids.find(unique_id)
            self._indexes = {one: index for index, one in enumerate(self._ids)}
        return self._indexes.get(unique_id, -1)

    def remembered(self, index: int) -> bytes | None:
        """The remembered id of a message, or None."""
        style, given = self._style, self._given
        self._header = header(self._fd, self._listing, index) if style else b""
        if not given.entries:
            return None
        own = self._hashed(index)
        if style and not style.is_by_history:
            own = style(self._header) or own
        if not given.is_about(own):
            return None
        unique_id = given.find(own, self._whole(index), self)
        if unique_id and style and style.is_by_history:
            if len(unique_id) == NUMBERED:
                style.pass_number(unique_id)
            else:
                style.pass_by(self._header)
        return unique_id

    def made(self, index: int) -> bytes:
        """Make an id for a message that no other message has."""
        style = self._style
        own = style(self._header) if style else None
        is_refused = style is not None and style.is_by_history and style.has_refused
        if own is None:
            own = self._hashed(index)
        if is_refused:
            self._add_numbered(own)
        first = self._index(own)
        if first < 0:
            if is_refused:
                self._given.add(own, own, self._whole(index))
            return own
        if own not in self._given.entries:
            self._given.add(own, own, self._whole(first))
        unique_id = own
        if len(own) > DIGITS:  # a suffix might make an id of another server too long
            unique_id = self._hashed(index)
        whole = self._whole(index)
        if unique_id in self:
            unique_id = self._with_suffix(unique_id, whole)
        self._given.add(unique_id, own, whole)
        return unique_id

    def _add_numbered(self, own: bytes) -> None:
        """Remember the messages that have numbers and would have the id `own` without: a message
        whose number was refused may be the same, octet for octet, and must not be taken for one of
        them."""
        if self._numbered is None:
            self._numbered = {}
            for index, one in enumerate(self._ids):
                if len(one) == NUMBERED:
                    self._numbered.setdefault(self._hashed(index), []).append(index)
        for index in self._numbered.pop(own, ()):
            self._given.add(self._ids[index], own, self._whole(index))

    def _with_suffix(self, unique_id: bytes, whole: bytes) -> bytes:
        suffixed = unique_id + b"-" + whole[:SUFFIX_DIGITS]
        candidate = suffixed
        # The count goes on from the last one, so a spool of copies alone is counted once.
        count = self._counts.get(suffixed, 1)
        while candidate in self:
            count += 1
            candidate = b"%b-%d" % (suffixed, count)
        self._counts[suffixed] = count
        return candidate

    def _hashed(self, index: int) -> bytes:
        """The id that the original tpop3d gives a message."""
        digests = self._listing.digests
        if len(digests) == DIGEST * len(self._listing):
            return digests[DIGEST * index : DIGEST * (index + 1)].hex().encode()
        return digest_of(self._fd, self._listing, index).hex().encode()

    def _whole(self, index: int) -> bytes:
        """The digest of a whole message, without its separator, and with its last line ended."""
        digest = md5(usedforsecurity=False)
        position, end = self._listing.starts[index], self._listing.ends[index]
        newline, block = b"", b""
        while position < end:
            block = os.pread(self._fd, min(BLOCK, end - position), position)
            if not block:
                break
            newline = newline or line_end(block)
            digest.update(block)
            position += len(block)
        if not block.endswith(b"\n"):
            digest.update(newline)
        return digest.hexdigest().encode()
