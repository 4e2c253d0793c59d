"""sssd(8) that has gone, or whose directory does not answer: no password is called wrong.

sssd and slapd are the real ones (see `sssdkit`).
"""

import signal

import pytest

import ldapkit
import sssdkit
from mailsite import poll
from samples import MESSAGES, spool_of
from test_hazard_directory import (
    IN,
    UNDECIDED,
    WRONG,
    attempt,
    counted,
    settings_for,
)

pytest.importorskip("pam", reason="python-pam is not installed in this Python")


@pytest.fixture(scope="module")
def directory():
    sssdkit.require()
    made = ldapkit.Directory()
    yield made
    made.close()


@pytest.fixture(scope="module")
def sssd(directory):
    made = sssdkit.Sssd(directory)
    yield made
    made.close()


@pytest.fixture
def door(request, site, directory, sssd):
    """A listener with Debian's service, or with another one."""
    site.add("anna", spool_of(MESSAGES))
    facility = {"auth-pam-facility": getattr(request, "param", "tpop3d")}
    with directory.door(site, settings_for(site, "pam") | facility) as door:
        yield door


def test_sssds_users_log_in(door):
    assert attempt(door) == IN
    assert attempt(door, password="wrong") == WRONG
    assert attempt(door, "nobody-knows") == WRONG


def test_sssd_that_has_gone(door, directory, sssd):
    """What it has left in memory for others to read (anna) is not the whole answer."""
    assert attempt(door) == IN
    sssd.stop()
    assert directory.knows("anna")
    assert attempt(door) == UNDECIDED
    assert attempt(door, "nobody-knows") == UNDECIDED
    assert "sss does not answer: " in door.logs.text()
    assert counted(door, directory) == []
    sssd.start()
    poll(lambda: attempt(door) == IN, "anna to be let in again", 60)


@pytest.mark.parametrize("door", [ldapkit.STRICT], indirect=True)
def test_a_directory_that_does_not_answer_sssd(door, directory):
    """It goes on with the users that it remembers, and says so of their passwords, to PAM alone."""
    assert attempt(door) == IN
    directory.send("slapd", signal.SIGSTOP)
    assert attempt(door) == UNDECIDED
    door.logs.wait_for("user=anna .*PAM: Authentication service cannot retrieve")
    assert counted(door, directory) == []
    directory.send("slapd", signal.SIGCONT)
    poll(lambda: attempt(door) == IN, "anna to be let in again", 60)
    assert counted(door, directory) == []
