"""Styles of unique-ids: what popa3d and dovecot have said of the spools in golden/, and odd ones.

test_moving_here.py asks those servers themselves.
"""

import os

import hypothesis
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from mailsite import CHECKOUT
from spools import good, mbox, messages_of, odd_spools
from test_uidl import plain_id
from tpop3d.mailspool import idfile
from tpop3d.mailspool.idfile import NAME, NEXT, Given
from tpop3d.mailspool.ids import Ids
from tpop3d.mailspool.scan import is_internal, scan
from tpop3d.mailspool.uidl import unique_ids
from tpop3d.mailspool.uidl_styles import (
    DOVECOT,
    HEADER,
    OLD_NAME,
    POPA3D,
    STYLES,
    TPOP3D,
    X_UIDL,
    old_validity,
    style_for,
)
from tpop3d.settings import DIRECTIVES

GOLDEN = CHECKOUT / "tests" / "golden"
NOTHING = b"d98c1dd404b2008f"  # popa3d's for all messages in which it finds nothing lasting
VALIDITY = 1500000000
BASE = b"X-IMAPbase: %d 0000000009\n" % VALIDITY


def golden(name):
    return (GOLDEN / name).read_bytes()


def ids_of(octets, style, known=(), given=None):
    given = given or Given(style)
    fd = os.memfd_create("spool")
    os.write(fd, octets)
    try:
        listing = scan(fd, 0, len(octets))
        if is_internal(fd, listing):
            listing.drop_first()
        known = Ids(rest=list(known))
        how = style_for(style, fd, listing, known, given)
        return list(unique_ids(fd, listing, known, how, given))
    finally:
        os.close(fd)


def check_popa3d(ids, theirs, own):
    """Ours are popa3d's where those can be told apart."""
    for n, (mine, its) in enumerate(zip(ids, theirs, strict=True)):
        if its == NOTHING:
            assert mine == own[n]
        elif its in theirs[:n]:
            assert mine.startswith(its + b"-")
        else:
            assert mine == its
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("name", "hidden"), [("mail", 0), ("c-client", 1)])
def test_popa3d_as_it_is(name, hidden):
    octets, theirs = golden(f"{name}.mbox"), golden(f"{name}.popa3d").split()
    assert NOTHING in theirs
    check_popa3d(ids_of(octets, POPA3D), theirs[hidden:], ids_of(octets, TPOP3D))


@pytest.mark.parametrize("name", ["mail", "c-client"])
def test_dovecot_as_it_is(name):
    octets = golden(f"{name}-dovecot.mbox")
    assert ids_of(octets, DOVECOT) == golden(f"{name}-dovecot.dovecot").split()


def test_each_style_can_be_configured():
    assert [DIRECTIVES["uidl-style"].parse(style) for style in STYLES] == list(STYLES)
    assert DIRECTIVES["uidl-style"].default == TPOP3D


def numbered(*headers):
    """The numbers that messages get, None where one gets an id of our own; also with what is known
    of the first ones."""
    octets = mbox(*(header + b"\ntext\n" for header in headers))
    ids = ids_of(octets, DOVECOT)
    for known in range(len(ids)):
        assert ids_of(octets, DOVECOT, known=ids[:known]) == ids
    suffix = b"%08x" % VALIDITY
    return [int(one[:8], 16) if one[8:] == suffix else None for one in ids]


X = b"X-UID: %d\n"


