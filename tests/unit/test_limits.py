"""How many connections are served at once, in all and from one source, and what is logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import config_of
from tpop3d.listener import limits
from tpop3d.listener.limits import MAX_SOURCES, SILENCE, Limits, source_of
from tpop3d.system.refusal import Refusal

ANN, BERT = "192.0.2.1", "192.0.2.2"


class Clock:
    def __init__(self):
        self.now = 5.0  # a machine that has just started

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits, "monotonic", clock)
    return clock


def limits_of(most, per_source="half"):
    return Limits(config_of(max_children=most, max_children_per_source=per_source))


def why(refused):
    return "" if refused is None else refused.reason


def admit(limits, *peers):
    """Serve whoever is not refused; returns who that was."""
    admitted = []
    for peer in peers:
        if not limits.refuse(peer):
            limits.add(peer)
            admitted.append(peer)
    return admitted


def test_not_more_than_max_children_are_served():
    limits = limits_of(3, 0)
    assert admit(limits, ANN, BERT, ANN, ANN, BERT) == [ANN, BERT, ANN]
    assert why(limits.refuse(BERT)) == "max-children (3)"
    limits.remove(ANN)
    assert why(limits.refuse(BERT)) == ""


def test_one_source_gets_no_more_than_its_share():
    limits = limits_of(10, 2)
    assert admit(limits, ANN, ANN, ANN, BERT) == [ANN, ANN, BERT]
    assert why(limits.refuse(ANN)) == "max-children-per-source (2)"
    assert why(limits.refuse(BERT)) == ""
    limits.remove(ANN)
    assert why(limits.refuse(ANN)) == ""


@pytest.mark.parametrize(("most", "half"), [(1, 1), (2, 1), (3, 2), (15, 8), (16, 8)])
def test_the_share_is_half_of_all_rounded_up(most, half):
    assert len(admit(limits_of(most), *[ANN] * (most + 1))) == half


def test_with_0_one_source_may_have_all():
    assert len(admit(limits_of(16, 0), *[ANN] * 20)) == 16


def test_the_limit_of_all_is_told_before_that_of_a_source():
    limits = limits_of(1, 1)
    limits.add(ANN)
    assert why(limits.refuse(ANN)) == "max-children (1)"


SOURCES = {
    # one source, and another one
    ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"): "2001:db8:1:3::1",
    ("2001:db8::", "2001:DB8:0:0:1::"): "2001:db8:0:1::",
    ("fe80::1%eth0", "fe80::2%eth1"): "fe81::1",
    ("::1", "::2"): "0:0:0:1::1",
    ("192.0.2.1", "192.0.2.1"): "192.0.2.2",
    ("::zz", "::zz"): "::1",
}


@pytest.mark.parametrize(("same", "other"), SOURCES.items(), ids=lambda one: str(one))
def test_of_ipv6_a_source_is_what_one_network_has(same, other):
    first, second = same
    limits = limits_of(10, 1)
    limits.add(first)
    assert limits.refuse(second)
    assert not limits.refuse(other)
    limits.remove(second)
    assert not limits.refuse(first)


@pytest.mark.parametrize("peer", ["unix", "unknown"])
def test_who_has_no_address_counts_only_for_all(peer):
    limits = limits_of(4, 1)
    assert source_of(peer) == ""
    assert admit(limits, *[peer] * 5) == [peer] * 4
    for _ in range(4):
        limits.remove(peer)
    assert admit(limits, ANN) == [ANN]


def test_another_configuration_counts_from_now_on():
    limits = limits_of(4, 4)
    admit(limits, ANN, ANN, ANN)
    limits.change(config_of(max_children=2))
    assert why(limits.refuse(BERT)) == "max-children (2)"
    limits.change(config_of(max_children=10, max_children_per_source=3))
    assert why(limits.refuse(ANN)) == "max-children-per-source (3)"
    assert why(limits.refuse(BERT)) == ""
    for _ in range(3):
        limits.remove(ANN)
    assert why(limits.refuse(ANN)) == ""


peers = st.sampled_from([ANN, BERT, "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "unix"])


@given(st.integers(1, 6), st.integers(0, 3), st.lists(st.tuples(st.booleans(), peers), max_size=60))
def test_whoever_comes_and_goes_the_limits_hold(most, per_source, events):
    limits = limits_of(most, per_source)
    served = []
    for comes, peer in events:
        if not comes:
            if peer in served:
                served.remove(peer)
                limits.remove(peer)
            continue
        of_source = sum(source_of(one) == source_of(peer) for one in served)
        full = len(served) >= most
        too_many = bool(per_source and source_of(peer) and of_source >= per_source)
        assert bool(limits.refuse(peer)) == (full or too_many)
        if not full and not too_many:
            limits.add(peer)
            served.append(peer)
    for peer in served:
        limits.remove(peer)
    assert admit(limits, ANN) == [ANN]


def test_a_refusal_is_logged_once_in_a_while(clock):
    limits = limits_of(1)
    line = 'connection refused rip=192.0.2.1 limit="max-children (1)"'
    assert SILENCE == 10
    assert limits.line(ANN, Refusal("max-children (1)")) == line
    for step in (0, 5, 4.9):
        clock.now += step
        assert limits.line(ANN, Refusal("max-children (1)")) == ""
    clock.now += 0.2
    assert limits.line(ANN, Refusal("max-children (1)")) == line
    clock.now += 9.9  # from the last line on, not from the first
    assert limits.line(ANN, Refusal("max-children (1)")) == ""


def test_each_source_has_its_own_line(clock):
    limits = limits_of(1)
    assert limits.line(ANN, Refusal("x")) != ""
    assert "rip=192.0.2.2 " in limits.line(BERT, Refusal("x"))
    assert "rip=2001:db8::1 " in limits.line("2001:db8::1", Refusal("x"))
    assert limits.line("2001:db8::2", Refusal("x")) == ""  # the same network
    assert "rip=unix " in limits.line("unix", Refusal("x"))
    assert limits.line("unix", Refusal("x")) == ""


def test_many_sources_take_no_memory(clock):
    limits = limits_of(1)
    for number in range(3 * MAX_SOURCES):
        assert limits.line(f"2001:db8:{number:x}::1", Refusal("x")) != ""
        assert len(limits._seldom._logged) <= MAX_SOURCES
    for number in range(3 * MAX_SOURCES):
        limits.add(f"2001:db8:{number:x}::1")
        limits.remove(f"2001:db8:{number:x}::1")
    assert not limits._sources
