"""The file `ids` of a state directory: what unique-ids depend on that the spool does not tell.

Nearly every id is made of its message alone, and can be made again at any time. There are others.
Where two messages would have the same id, the second one gets another; when the first one goes,
nothing in the spool says any more why. What dovecot's ids are made of goes with its first message.
An id that was given must stay that message's for as long as it is there, so these are remembered,
each by a digest of the whole message: whatever else changes a spool, it is found again by that.
The index could not do that: it is a cache, may be switched off, and is only for a spool as it was.

Who removes messages writes down first what shall be remembered afterwards, as `ids.next`. It is on
the disk before the journal has its name, and becomes `ids` when the spool is as the journal says,
before the journal is removed. So `ids` fits the spool, whoever is killed. An `ids.next` without a
journal is of an expunge that never began.

    first line   FORM, the style; of dovecot's ids the validity and the last number (or 0 0); 1
                 where separators lead in the spool (see scan.py)
    each line    of one message: digest, the id that it would have alone, the id that it has
    last line    the CRC-32 of all that

A file that is odd in any way is as if it were not there.
"""

from __future__ import annotations

import os
from binascii import crc32

from tpop3d.mailspool import statefile, uidl_styles
from tpop3d.system.files import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

NAME = "ids"
NEXT = "ids.next"
FORM = b"tpop3d-ids-1"
CRC_LINE = 9  # octets
MAX_FILE = 1 << 25  # octets: 190,000 messages, all of them copies of one another


class Given:
    """What is remembered of ids, of one style.

    `entries` has for an id the one that its message would have alone, and the message's digest.
    `validity` and `last` are dovecot's, 0 where they are not known. `separators_lead`: in this
    spool, whatever it looks like. `mark` tells one file of this kind from another, 0 where there is
    none.
    """

    __slots__ = ("_alike", "entries", "last", "mark", "separators_lead", "style", "validity")

    def __init__(self, style: str) -> None:
        self.style = style
        self.validity = 0
        self.last = 0
        self.mark = 0
        self.separators_lead = False
        self.entries: dict[bytes, tuple[bytes, bytes]] = {}
        # For an id that a message would have alone: by digest, the ids of such messages, reversed.
        self._alike: dict[bytes, dict[bytes, list[bytes]]] = {}

    def add(self, unique_id: bytes, own: bytes, digest: bytes) -> None:
        """Remember the id of a message that would have the id `own` if it were alone."""
        pair = own, digest
        first = self.entries.get(own)
        self.entries[unique_id] = first if first == pair else pair  # copies share one

    def is_about(self, own: bytes) -> bool:
        """Is anything remembered of messages that would have this id alone?"""
        return own in self._alike

    def find(self, own: bytes, digest: bytes, taken: Container[bytes]) -> bytes | None:
        """The id that a message has been given, if it is remembered. Of messages that are the same
        octet for octet, the first one asked for is taken for the first one."""
        ids = self._alike[own].get(digest, [])
        while ids:
            unique_id = ids.pop()
            if unique_id not in taken:
                return unique_id
        return None

    def of(self, ids: Iterable[bytes], is_all_needed: bool) -> Given:
        """What of it there is to remember of the messages that have these ids, in their order. An
        id that a message would have anyway need not be, unless `is_all_needed`."""
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
        """The file's content; b"" where there is nothing to remember. Where nobody would read it,
        since it is longer than `MAX_FILE`, it has no more than the first line."""
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
    """What is remembered of ids of this style. Of another style only dovecot's validity is.

    Raises OSError where it cannot be read now: that is not the same as nothing.
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
    first, *lines, crc, rest = octets.split(b"\n")  # ValueError: there are not so many
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
    """The `mark` of a file of this content; of none, 0."""
    return crc32(octets)


def save(directory: str, given: Given) -> None:
    """Remember it now, as far as that is possible, in place of what has the mark that it has."""
    octets = given.octets()
    mark = mark_of(octets)
    if mark == given.mark:
        return
    try:
        if octets:
            # Otherwise a power cut might take what is remembered already, too.
            statefile.replace(f"{directory}/{NAME}", [octets], durable=True)
        else:
            forget(directory)
        given.mark = mark
    except OSError:
        pass


def prepare(directory: str, given: Given) -> None:
    """Have it on the disk, to be remembered when an expunge is done, and with its mark. Raises
    OSError."""
    octets = given.octets()
    fd = statefile.create(f"{directory}/{NEXT}")
    try:
        statefile.write_all(fd, octets)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(directory)  # or the journal might have its name, and this not
    given.mark = mark_of(octets)


def settle(directory: str) -> None:
    """The spool is as it shall be: remember what was prepared, if anything. Raises OSError."""
    following = f"{directory}/{NEXT}"
    try:
        is_empty = not os.lstat(following).st_size
    except FileNotFoundError:
        return
    if is_empty:
        forget(directory)
        os.unlink(following)
    else:
        if os.path.isdir(f"{directory}/{NAME}"):  # of the user's own making
            forget(directory)
        try:
            os.rename(following, f"{directory}/{NAME}")
        except IsADirectoryError:
            discard(directory)
    sync_directory(directory)


def discard(directory: str) -> None:
    """What was prepared is for nothing."""
    statefile.remove(f"{directory}/{NEXT}")


def forget(directory: str) -> None:
    """Remember nothing."""
    statefile.remove(f"{directory}/{NAME}")
