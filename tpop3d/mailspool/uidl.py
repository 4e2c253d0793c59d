"""Unique-ids: what tells a client which messages it has seen (RFC 1939 section 7, UIDL).

The id of a message is the MD5 of its first 512 octets, `From ` line included, as the original
tpop3d's is, so that a site which moves here downloads nothing twice. Those of other servers are
in styles.py. An id that its message would not have alone is remembered, see idfile.py.
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
FEW = 16  # times that all ids are looked at for one, before it is remembered where each stands


def unique_ids(
    fd: int,
    listing: Listing,
    known: Ids | None = None,
    style: Style | None = None,
    given: Given | None = None,
) -> Ids:
    """The id of each message: the one that it was given; or that of the style, or 32 hex digits,
    and a suffix where another message has them.

    `known` are those that the first messages have already, and keep; others may be added to it.
    `given` is what is remembered of ids, and what there is to remember is added to it. The suffix
    is made of the whole content, so that it does not depend on what stands between; of messages
    that are the same octet for octet, the second and later ones are counted. Raises OSError.
    """
    ids = Ids() if known is None else known
    if given is None:
        given = Given(TPOP3D)
    has_digests = len(listing.digests) == DIGEST * len(listing)
    if has_digests and not (len(ids) or style or given.entries) and _are_unique(listing.digests):
        return Ids(listing.digests)
    maker = _Maker(fd, listing, ids, style, given)
    for index in range(len(ids), len(listing)):
        maker.take(index, maker.remembered(index) or maker.made(index))
    return ids


def _are_unique(digests: bytearray) -> bool:
    """Is each another already by its first half? A set of numbers takes less than one of ids."""
    return len(set(memoryview(digests).cast("Q")[::2])) == len(digests) // DIGEST


class UniqueIds:
    """The unique-ids of a maildrop, in a style, and what its state directory remembers of them."""

    def __init__(self, style: str, state: str) -> None:
        self.given = Given(style)
        self.known = Ids()  # of the first messages, perhaps not of all
        self._style = style
        self._state = state

    def load(self) -> None:
        """Learn what is remembered. Raises OSError."""
        self.given = idfile.load(self._state, self._style)

    def of(self, fd: int, listing: Listing) -> Ids:
        """The id of each message of a listing, of whose first ones they may be known. Raises
        OSError."""
        style = style_for(self._style, fd, listing, self.known, self.given)
        self.known = unique_ids(fd, listing, self.known, style, self.given)
        return self.known

    def prepare(self, deleted: Sequence[int], is_optional: bool) -> Given | None:
        """Before messages whose entry in `deleted` is 1 are removed: write down what is to be
        remembered afterwards; None: nothing. Raises OSError; where it is optional, it is done as
        well as it can be."""
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
        """They are removed; `following` is what `prepare` has returned."""
        self.known = self.known.without(deleted)
        self.given = following or self.given
        if self._style == DOVECOT:
            forget_old(self._state)

    def save(self, is_complete: bool) -> None:
        """Remember what there is to remember, as far as that is possible. `is_complete`: of all
        messages the ids are known; otherwise nothing is forgotten."""
        if is_complete:
            self.given = self._of(self.known)
        idfile.save(self._state, self.given)

    def _of(self, ids: Ids, is_first_gone: bool = False) -> Given:
        """What there is to remember of messages that have these ids."""
        is_dovecot = self._style == DOVECOT
        given = self.given.of(ids, is_all_needed=is_dovecot)
        if is_dovecot:
            note_validity(given, ids, is_first_gone)
        given.separators_lead &= len(ids) > 0
        return given


class _Maker:
    """The ids of the messages so far, and what is known of the one that is at hand."""

    def __init__(
        self, fd: int, listing: Listing, ids: Ids, style: Style | None, given: Given
    ) -> None:
        self._ids = ids
        self._fd = fd
        self._listing = listing
        self._style = style
        self._given = given
        self._indexes: dict[bytes, int] | None = None  # of ids; None: not yet
        self._looked = 0  # times that all ids were looked at
        self._counts: dict[bytes, int] = {}  # the last number that each suffix got
        self._header = b""
        # Of messages that have numbers of dovecot's, by the ids that they would have without.
        self._numbered: dict[bytes, list[int]] | None = None

    def take(self, index: int, unique_id: bytes) -> None:
        """The message has this id."""
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
        """The id that a message was given, if that is remembered."""
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
        """A new id, which no message has so far."""
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
        if len(own) > DIGITS:  # a suffix may make one too long that is not our own
            unique_id = self._hashed(index)
        whole = self._whole(index)
        if unique_id in self:
            unique_id = self._with_suffix(unique_id, whole)
        self._given.add(unique_id, own, whole)
        return unique_id

    def _add_numbered(self, own: bytes) -> None:
        """A message's number was not taken. One with a number that is the same octet for octet must
        not be taken for it."""
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
        # Counted on from the last one, so that a spool of nothing but copies is counted once.
        count = self._counts.get(suffixed, 1)
        while candidate in self:
            count += 1
            candidate = b"%b-%d" % (suffixed, count)
        self._counts[suffixed] = count
        return candidate

    def _hashed(self, index: int) -> bytes:
        """The id that the original tpop3d gives."""
        digests = self._listing.digests
        if len(digests) == DIGEST * len(self._listing):
            return digests[DIGEST * index : DIGEST * (index + 1)].hex().encode()
        return digest_of(self._fd, self._listing, index).hex().encode()

    def _whole(self, index: int) -> bytes:
        """The digest of a whole message, without its separator, and with a last line's end."""
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
