"""The file `ids` of a state directory remembers the unique-ids that the spool alone does not tell.

Nearly every id is made of its message alone, and can be made again at any time. Others cannot. If
two messages would have the same id, the second one gets another; when the first one is removed,
nothing in the spool tells why. The data of dovecot's ids are in the first message, and go with it.
A message must keep its id, so such ids are remembered, each with a digest of the whole message, by
which the message is found again however the spool changes. The index cannot do that: it is a cache,
may be switched off, and is only for one state of the spool.

An expunge first writes `ids.next`: what is to be remembered when it is done. That is on the disk
before the journal has its name. It becomes `ids` when the spool is as the journal says, and before
the journal is removed. So `ids` fits the spool after any crash. An `ids.next` without a journal is
left by an expunge that never began. journal.py has all steps.

    first line   FORM, the style, the validity and the last number of dovecot's ids (or 0 0), and 1
                 if separators lead in the spool (scan.py)
    other lines  a message: its digest, the id that it would have alone, the id that it has
    last line    the CRC-32 of all that

A file that is odd in any way is ignored.
"""

from __future__ import annotations

import os
from binascii import crc32

from tpop3d.mailspool import statefile, uidl_styles
from tpop3d.system.io import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

NAME = "ids"
NEXT = "ids.next"
FORM = b"tpop3d-ids-1"
CRC_LINE = 9  # octets
MAX_FILE = 1 << 25  # octets: 190,000 messages, all of them copies of one another


class Given:
    """The remembered ids of one style: the content of the file `ids`.

    `entries` maps an id to the id that its message would have alone, and the message's digest.
    `validity` and `last` are dovecot's, 0 if they are not known. `separators_lead`: do they, though
    the spool may not show it? `mark` tells this content from others; it is 0 if there is no file.
    """

    __slots__ = ("_alike", "entries", "last", "mark", "separators_lead", "style", "validity")

    def __init__(self, style: str) -> None:
        self.style = style
        self.validity = 0
        self.last = 0
        self.mark = 0
        self.separators_lead = False
        self.entries: dict[bytes, tuple[bytes, bytes]] = {}
        # By the id that a message would have alone, and its digest: ids, the last one first.
        self._alike: dict[bytes, dict[bytes, list[bytes]]] = {}

    def add(self, unique_id: bytes, own: bytes, digest: bytes) -> None:
        """Remember the id of a message that would have the id `own` alone, and has this digest."""
        pair = own, digest
        first = self.entries.get(own)
        self.entries[unique_id] = first if first == pair else pair  # copies share one

    def is_about(self, own: bytes) -> bool:
        """Is any message remembered that would have the id `own` alone?"""
        return own in self._alike

    def find(self, own: bytes, digest: bytes, taken: Container[bytes]) -> bytes | None:
        """The remembered id of a message, or None; ids in `taken` are passed over.

        Of messages that are the same octet for octet, the first call is about the first one. This
        forgets the id that it returns, so that the next call is about the next one.
        """
        ids = self._alike[own].get(digest, [])
        while ids:
            unique_id = ids.pop()
            if unique_id not in taken:
                return unique_id
        return None

    def of(self, ids: Iterable[bytes], is_all_needed: bool) -> Given:
        """The part to remember for the messages with these ids, in their order.

        An id that its message would have anyway is left out, unless `is_all_needed`.
        """
        left = Given(self.style)
        left.validity, left.last, left.mark = self.validity, self.last, self.mark
        left.separators_lead = self.separators_lead
        if self.entries:
            left.entries = {one: self.entries[one] for one in ids if one in self.entries}
        if not is_all_needed:
            sharing: dict[bytes, int] = {}
            for own, _ in left.entries.values():
                sharing[own] = sharing.get(own, 0) + 1
            pairs = left.entries.items()
            alone = [one for one, (own, _) in pairs if one == own and sharing[own] == 1]
            for one in alone:
                del left.entries[one]
        return left

    def octets(self) -> bytes:
        """The content of the file; b"" if there is nothing to remember. If it would be longer than
        `MAX_FILE`, so that nobody would read it, it has only the first line and the last."""
        if not (self.entries or self.validity or self.separators_lead):
            return b""
        words = FORM, self.style.encode(), self.validity, self.last, self.separators_lead
        first = b"%b %b %d %d %d\n" % words
        octets = bytearray(first)
        for one, (own, digest) in self.entries.items():
            octets += b"%b %b %b\n" % (digest, own, one)
            if len(octets) > MAX_FILE - CRC_LINE:
                octets[:] = first
                break
        octets += b"%08x\n" % crc32(octets)
        return bytes(octets)


