"""How long a refusal takes says nothing about who has a mailbox."""

import random
import statistics
import time

import pytest

from databases import decide
from tpop3d.auth import passwords, registry
from tpop3d.auth.driver import NO

TRIES = 200  # of each kind
MEASUREMENTS = 3  # the machine may be busy with something else
ALIKE = 0.1  # of the shortest median
TIMED = 4  # kinds; the others differ from the first in what they ask for, and not in what is done

REFUSED = {
    "unknown user": ("zoe@example.org", b"secret"),
    "wrong password": ("ann@example.org", b"wrong"),
    "right password for another domain": ("ann@example.org", b"other"),
    "user without a password": ("nul@example.org", b"secret"),
    "user of another domain": ("bert@example.org", b"secret"),
    "unknown domain": ("ann@example.com", b"secret"),
}


SECRETS = (b"secret", b"other")


@pytest.fixture
def config(database, tmp_path):
    """A table of hashes as sites have them today, and all code loaded as in a listener."""
    salt = b"$6$0123456789abcdef"
    secret, other = ((b"{crypt}" + passwords.crypt(word, salt)).decode() for word in SECRETS)
    for domain in ("example.org", "example.net"):
        database.add_domain(domain, "/var/mail")
    database.add("ann", "example.org", secret)
    database.add("ann", "example.net", other)
    database.add("bert", "example.net", secret)
    database.add("nul", "example.org", None)
    config = database.config(tmp_path)
    registry.preload(config.drivers.values())
    return config


def medians(config, kinds):
    """Seconds that a refusal of each kind takes. Kinds take turns, in an order that changes, so
    that whatever else the machine does falls upon all."""
    taken = {kind: [] for kind in kinds}
    for _ in range(TRIES):
        for kind in random.sample(kinds, len(kinds)):
            name, password = REFUSED[kind]
            before = time.perf_counter()
            verdict = decide(config, name, password)
            taken[kind].append(time.perf_counter() - before)
            assert verdict.answer == NO
    return {kind: statistics.median(times) for kind, times in taken.items()}


@pytest.mark.slow
def test_every_refusal_takes_as_long(config):
    """The one place where a time is asserted: here it is what is asked for."""
    for _ in range(MEASUREMENTS):
        found = medians(config, list(REFUSED)[:TIMED])
        shortest, longest = min(found.values()), max(found.values())
        if longest <= shortest * (1 + ALIKE):
            break
    else:
        pytest.fail(f"medians in seconds: {found}")


def test_every_refusal_checks_one_password(config, monkeypatch):
    """What the medians depend on, without a clock."""
    spent = []
    monkeypatch.setitem(passwords.SCHEMES, "crypt", lambda *args: spent.append(args))
    monkeypatch.setattr(type(config.drivers["mysql"]), "own_process", False, raising=False)
    for kind, (name, password) in REFUSED.items():
        spent.clear()
        assert decide(config, name, password).answer == NO
        assert [(word, stored[:3]) for word, stored in spent] == [(password, b"$6$")], kind
