"""The index: what it says is right, or it is not believed."""

import os
import shutil
import stat
from binascii import crc32
from pathlib import Path

import pytest

from spools import content_of, good, mbox, messages_of, separators_lead
from tpop3d.mailspool import idfile
from tpop3d.mailspool import index as indexes
from tpop3d.mailspool.idfile import Given
from tpop3d.mailspool.scan import DIGEST
from tpop3d.mailspool.uidl_styles import TPOP3D

NEW = mbox(b"Subject: new\n\nnew mail\n", b"Subject: newer\n\nmore\n")
TWIN = mbox(b"Subject: twin\n\n" + b"x" * 600 + b"\n")
OTHER_TWIN = TWIN[:-2] + b"y\n\n"
INTERNAL = mbox(b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\nx\n")
# What is in the middle is further from both ends than what an index compares there.
LINES = 900, 300, 600, 400, 900
OCTETS = mbox(*[b"Message-ID: <%d>\n\n%b" % (n, b"line\n" * many) for n, many in enumerate(LINES)])
DAY = 86_400 * 10**9


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A spool that nobody has touched for a day, and whose index is worth it."""
    monkeypatch.setattr(indexes, "WORTH", 0)
    return put(tmp_path / "spool", OCTETS)


def put(path, octets):
    path.write_bytes(octets)
    return path


def settle(path, monkeypatch):
    """From now on it is tomorrow."""
    now = indexes.time_ns()
    monkeypatch.setattr(indexes, "time_ns", lambda: now + DAY)


def visit(path, **how):
    """A session that sees everything: contents, sizes and ids; it is checked against the spool."""
    spool = good(path, **how)
    contents = [b"".join(spool.blocks(n)) for n in range(len(spool))]
    octets, ids = list(spool.octets), list(spool.unique_ids())
    listing = spool._listing
    spool.close()
    messages = messages_of(path.read_bytes())
    if listing.hides_first:
        messages = messages[1:]
    leads = separators_lead(path.read_bytes())
    assert contents == [content_of(one, leads) for one in messages]
    assert octets == [sized(one) for one in contents]
    assert len(set(ids)) == len(ids)
    return ids


def sized(content):
    ends = content.count(b"\n") - content.count(b"\r\n")
    return len(content) + ends + (0 if content.endswith(b"\n") or not content else 2)


def index_of(path):
    return Path(f"{path}.state", "index")


class Reads:
    """How many octets are read of a spool."""

    def __init__(self, path, monkeypatch):
        self.octets = 0
        self.scanned = 0
        self.inode = path.stat().st_ino
        for name in ("pread", "preadv"):
            monkeypatch.setattr(os, name, self.counting(name, getattr(os, name)))

    def counting(self, name, real):
        def call(fd, what, position):
            found = real(fd, what, position)
            if os.fstat(fd).st_ino == self.inode:
                count = found if name == "preadv" else len(found)
                self.octets += count
                self.scanned += count if name == "preadv" else 0
            return found

        return call


def reads_of_an_opening(path):
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(path, patch)
        good(path).close()
        return reads


def test_what_is_known_is_not_read_again(path, monkeypatch):
    settle(path, monkeypatch)
    ids = visit(path)
    reads = reads_of_an_opening(path)
    assert reads.scanned == 0
    assert reads.octets <= 2 * indexes.SAMPLE
    assert visit(path) == ids


def test_of_appended_mail_only_that_is_scanned(path, monkeypatch):
    settle(path, monkeypatch)
    ids = visit(path)
    with path.open("ab") as file:
        file.write(NEW)
    assert reads_of_an_opening(path).scanned == len(messages_of(OCTETS)[-1]) + len(NEW)
    assert visit(path)[: len(ids)] == ids
    assert reads_of_an_opening(path).scanned == 0


def test_an_expunge_updates_it(path):
    ids = visit(path)
    spool = good(path)
    assert spool.expunge(bytearray([0, 1, 0, 0, 1])) is None
    spool.close()
    assert reads_of_an_opening(path).scanned == 0
    assert visit(path) == [ids[0], ids[2], ids[3]]


def test_mail_that_came_before_an_expunge_is_scanned_after_it(path):
    ids = visit(path)
    spool = good(path)
    with path.open("ab") as file:
        file.write(NEW)
    assert spool.expunge(bytearray([0, 1, 0, 0, 1])) is None
    spool.close()
    last = len(messages_of(OCTETS)[3])
    assert reads_of_an_opening(path).scanned == last + len(NEW)
    assert visit(path)[:3] == [ids[0], ids[2], ids[3]]


@pytest.mark.parametrize("settled", [True, False])
def test_every_octet_and_every_length(path, monkeypatch, settled):
    if settled:
        settle(path, monkeypatch)
    put(path, mbox(b"one\n", b"two\n") + TWIN + OTHER_TWIN)
    ids = visit(path)
    whole = index_of(path).read_bytes()
    for at in range(len(whole)):
        for damaged in (
            whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
            whole[:at],
        ):
            index_of(path).write_bytes(damaged)
            assert visit(path) == ids, at
    index_of(path).write_bytes(whole + b"\0")
    assert visit(path) == ids


def in_place(change):
    def rewrite(path):
        octets = change(path.read_bytes())
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(octets)

    return rewrite


def in_a_body(octets):
    """Of the same size, and far from where messages start."""
    at = octets.index(b"line\nline\n", octets.index(b"<2>") + 1000)
    return octets[:at] + b"\n\nFrom a\nx" + octets[at + 10 :]


def line_ends(octets):
    at = octets.index(b"<3>") + 900
    return octets[:at] + octets[at:].replace(b"line\n", b"lines", 1)


def of_another_file(path):
    octets = path.read_bytes()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(octets.replace(b"<1>", b"<7>"))


STALE = {
    "nothing has changed": lambda path: None,
    "a message more within another": in_place(in_a_body),
    "a line end less": in_place(line_ends),
    "the first is gone": in_place(lambda octets: b"".join(messages_of(octets)[1:])),
    "the last is gone": in_place(lambda octets: b"".join(messages_of(octets)[:-1])),
    "another order": in_place(lambda octets: b"".join(messages_of(octets)[::-1])),
    "shrunk and grown": in_place(lambda octets: b"".join(messages_of(octets)[2:]) + octets),
    "others in the middle, and mail": in_place(lambda octets: octets.replace(b"<2>", b"<7>") + NEW),
    "grown beyond": in_place(lambda octets: mbox(b"z" * len(octets)) + NEW),
    "the last message grew": in_place(lambda octets: octets[:-1] + b"more\n\n" + NEW),
    "another Status": in_place(lambda octets: octets.replace(b"<2>\n", b"<2>\nStatus: RO\n")),
    "emptied": in_place(lambda octets: b""),
    "another file of the same look": of_another_file,
    "CRLF": in_place(lambda octets: octets.replace(b"\n", b"\r\n")),
    "an internal message": in_place(lambda octets: INTERNAL + octets),
    "zeros at the end": in_place(lambda octets: octets[:-5000] + b"\0" * 5000),
    "zeros behind": in_place(lambda octets: octets + b"\0" * 5000),
}


@pytest.mark.parametrize("name", STALE)
@pytest.mark.parametrize("settled", [True, False])
def test_a_stale_one_is_not_believed(path, monkeypatch, name, settled):
    if settled:
        settle(path, monkeypatch)
    visit(path)
    STALE[name](path)
    later = path.stat().st_mtime_ns + 10**7  # whatever the clock's granularity
    os.utime(path, ns=(later, later))
    visit(path)
    visit(path)


def change_unnoticed(path, monkeypatch, change):
    """Somebody who comes right after our look at it, which is right after a delivery, leaves the
    same size and the same times."""
    before = path.stat()
    in_place(change)(path)
    real = os.fstat

    def coarse(fd):
        status = real(fd)
        return before if status.st_ino == before.st_ino else status

    monkeypatch.setattr(os, "fstat", coarse)


def test_a_change_within_the_clocks_granularity(path, monkeypatch):
    """When the index is read, the times look settled."""
    visit(path)
    change_unnoticed(path, monkeypatch, lambda octets: octets.replace(b"<3>", b"<7>"))
    settle(path, monkeypatch)
    ids = visit(path)
    index_of(path).unlink()
    assert ids == visit(path)


ANOTHER = b"\n\nFrom another\n\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda octets: octets[:1000] + ANOTHER + octets[1000 + len(ANOTHER) :],
        lambda octets: octets[: -len(ANOTHER)] + ANOTHER,
    ],
    ids=["front", "end"],
)
def test_both_ends_are_compared_whatever_the_times_say(path, monkeypatch, change):
    settle(path, monkeypatch)
    visit(path)
    change_unnoticed(path, monkeypatch, change)
    visit(path)


def test_a_change_within_the_clocks_granularity_before_an_expunge(path, monkeypatch):
    spool = good(path)
    change_unnoticed(path, monkeypatch, lambda octets: octets.replace(b"<3>", b"<4>"))
    settle(path, monkeypatch)
    assert spool.expunge(bytearray([1, 0, 0, 0, 0])) is not None
    spool.close()
    assert path.read_bytes() == OCTETS.replace(b"<3>", b"<4>")
    visit(path)


def test_an_id_stays_when_the_twin_is_gone(tmp_path):
    """Also in a spool that is too small for an index otherwise."""
    path = put(tmp_path / "spool", TWIN + OTHER_TWIN + TWIN + NEW)
    ids = visit(path)
    assert b"-" in ids[1]
    spool = good(path)
    assert spool.expunge(bytearray([1, 0, 0, 0, 0])) is None
    spool.close()
    assert visit(path) == ids[1:]
    with path.open("ab") as file:
        file.write(NEW)
    assert visit(path)[:4] == ids[1:]
    os.utime(path, (1, 1))
    assert visit(path)[:4] == ids[1:]


def test_an_id_stays_when_a_session_that_asked_for_none_removes_the_twin(tmp_path):
    """As of clients that fetch and delete; other clients of the same user do ask."""
    path = put(tmp_path / "spool", TWIN + OTHER_TWIN + TWIN)
    ids = visit(path)
    shutil.rmtree(f"{path}.state")
    spool = good(path)
    assert spool.expunge(bytearray([1, 0, 0])) is None
    spool.close()
    assert visit(path) == ids[1:]


def test_a_mail_programs_own_message_stays_hidden(path):
    put(path, INTERNAL + TWIN + OTHER_TWIN + NEW)
    ids = visit(path)
    assert b"-" in ids[1]
    assert reads_of_an_opening(path).scanned == 0
    spool = good(path)
    assert len(spool) == 4
    assert spool.expunge(bytearray([1, 0, 0, 0])) is None
    spool.close()
    assert visit(path) == ids[1:]
    os.utime(path, (1, 1))
    assert visit(path) == ids[1:]
    with path.open("ab") as file:
        file.write(NEW)
    assert visit(path)[:3] == ids[1:]
    assert path.read_bytes().startswith(INTERNAL)


def test_another_style_of_ids_makes_others(path):
    visit(path)
    fd = os.open(path, os.O_RDONLY)
    listed = indexes.load(f"{path}.state", fd, path.stat(), Given("other"))
    os.close(fd)
    assert len(listed.listing) == 5
    assert list(listed.ids) == []


def test_times_before_1970_are_no_reason_to_fail(path):
    os.utime(path, ns=(-(10**9), -(10**9)))
    visit(path)
    assert not index_of(path).exists()


def test_small_spools_have_none(path, monkeypatch):
    monkeypatch.setattr(indexes, "WORTH", len(OCTETS) + 1)
    visit(path)
    assert not index_of(path).exists()
    monkeypatch.setattr(indexes, "WORTH", len(OCTETS))
    visit(path)
    assert index_of(path).exists()


def test_nobody_asks_for_ids(path):
    good(path).close()
    ids = visit(path)
    index_of(path).unlink()
    assert visit(path) == ids


def test_of_a_small_spool_no_ids_are_made_that_nobody_asks_for(path, monkeypatch):
    """Twins would be remembered."""
    put(path, TWIN + TWIN)
    remembered = index_of(path).with_name("ids")
    good(path, index=False).close()
    monkeypatch.setattr(indexes, "WORTH", 3 * len(TWIN))
    good(path).close()
    assert not remembered.exists()
    visit(path)
    assert remembered.exists()


def test_ids_are_written_some_at_a_time(path, monkeypatch):
    monkeypatch.setattr(indexes, "BLOCK", 2)
    put(path, NEW + TWIN * 6)
    ids = visit(path)
    given = idfile.load(f"{path}.state", TPOP3D)
    fd = os.open(path, os.O_RDONLY)
    listed = indexes.load(f"{path}.state", fd, path.stat(), given)
    os.close(fd)
    assert list(listed.ids) == ids
    assert len(listed.ids.rest) == 5


def test_it_is_the_users_alone(path):
    before = os.umask(0)
    try:
        visit(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(index_of(path).stat().st_mode) == 0o600


def mkdir(path):
    path.mkdir()
    path.joinpath("more").touch()


@pytest.mark.parametrize("make", [mkdir, os.mkfifo, lambda path: path.symlink_to("lock")])
@pytest.mark.parametrize("name", ["index", "index.new"])
def test_something_else_in_its_place_is_no_error(path, make, name):
    good(path).close()
    index_of(path).unlink()
    make(index_of(path).with_name(name))
    ids = visit(path)
    assert visit(path) == ids
    assert (index_of(path).with_name("lock")).read_bytes() == b""


@pytest.mark.parametrize("name", ["open", "write", "rename", "unlink"])
@pytest.mark.parametrize("code", [5, 28, 122, 13])
def test_what_cannot_be_written_is_no_error(path, monkeypatch, name, code):
    ids = visit(path)
    with path.open("ab") as file:
        file.write(NEW)
    real = getattr(os, name)

    def failing(what, *arguments, **named):
        at = what if isinstance(what, str) else os.readlink(f"/proc/self/fd/{what}")
        if "/index" in at:
            raise OSError(code, os.strerror(code))
        return real(what, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        assert visit(path)[:5] == ids
    assert visit(path)[:5] == ids


def test_a_write_cut_short_is_continued(path, monkeypatch):
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, octets: real(fd, octets[:100]))
        ids = visit(path)
    assert reads_of_an_opening(path).scanned == 0
    assert visit(path) == ids


def ids_without_writing(path):
    """The index that lies there is left to lie."""
    spool = good(path)
    found = list(spool.unique_ids())
    spool._is_news = False
    spool.close()
    return found


def with_fields(octets, length, **fields):
    """An index of so many octets with other fields in its header, and the CRC-32 of all that."""
    header = list(indexes._HEADER.unpack_from(octets))
    for place, value in fields.items():
        header[HEADER_FIELDS[place]] = value
    body = (indexes._HEADER.pack(*header) + octets[indexes._HEADER.size :])[:length]
    return body + indexes._TRAILER.pack(crc32(body))


HEADER_FIELDS = {"end": 4, "count": 10, "packed": 11, "others": 12}
TRAILER = indexes._TRAILER.size
EMPTY = {"count": 0, "packed": 0, "others": 0}
WRONG_ALONE = {
    "its trailer": lambda octets: octets[:-1] + bytes([octets[-1] ^ 1]),
    "its trailer's first octet": lambda octets: (
        octets[:-TRAILER] + bytes([octets[-TRAILER] ^ 1]) + octets[1 - TRAILER :]
    ),
    "no message": lambda octets: with_fields(octets, indexes._HEADER.size, **EMPTY),
    "a message less": lambda octets: with_fields(octets, len(octets) - TRAILER, count=4),
    "a message more": lambda octets: with_fields(octets, len(octets) - TRAILER, count=6),
    "an id less": lambda octets: with_fields(octets, len(octets) - TRAILER, packed=4),
    "a later end": lambda octets: with_fields(octets, len(octets) - TRAILER, end=len(OCTETS) + 1),
}


@pytest.mark.parametrize("what", WRONG_ALONE)
@pytest.mark.parametrize("settled", [True, False])
def test_one_that_is_wrong_in_one_thing_alone_is_not_believed(path, monkeypatch, what, settled):
    if settled:
        settle(path, monkeypatch)
    wanted = visit(path)
    whole = index_of(path).read_bytes()
    assert with_fields(whole, len(whole) - TRAILER) == whole  # which is believed:
    assert reads_of_an_opening(path).scanned == 0
    index_of(path).write_bytes(WRONG_ALONE[what](whole))
    assert reads_of_an_opening(path).scanned == len(OCTETS)
    assert visit(path) == wanted


def promising(octets, count, packed, others):
    """An index whose header says so; sparse, it is that long."""
    fields = list(indexes._HEADER.unpack_from(octets))
    fields[10:13] = count, packed, others
    header = indexes._HEADER.pack(*fields)
    ids = packed * DIGEST + others
    return header, len(header) + count * indexes._ROW + ids + indexes._TRAILER.size


@pytest.mark.parametrize(
    ("count", "packed", "others"),
    [
        (len(OCTETS), 0, 0),
        (5, 0, 1 << 31),
        (5, 6, 0),
        (5, 1 << 31, 0),
        (1 << 36, 5, 1 << 31),
        (5, 0, 5 * 71 + 1),
        (2**64 - 1, 2**64 - 1, 2**64 - 1),
    ],
)
def test_what_promises_more_than_the_spool_has_is_not_read(path, count, packed, others):
    wanted = visit(path)
    header, length = promising(index_of(path).read_bytes(), count, packed, others)
    index_of(path).write_bytes(header)
    os.truncate(index_of(path), min(length, 1 << 43))
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(index_of(path), patch)
        ids = ids_without_writing(path)
        assert reads.octets == len(header)
    assert ids == wanted
    assert visit(path) == wanted


@pytest.mark.parametrize("length", [0, 10, 200, 1 << 31, 1 << 43])
def test_what_is_longer_or_shorter_than_it_says_is_not_read(path, length):
    wanted = visit(path)
    os.truncate(index_of(path), length)
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(index_of(path), patch)
        assert ids_without_writing(path) == wanted
        assert reads.octets <= 200
    assert visit(path) == wanted


def test_mailspool_index_no(site, inetd):
    site.configure({"mailspool-index": "no"})
    site.add("anna", TWIN + OTHER_TWIN + mbox(b"x" * indexes.WORTH + b"\n"))
    inetd.login("anna")
    assert inetd.ask_long("UIDL")[1].count(b"\r\n") == 3
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert inetd.line() == b""
    assert not list(site.state.glob("*/index*"))


def test_mailspool_index_yes(site, inetd):
    site.add("anna", mbox(b"x" * indexes.WORTH + b"\n"))
    inetd.login("anna")
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert inetd.line() == b""
    assert len(list(site.state.glob("*/index"))) == 1
