"""Real programs deliver while real clients fetch: no mail is lost or doubled, or waits for us."""

import os
import re

import pytest

import doors
from exchange import all_deliverers, exchange, spools_for
from flocking import Dma, Qmail
from neighbours import USERS, without_access_times

# Into a spool of its own one waits for nobody but the clients, and gives up after 1 to 2 seconds;
# in a shared one they wait for one another. tests/bench/neighbours has more messages.
SETTINGS = {"a spool for each": (180, False, 2), "a shared spool": (90, True, 60)}


def odd_lines(door):
    """What the log has besides logins, sessions, and who came while another one was there."""
    usual = re.compile(r" (login|session) rip=|another POP3 session has the maildrop|listening on")
    return [line for line in door.logs.lines() if not usual.search(line)]


@pytest.mark.parametrize(("messages", "shared", "patience"), SETTINGS.values(), ids=SETTINGS)
def test_every_number_arrives_once(site, messages, shared, patience):
    for user in USERS:
        site.add(user)
        os.utime(site.spool(user), (0, 0))
    with (
        without_access_times(site.spools),
        all_deliverers(site, patience) as deliverers,
        doors.standalone(site) as door,
    ):
        spools = spools_for(deliverers, shared)
        clients, numbers = exchange(site, door, messages, deliverers, spools)
        assert numbers == list(range(messages))
        assert clients.taken
        assert [deliverer.gave_up for deliverer in deliverers] == [0] * len(deliverers)
        # What dovecot-lda rewrites has changed, to sessions. Of others nothing is odd.
        odd = odd_lines(door)
        assert [line for line in odd if "changed" not in line and "not updated" not in line] == []
        assert [line for line in odd if "user=dora" in line or "user=emil" in line] == []
        assert not list(site.spools.glob("*.lock"))
        assert not list(site.state.glob("*/journal*"))


@pytest.mark.parametrize("kind", [Dma, Qmail])
def test_who_locks_with_flock_alone_is_waited_for(site, kind):
    """Two deliver at the same time into each of two spools, and eight clients take."""
    users, messages = USERS[1:3], 120
    for user in users:
        site.add(user)
    deliverers = [kind(site, 60)] * 4
    with doors.standalone(site) as door:
        clients, numbers = exchange(site, door, messages, deliverers, users * 2)
        assert numbers == list(range(messages))
        assert clients.taken
        assert clients.broken_off == 0
        assert odd_lines(door) == []
