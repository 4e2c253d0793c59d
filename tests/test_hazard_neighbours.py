"""Real programs deliver while real clients fetch: no mail is lost or doubled, or waits for us."""

import os

import pytest

import doors
from exchange import exchange
from neighbours import USERS, all_deliverers, without_access_times

# Into a spool of its own one waits for nobody but the clients, and gives up after 1 to 2 seconds;
# in a shared one they wait for one another. tests/bench/neighbours has more messages.
SETTINGS = {"a spool for each": (120, False, 2), "a shared spool": (60, True, 60)}


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
        clients, numbers = exchange(site, door, messages, deliverers, shared)
        assert numbers == list(range(messages))
        assert clients.taken
        assert [deliverer.gave_up for deliverer in deliverers] == [0] * len(deliverers)
        assert not list(site.spools.glob("*.lock"))
        assert not list(site.state.glob("*/journal*"))
