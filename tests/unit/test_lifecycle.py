"""The table of a connection's states, and the monitor that goes by it: without a process."""

import itertools
import struct

import pytest

import authkit
from tpop3d.config.addresses import IMMEDIATE, STLS, Tls
from tpop3d.privsep import channel as channels
from tpop3d.privsep import lifecycle
from tpop3d.privsep.channel import Ending, Line, ReceivedLogin, TlsWanted
from tpop3d.privsep.lifecycle import (
    ALONE,
    ASKS_LOGIN,
    ASKS_TLS,
    AUTHORIZING,
    BEGINNINGS,
    DECIDING,
    DIED,
    DUE,
    ENDED,
    ENDED_EARLY,
    FAILED,
    GONE,
    GRANTED,
    HANDSHAKE,
    IN_POP3,
    LATE,
    LEAVING,
    LEFT,
    LET_IN,
    NO_PROCESS,
    NO_RELAY,
    ORPHANED,
    OVER,
    REFUSED,
    REFUSING,
    REPORTED,
    SECURED,
    SERVING,
    SESSION_OVER,
    TABLE,
    TLS_WANTED,
    UNSURE,
    after,
)  # fmt: skip
from tpop3d.privsep.monitor import Monitor
from tpop3d.session.wire import ERROR, QUIT, SIGNAL, TIMEOUT
from tpop3d.system.io import Violation
from tpop3d.tls.relay_channel import Secured

EVENTS = (ASKS_LOGIN, ASKS_TLS, REPORTED, LEFT, ENDED, GONE, LET_IN, REFUSED, NO_PROCESS, DIED,
          SESSION_OVER, GRANTED, NO_RELAY, SECURED, FAILED, DUE, LATE)  # fmt: skip
OF_GATEKEEPERS = (ASKS_LOGIN, ASKS_TLS, REPORTED, LEFT, ENDED)
HAVE_GATEKEEPER = (AUTHORIZING, DECIDING, REFUSING, UNSURE, ENDED_EARLY, TLS_WANTED, LEAVING)
# What may happen on the way from a state to the end, one event after the other.
PAIRS = list(itertools.product(TABLE, EVENTS))


def test_the_table_names_nothing_that_is_unknown():
    states = {new for row in TABLE.values() for new in row.values()}
    assert states | {*BEGINNINGS} == TABLE.keys()
    assert {event for row in TABLE.values() for event in row} == {*EVENTS}


def test_from_every_state_the_end_can_be_reached_and_nothing_follows_it():
    assert TABLE[OVER] == {}
    ending = {OVER}
    for _ in TABLE:
        ending |= {state for state, row in TABLE.items() if ending & {*row.values()}}
    assert ending == TABLE.keys()


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_pair_of_state_and_event(state, event):
    if event in TABLE[state]:
        assert after(state, event) == TABLE[state][event]
        return
    with pytest.raises(Violation) as raised:
        after(state, event)
    assert str(raised.value)


@pytest.mark.parametrize("state", TABLE)
def test_a_gatekeeper_can_die_wherever_there_is_one(state):
    assert (GONE in TABLE[state]) == (state in HAVE_GATEKEEPER)


@pytest.mark.parametrize("state", TABLE)
def test_who_has_no_gatekeeper_hears_nothing_from_one(state):
    if state not in HAVE_GATEKEEPER:
        assert not TABLE[state].keys() & {*OF_GATEKEEPERS}


@pytest.mark.parametrize("state", [DECIDING, ORPHANED, SERVING])
def test_a_login_process_may_end_as_it_likes(state):
    assert TABLE[state].keys() >= {SESSION_OVER, REFUSED, DIED}


@pytest.mark.parametrize("state", [REFUSING, UNSURE, ALONE])
def test_a_refusal_that_is_held_back_comes(state):
    assert DUE in TABLE[state]
    assert LATE in TABLE[state]  # it is not the gatekeeper that is slow


def test_nobody_is_served_unless_somebody_has_decided():
    before = {(state, event) for state, row in TABLE.items() for event in row
              if row[event] == SERVING}  # fmt: skip
    assert before == {(DECIDING, LET_IN), (DECIDING, REPORTED)}


def test_no_second_request_is_taken_while_one_is_answered():
    takers = {state for state, row in TABLE.items() if {ASKS_LOGIN, ASKS_TLS} & row.keys()}
    assert takers == {AUTHORIZING}


def test_no_reply_is_sent_into_a_handshake():
    assert not {LEAVING, HANDSHAKE, SERVING, OVER} & {*IN_POP3}


# The monitor

SETTINGS = {"auth-flatfile-enable": "yes", "auth-flatfile-passwd-file": "/nonexistent",
            "auth-flatfile-mail-user": "nobody", "auth-flatfile-mailbox": "/var/mail/$(user)",
            "plaintext-logins": "yes"}  # fmt: skip
WITH_STLS = Tls(STLS, (("certificate", "key"),))


@pytest.fixture
def monitor():
    return a_monitor()