def load(directory: str, style: str) -> Given:
    """Read what is remembered of ids of this style. Ids of another style are not taken, but for
    dovecot's validity.

    Raises OSError if the file cannot be read now: that does not mean that it is empty.
    """
    given = _loaded(directory, style)
    if style == uidl_styles.DOVECOT and not given.validity:
        given.validity, given.last = uidl_styles.old_validity(directory)
    return given


def _loaded(directory: str, style: str) -> Given:
    try:
        fd = statefile.open_regular(f"{directory}/{NAME}")
    except (FileNotFoundError, statefile.NotRegular):
        return Given(style)
    try:
        length = os.fstat(fd).st_size
        octets = statefile.read_part(fd, 0, length) if length <= MAX_FILE else b""
        return _parsed(octets, style)
    except ValueError:
        return Given(style)
    finally:
        os.close(fd)


def _parsed(octets: bytes, style: str) -> Given:
    first, *lines, crc, rest = octets.split(b"\n")  # ValueError: there are too few lines
    if rest or int(crc, 16) != crc32(octets[: -len(crc) - 1]):
        raise ValueError
    form, its_style, validity, last, leads = first.split(b" ")
    if form != FORM:
        raise ValueError
    given = Given(style)
    given.mark = mark_of(octets)
    given.validity, given.last, given.separators_lead = int(validity), int(last), leads == b"1"
    if its_style.decode() != style:
        return given
    for line in lines:
        digest, own, unique_id = line.split(b" ")
        given.add(unique_id, own, digest)
    for unique_id, (own, digest) in reversed(given.entries.items()):
        given._alike.setdefault(own, {}).setdefault(digest, []).append(unique_id)
    return given


def mark_of(octets: bytes) -> int:
    """The `mark` of a file with this content; 0 if it is empty."""
    return crc32(octets)


def save(directory: str, given: Given) -> None:
    """Write the file, unless it has this content already. If that fails, the old file stays."""
    octets = given.octets()
    mark = mark_of(octets)
    if mark == given.mark:
        return
    try:
        if octets:
            # If it were not durable, a power cut might take the old content, too.
            statefile.replace(f"{directory}/{NAME}", [octets], durable=True)
        else:
            forget(directory)
        given.mark = mark
    except OSError:
        pass


def prepare(directory: str, given: Given) -> None:
    """Write `ids.next` to the disk, for an expunge to put in force, and set its mark. Raises
    OSError."""
    octets = given.octets()
    fd = statefile.create(f"{directory}/{NEXT}")
    try:
        statefile.write_all(fd, octets)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(directory)  # or a power cut might leave the journal, and not this
    given.mark = mark_of(octets)


def settle(directory: str) -> None:
    """Put `ids.next` in force, if there is one: the spool is as it shall be. Raises OSError."""
    following = f"{directory}/{NEXT}"
    try:
        is_empty = not os.lstat(following).st_size
    except FileNotFoundError:
        return
    if is_empty:
        forget(directory)
        os.unlink(following)
    else:
        if os.path.isdir(f"{directory}/{NAME}"):  # the user has made it
            forget(directory)
        try:
            os.rename(following, f"{directory}/{NAME}")
        except IsADirectoryError:
            discard(directory)
    sync_directory(directory)


def discard(directory: str) -> None:
    """Remove `ids.next`: the expunge does not happen."""
    statefile.remove(f"{directory}/{NEXT}")


def forget(directory: str) -> None:
    """Remove `ids`: nothing is remembered."""
    statefile.remove(f"{directory}/{NAME}")
