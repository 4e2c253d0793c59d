"""Ids in little memory are what a list of them is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpop3d.mailspool import ids as packed
from tpop3d.mailspool.ids import Ids

digests = st.binary(min_size=16, max_size=16)
plain = digests.map(lambda digest: digest.hex().encode())
odd = st.one_of(
    plain.map(lambda one: one + b"-12345678-2"),
    plain.map(bytes.upper),
    plain.map(lambda one: one[:16]),
    plain.map(lambda one: one[:16] + b" " + one[17:]),
    st.text("!a0~", min_size=1, max_size=70).map(str.encode),
)
some = st.one_of(st.lists(plain), st.lists(st.one_of(plain, plain, odd)), st.lists(odd))


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "BLOCK", 48)
        yield


def check(found, ids):
    assert len(found) == len(ids)
    assert list(found) == ids
    assert [found[index] for index in range(len(ids))] == ids
    with pytest.raises(IndexError):
        found[len(ids)]


def made_of(ids):
    found = Ids()
    for one in ids:
        found.append(one)
    return found


@given(some)
def test_it_is_the_list(ids):
    check(made_of(ids), ids)


@given(st.lists(digests), st.lists(odd))
def test_of_digests(some_digests, others):
    found = Ids(b"".join(some_digests), others)
    check(found, [*(digest.hex().encode() for digest in some_digests), *others])


@given(some, plain, odd)
def test_where_one_stands(ids, one, other):
    found = made_of(ids)
    for sought in (*ids, one, other):
        assert found.find(sought) == (ids.index(sought) if sought in ids else -1)


def test_what_two_make_up_together_is_none():
    found = made_of([b"00" * 15 + b"ab", b"cd" * 16, b"00" * 15 + b"ab"])
    assert found.find(b"ab" + b"cd" * 15) == -1
    assert found.find(b"cd" * 16) == 1
    assert found.find(b"00" * 15 + b"ab") == 0


def test_the_first_place_that_is_whole_counts():
    found = made_of(
        [b"00" * 15 + b"01", b"00" * 15 + b"02", b"0000" + b"01" * 14, b"01" + b"00" * 15]
    )
    assert found.find(b"01" + b"00" * 15) == 3


@given(some, some, st.integers(0, 9))
def test_some_go_and_some_come(ids, more, count):
    found = made_of(ids)
    found.cut(count)
    for one in more:
        found.append(one)
    check(found, ids[:count] + more)


@given(some, st.data())
def test_without_some(ids, data):
    marks = data.draw(st.lists(st.sampled_from([0, 1]), min_size=len(ids), max_size=len(ids)))
    left = made_of(ids).without(bytearray(marks))
    check(left, [one for one, mark in zip(ids, marks, strict=True) if not mark])


def test_they_are_kept_in_little():
    ids = Ids(bytes(16 * 1000))
    ids.append(b"f" * 32)
    assert len(ids.packed) == 16 * 1001
    assert not ids.rest