@pytest.mark.parametrize(
    ("headers", "numbers"),
    [
        ([BASE + X % 3, X % 5, X % 9], [3, 5, 9]),
        ([BASE.replace(b"base", b"") + X % 3, X % 5], [3, 5]),
        ([BASE + X % 3, X % 10], [3, None]),  # above the last one
        ([BASE + X % 5, X % 5], [5, None]),
        ([BASE + X % 5, X % 3], [5, None]),
        ([BASE + X % 5, X % 3 + X % 7], [5, 7]),
        ([BASE + X % 1, b"Subject: new\n", X % 5], [1, None, None]),
        ([BASE + b"X-UID: 1x\n", X % 5], [None, None]),
        ([BASE + b"x-uid:1  \t \r\n"], [1]),
        ([BASE + b"X-UID:\n"], [None]),
        ([BASE.replace(b"\n", b" Junk\n\tNonJunk\n") + X % 1], [1]),
        ([X % 3, BASE + X % 5], [None, None]),  # not in the first message
        ([b"X-IMAPbase: 0 0000000009\n" + X % 1], [None]),
        ([b"X-IMAPbase: %d\n" % VALIDITY + X % 1], [None]),
        ([b"X-IMAPbase: 99999999999 0000000009\n" + X % 1], [None]),
        ([BASE + b"\r\n" + X % 1], [None]),  # in the body
        ([BASE + b"Subject: long\n" + b" x\n" * 5000 + X % 1], [1]),
        ([BASE + b"Subject: long\n" + b" x\n" * (HEADER // 3) + X % 1], [None]),
    ],
)
def test_numbers_of_dovecot_are_believed_as_far_as_they_hold(headers, numbers):
    assert numbered(*headers) == numbers


@pytest.mark.parametrize(
    ("header", "unique_id"),
    [
        (b"X-UIDL: 0123456789abcdef0123456789abcdef\n", b"0123456789abcdef0123456789abcdef"),
        (b'Subject: s\nx-uidl:\t:hH!!8e9"!CbS"!TkO!! \r\n', b':hH!!8e9"!CbS"!TkO!!'),
        (b"X-UIDL: one\nX-UIDL: two\n", b"one"),
        (b"X-UIDL: not one\nX-UIDL: two\n", b"two"),
        (b"X-UIDL: " + b"~" * 70 + b"\n", b"~" * 70),
        (b"X-UIDL: " + b"~" * 71 + b"\n", None),
        (b"X-UIDL:\nSubject: x\n", None),
        (b"X-UIDL: na\xefve\n", None),
        (b"X-UIDL: \x7f\n", None),
        (b"X-UIDL-2: x\nSubject: X-UIDL: x\n", None),
        (b"Subject: x\n\nX-UIDL: x\n", None),
        (b"Subject: x\r\n\r\nX-UIDL: x\n", None),
    ],
)
def test_x_uidl_is_taken_where_it_can_be_one(header, unique_id):
    octets = mbox(header + b"\ntext\n")
    assert ids_of(octets, X_UIDL) == [unique_id or plain_id(octets)]


def test_what_two_messages_claim_is_the_firsts():
    claims = [b"X-UIDL: %b\n\n%d\n" % (claim * 70, n) for n, claim in enumerate([b"a", b"b"] * 2)]
    octets = mbox(*claims)
    assert ids_of(octets, X_UIDL) == [b"a" * 70, b"b" * 70, *ids_of(octets, TPOP3D)[2:]]
    short = ids_of(mbox(b"X-UIDL: same\n\n1\n", b"X-UIDL: same\n\n2\n"), X_UIDL)
    assert short[0] == b"same"
    assert short[1].startswith(b"same-")


fields = st.lists(
    st.sampled_from(
        [b"X-UIDL: a\n", b"X-UIDL: " + b"b" * 70 + b"\n", BASE, X % 1, X % 2, b"Date: x\n", b" y\n",
         b"Received: z\r\n", b"\r\n", b"\n", b"\n\nFrom a\n"]
    ),
    max_size=30,
).map(b"".join)  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@hypothesis.given(octets=odd_spools, more=fields)
@settings(max_examples=100, deadline=None)
def test_ids_are_unique_and_stay_when_mail_arrives(style, octets, more):
    octets += b"\n\nFrom b\n" + more
    ids = ids_of(octets, style)
    assert len(set(ids)) == len(ids)
    assert all(1 <= len(one) <= 70 and all(0x21 <= c <= 0x7E for c in one) for one in ids)
    for known in range(len(ids)):
        assert ids_of(octets, style, known=ids[:known]) == ids


PREVIOUS = 1400000000  # seconds since 1970, as all validities of dovecot's are


@pytest.mark.parametrize(
    ("remembered", "base", "validity", "last"),
    [
        ((0, 0), (VALIDITY, 9), VALIDITY, 9),
        ((PREVIOUS, 9), (0, 0), PREVIOUS, 9),
        ((PREVIOUS, 9), (VALIDITY, 20), PREVIOUS, 9),
        ((PREVIOUS, 20), (VALIDITY, 9), PREVIOUS, 20),
        ((VALIDITY, 9), (VALIDITY, 20), VALIDITY, 20),
        ((VALIDITY, 20), (VALIDITY, 9), VALIDITY, 20),
    ],
)
def test_the_validity_that_ids_were_given_by_goes_before_another(remembered, base, validity, last):
    """And with it its last number: a higher one is of mail that came from elsewhere."""
    given = Given(DOVECOT)
    given.validity, given.last = remembered
    octets = mbox(b"X-IMAPbase: %d %010d\n" % base + X % 3, X % 5, X % last, X % (last + 1))
    *ids, beyond = ids_of(octets, DOVECOT, given=given)
    assert ids == [b"%08x%08x" % (number, validity) for number in (3, 5, last)]
    assert len(beyond) == 32


@pytest.mark.parametrize("index", [True, False])
def test_mail_with_another_validity_that_becomes_the_first_changes_no_id(tmp_path, index):
    path = tmp_path / "ann"
    other = b"X-IMAPbase: 1600000000 0000000099\n"
    headers = BASE + X % 3, other + X % 5, X % 9
    path.write_bytes(mbox(*headers))
    ids = ids_of(path.read_bytes(), DOVECOT)
    assert ids == [b"%08x%08x" % (number, VALIDITY) for number in (3, 5, 9)]
    assert kept_by(path, 0, index=index) == ids[1:]
    with path.open("ab") as file:
        file.write(mbox(X % 50))
    *kept, new = kept_by(path, index=index)
    assert kept == ids[1:]
    assert len(new) == 32


def kept_by(path, *deleted, index=True):
    """Delete messages in a session with dovecot's ids; those of the next session."""
    spool = good(path, style=DOVECOT, index=index)
    assert spool.expunge([n in deleted for n in range(len(spool))]) is None
    spool.close()
    spool = good(path, style=DOVECOT, index=index)
    ids = list(spool.unique_ids())
    spool.close()
    return ids


@pytest.mark.parametrize("index", [True, False])
def test_dovecots_ids_outlive_the_first_message(tmp_path, index):
    path = tmp_path / "ann"
    path.write_bytes(golden("mail-dovecot.mbox"))
    theirs = golden("mail-dovecot.dovecot").split()
    assert kept_by(path, 0, 16, index=index) == theirs[1:16]
    assert kept_by(path, 14, index=index) == theirs[1:15]
    # The last number was that of a message that is gone: nobody else gets it.
    with path.open("ab") as file:
        file.write(mbox(b"X-UID: 16\n\nnew\n"))
    *ids, new = kept_by(path, 0, index=index)
    assert ids == theirs[2:15]
    assert len(new) == 32
    # With the last one that has a number all that goes.
    with path.open("ab") as file:
        file.write(mbox(b"X-UID: 1\n\nnewer\n"))
    assert kept_by(path, *range(13), index=index) == ids_of(path.read_bytes(), TPOP3D)
    assert not idfile.load(str(tmp_path / "ann.state"), DOVECOT).validity


def test_what_earlier_versions_kept_of_dovecots_ids_is_taken_over(tmp_path):
    path = tmp_path / "ann"
    messages = messages_of(golden("mail-dovecot.mbox"))
    theirs = golden("mail-dovecot.dovecot").split()
    path.write_bytes(b"".join(messages[1:]))
    good(path).close()
    (tmp_path / "ann.state" / OLD_NAME).write_bytes(
        b"%d %010d\n" % (int(theirs[1][8:], 16), int(theirs[15][:8], 16))
    )
    assert kept_by(path) == theirs[1:16] + kept_by(path)[15:]
    assert kept_by(path, 0) == theirs[2:16] + kept_by(path)[14:]
    assert not any(len(one) == 16 for one in kept_by(path, *range(14)))
    assert not list((tmp_path / "ann.state").glob("uid*"))


def test_the_validity_is_remembered_where_there_is_too_much_else(tmp_path, monkeypatch):
    path, place = tmp_path / "ann", tmp_path / "ann.state"
    octets = mbox(BASE + b"X-UID: 1\n\none\n", b"X-UID: 2\n\ntwo\n") + 9 * mbox(b"twin\n")
    path.write_bytes(octets)
    second = b"%08x%08x" % (2, VALIDITY)
    assert kept_by(path, 0)[0] == second
    size = (place / NAME).stat().st_size
    assert len(idfile.load(str(place), DOVECOT).entries) == 9
    (place / NAME).unlink()
    for limit, count in ((size, 9), (size - 1, 0)):
        path.write_bytes(octets)
        monkeypatch.setattr(idfile, "MAX_FILE", limit)
        assert kept_by(path, 0)[0] == second
        given = idfile.load(str(place), DOVECOT)
        assert (given.validity, len(given.entries)) == (VALIDITY, count)
        assert kept_by(path)[0] == second


def test_after_a_message_without_a_number_there_is_none():
    octets = mbox(BASE + b"\none\n", b"X-UID: 5\n\ntwo\n")
    assert len(ids_of(octets, DOVECOT, known=[b"0" * 32])[1]) == 32


@pytest.mark.parametrize("content", [b"", b"1500000000\n", b"x y\n", b"9" * 500])
def test_what_is_odd_in_the_state_directory_is_no_validity(tmp_path, content):
    (tmp_path / OLD_NAME).write_bytes(content)
    assert old_validity(str(tmp_path)) == (0, 0)


def sparse(path):
    path.touch()
    os.truncate(path, 1 << 43)


ODD = [os.mkfifo, os.mkdir, lambda path: path.symlink_to("lock"), sparse]


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_in_the_state_directory_is_no_validity(tmp_path, make):
    """Nor is it waited for."""
    make(tmp_path / OLD_NAME)
    assert old_validity(str(tmp_path)) == (0, 0)


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", [NAME, NEXT, OLD_NAME])
def test_whatever_has_the_name_of_what_is_written_mail_is_removed(tmp_path, make, name):
    """While the spool is locked nobody is waited for, and other files are not written to."""
    path = tmp_path / "ann"
    path.write_bytes(golden("mail-dovecot.mbox"))
    good(path).close()
    (tmp_path / "ann.state" / name).unlink(missing_ok=True)
    make(tmp_path / "ann.state" / name)
    ids = kept_by(path, 0)
    assert len(ids) == 16
    assert ids[:15] == golden("mail-dovecot.dovecot").split()[1:16]
    assert not (tmp_path / "ann.state" / "lock").stat().st_size