def a_monitor(tls=WITH_STLS):
    return Monitor(authkit.config_of(SETTINGS), "192.0.2.1", ("192.0.2.2", 110), tls)


def request(name=b"anna", method=b"U"):
    secret = b"0" * channels.DIGEST_LENGTH
    header = channels._ATTEMPT.pack(b"A", method, len(name), len(secret), 0, 17, 19)
    message = header + name + secret
    return ReceivedLogin(bytearray(message), len(message))


MESSAGES = {
    ASKS_LOGIN: request,
    ASKS_TLS: lambda: TlsWanted(1, 2),
    REPORTED: lambda: Ending("", 1, 2),
    LEFT: lambda: Ending(channels.STLS, 1, 2),
    ENDED: lambda: Ending(TIMEOUT, 1, 2),
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(TABLE, MESSAGES)))
def test_a_message_is_the_event_that_it_tells_of(monitor, state, event):
    monitor.state = state
    if event in TABLE[state]:
        assert monitor.receive(MESSAGES[event]()) == TABLE[state][event] == monitor.state
        return
    with pytest.raises(Violation):
        monitor.receive(MESSAGES[event]())
    assert monitor.state == state


@pytest.mark.parametrize("state", TABLE)
def test_a_line_for_the_log_changes_nothing(monitor, state):
    monitor.state = state
    assert monitor.receive(Line(channels.LOG_ERR, "trouble")) == ""
    assert monitor.state == state


@pytest.mark.parametrize(("tls", "state"), [
    (WITH_STLS, AUTHORIZING), (Tls(IMMEDIATE, WITH_STLS.pairs), HANDSHAKE)
])  # fmt: skip
def test_where_a_connection_begins(tls, state):
    assert a_monitor(tls).state == state


def test_the_octets_of_every_message_count(monitor):
    monitor.receive(request())
    assert (monitor.summary.octets_in, monitor.summary.octets_out) == (17, 19)
    monitor.note(REFUSED)
    monitor.note(DUE)
    monitor.receive(TlsWanted(20, 30))
    monitor.note(GRANTED)
    monitor.receive(Ending(channels.STLS, 21, 31))
    monitor.secure(Secured("TLSv1.3", "a cipher"))
    assert monitor.state == AUTHORIZING
    monitor.receive(Ending(QUIT, 4, 5))
    assert (monitor.summary.octets_in, monitor.summary.octets_out) == (25, 36)


@pytest.mark.parametrize(("events", "how", "end"), [
    ([ASKS_LOGIN, LET_IN, SESSION_OVER], ERROR, ""),
    ([ASKS_LOGIN, REPORTED, SESSION_OVER], ERROR, ""),
    ([ASKS_LOGIN, SESSION_OVER, REPORTED], ERROR, ""),
    ([ASKS_LOGIN, SESSION_OVER, GONE], ERROR, ""),
    ([ASKS_LOGIN, GONE, SESSION_OVER], ERROR, ""),
    ([ASKS_LOGIN, GONE, DIED], ERROR, ERROR),
    ([ASKS_LOGIN, GONE, REFUSED, DUE], ERROR, ERROR),
    ([ASKS_LOGIN, REPORTED, REFUSED, DUE], ERROR, ERROR),
    ([ASKS_LOGIN, DIED, REPORTED], ERROR, ERROR),
    ([ASKS_LOGIN, REFUSED, DUE, GONE], ERROR, ERROR),
    ([ENDED], TIMEOUT, TIMEOUT),
    ([ASKS_TLS, GRANTED, ENDED], QUIT, QUIT),
    ([ASKS_TLS, GRANTED, LEFT, FAILED], SIGNAL, SIGNAL),
    ([ASKS_TLS, GRANTED, LEFT, FAILED], "", ""),
])  # fmt: skip
def test_an_end_is_logged_once(monitor, events, how, end):
    """By the session, where there was one; else with the word for it."""
    for event in events[:-1]:
        assert monitor.note(event) != OVER
    assert monitor.note(events[-1], how) == OVER
    assert monitor.end == end


def test_tls_where_it_was_not_offered_is_refused_for_each_of_its_reasons():
    with pytest.raises(Violation, match="not offered"):
        a_monitor(Tls("none")).receive(TlsWanted(0, 0))
    closed = a_monitor()
    for _ in range(3):
        closed.answer("no")
    with pytest.raises(Violation, match="not offered"):
        closed.receive(TlsWanted(0, 0))
    assert closed.state == AUTHORIZING


def test_a_request_that_cannot_come_now_changes_nothing(monitor):
    """Nobody decides about it, so nobody would end what it began."""
    with pytest.raises(Violation, match="APOP that was not offered"):
        monitor.receive(request(method=b"A"))
    assert monitor.state == AUTHORIZING


def test_a_message_of_the_wrong_size_is_none():
    with pytest.raises(Violation):
        ReceivedLogin(bytearray(struct.pack("!cc", b"A", b"U")), 2)


def test_what_is_wrong_is_said_in_words_for_people():
    assert {*lifecycle.WRONG} <= {*EVENTS}
