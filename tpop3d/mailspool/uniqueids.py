"""Unique-ids: what tells a client which messages it has seen (RFC 1939 section 7, UIDL).

The id of a message is the MD5 of its first 512 octets, `From ` line included, as the original
tpop3d's is, so that a site which moves here downloads nothing twice. Those of other servers are
in styles.py.
"""

from __future__ import annotations

import os

from tpop3d.mailspool.md5 import md5
from tpop3d.mailspool.scan import BLOCK, DIGEST, HEAD, Listing
from tpop3d.mailspool.styles import header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from tpop3d.mailspool.styles import Style

DIGITS = 32
SUFFIX_DIGITS = 8


def unique_ids(
    fd: int, listing: Listing, known: Sequence[bytes] = (), style: Style | None = None
) -> list[bytes]:
    """The id of each message: that of the style or 32 hex digits, and a suffix where another
    message has them.

    `known` are those that the first messages have already, and keep. The suffix is made of the
    whole content, so that it does not depend on what stands between; of messages that are the same
    octet for octet, the second and later ones are counted.
    """
    if not known and style is None and len(listing.digests) == DIGEST * len(listing):
        digits = listing.digests.hex().encode()
        ids = [digits[first : first + DIGITS] for first in range(0, len(digits), DIGITS)]
        if len(set(ids)) == len(ids):
            return ids
    ids = list(known)
    taken = set(known)
    counts: dict[bytes, int] = {}
    for index in range(len(known), len(listing)):
        unique_id = style(header(fd, listing, index)) if style else None
        # A suffix may make one too long that is not our own.
        if unique_id is None or (len(unique_id) > DIGITS and unique_id in taken):
            start = listing.starts[index]
            head = os.pread(fd, min(HEAD, listing.next_start(index) - start), start)
            unique_id = md5(head, usedforsecurity=False).hexdigest().encode()
        if unique_id in taken:
            unique_id = _with_suffix(unique_id, _whole(fd, listing, index), taken, counts)
        taken.add(unique_id)
        ids.append(unique_id)
    return ids


def _with_suffix(
    unique_id: bytes, whole: str, taken: set[bytes], counts: dict[bytes, int]
) -> bytes:
    """`counts` has the last number that each suffix got, so that a spool of nothing but copies
    is counted once."""
    suffixed = unique_id + b"-" + whole[:SUFFIX_DIGITS].encode()
    candidate = suffixed
    count = counts.get(suffixed, 1)
    while candidate in taken:
        count += 1
        candidate = b"%b-%d" % (suffixed, count)
    counts[suffixed] = count
    return candidate


def _whole(fd: int, listing: Listing, index: int) -> str:
    """The digest of a whole message, without its separator."""
    digest = md5(usedforsecurity=False)
    position, end = listing.starts[index], listing.ends[index]
    while position < end:
        block = os.pread(fd, min(BLOCK, end - position), position)
        if not block:
            break
        digest.update(block)
        position += len(block)
    return digest.hexdigest()
