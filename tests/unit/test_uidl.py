"""Unique-ids: the original's where they are unique, with a suffix where they are not."""

import hashlib
import os

import pytest
from hypothesis import given, settings

from spools import mbox, messages_of, odd_spools
from tpop3d.mailspool import uidl
from tpop3d.mailspool.ids import Ids
from tpop3d.mailspool.scan import scan
from tpop3d.mailspool.uidl import unique_ids


def ids_of(octets, known=()):
    fd = os.memfd_create("spool")
    os.write(fd, octets)
    try:
        return list(unique_ids(fd, scan(fd, 0, len(octets)), Ids(rest=list(known))))
    finally:
        os.close(fd)


def plain_id(message):
    """The original's: the MD5 of the first 512 octets, up to the next From_ line at most."""
    return hashlib.md5(message[:512]).hexdigest().encode()


def test_an_id_is_the_md5_of_the_first_512_octets():
    octets = mbox(b"Subject: short\n\ntext\n", b"Subject: long\n\n" + b"x" * 2000 + b"\n")
    assert ids_of(octets) == [plain_id(message) for message in messages_of(octets)]


@given(octets=odd_spools)
@settings(max_examples=200, deadline=None)
def test_ids_are_unique_and_made_of_what_they_may_be(octets):
    ids = ids_of(octets)
    assert len(set(ids)) == len(ids) == len(messages_of(octets))
    for unique_id in ids:
        assert 1 <= len(unique_id) <= 70
        assert all(0x21 <= c <= 0x7E for c in unique_id)


LONG = b"From twin@example.org Sun Nov 22 08:00:00 2026\nSubject: twin\n\n" + b"x" * 600 + b"\n"


def twin(tail):
    return LONG + tail + b"\n\n"


def test_the_first_of_a_collision_keeps_the_plain_id():
    first, second, third = ids_of(twin(b"one") + twin(b"two") + twin(b"three"))
    assert first == plain_id(LONG)
    assert second.startswith(first + b"-")
    assert third.startswith(first + b"-")


def test_a_suffix_comes_from_the_content_and_not_from_the_position():
    _, two, three = ids_of(twin(b"one") + twin(b"two") + twin(b"three"))
    assert ids_of(twin(b"one") + twin(b"three"))[1] == three
    assert ids_of(twin(b"one") + twin(b"three") + twin(b"two"))[1:] == [three, two]


def test_only_identical_messages_are_counted():
    ids = ids_of(twin(b"same") * 4)
    assert ids[1] + b"-2" == ids[2]
    assert ids[1] + b"-3" == ids[3]
    # The separator of the last message may come later; the id does not wait for it.
    assert ids_of((twin(b"same") * 4)[:-1]) == ids


def test_mail_that_arrives_changes_no_id():
    octets = twin(b"one") + twin(b"two") + mbox(b"Subject: short\n\ntext\n")
    assert ids_of(octets + twin(b"new"))[:3] == ids_of(octets)


@pytest.mark.parametrize("few", [0, 1, 3, 100])
def test_ids_are_the_same_however_they_are_looked_for(monkeypatch, few):
    """All known ids are looked at a few times at most."""
    octets = twin(b"one") * 20 + twin(b"two") + twin(b"one") + LONG.replace(b"x", b"y") + b"\n"
    wanted = ids_of(octets)
    looks = []
    real = Ids.find

    def find(ids, unique_id):
        looks.append(unique_id)
        return real(ids, unique_id)

    monkeypatch.setattr(uidl, "FEW", few)
    monkeypatch.setattr(Ids, "find", find)
    for count in range(len(wanted)):
        looks.clear()
        assert ids_of(octets, wanted[:count]) == wanted
        assert len(looks) <= few
        if count == len(wanted) - 1 and few:
            assert len(looks) == 1
