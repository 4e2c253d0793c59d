"""With a library for it, gatekeepers have a filter of system calls of their own in the unit's."""

import pytest

from test_systemd import STYLES
from test_systemd_manager import SPOOL, logged_in, service_of, status, user_of


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("style", STYLES)
def test_a_filter_within_the_units_own(box, style):
    box.add("ann", SPOOL)
    box.systemctl("start", style)
    client = box.wire()
    assert client.line().startswith(b"+OK")
    gatekeeper = int(box.do("id", "-u", "tpop3d"))
    filters = {}
    for pid in box.pids(service_of(box, style)):
        filters.setdefault(user_of(pid), set()).add(int(status(pid)["Seccomp_filters"]))
    assert set(filters) == {0, gatekeeper}
    assert min(filters[gatekeeper]) > max(filters[0]) > 0
    # What is left is enough for a login, good or not, and for the session after it.
    assert client.ask("USER ann").startswith(b"+OK")
    assert client.ask("PASS wrong").startswith(b"-ERR [AUTH]")
    assert client.ask("QUIT").startswith(b"+OK")
    client = logged_in(box)
    assert client.ask_long("RETR 1")[0].startswith(b"+OK")
    assert client.ask("QUIT").startswith(b"+OK")
    box.wait_for_journal("session rip=127.0.0.1 user=ann ")
    assert "was ended by signal" not in box.journal()
