"""A site moves here from popa3d or dovecot: no client downloads anything twice."""

import pytest

import doors
import otherservers
from otherservers import listing
from spools import mbox
from test_uidl_styles import check_popa3d, golden, ids_of
from tpop3d.mailspool.styles import DOVECOT, POPA3D, TPOP3D

SPOOLS = [("mail", 0), ("c-client", 1)]


def ours(site, *deleted):
    """The unique-ids in a session with our server, that deletes messages, too."""
    with doors.inetd(site) as wire:
        wire.login("ann")
        ids = listing(wire)
        for number in deleted:
            assert wire.ask(f"DELE {number}").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
    return ids


def dovecots(site, *deleted):
    """The same with dovecot."""
    with otherservers.dovecot(site) as wire:
        ids = listing(wire)
        for number in deleted:
            assert wire.ask(f"DELE {number}").startswith(b"+OK")
    return ids


def deliver(site, *contents):
    with site.spool("ann").open("ab") as spool:
        spool.write(mbox(*contents))


@pytest.mark.parametrize(("name", "hidden"), SPOOLS)
def test_from_popa3d(site, name, hidden):
    octets = golden(f"{name}.mbox")
    site.add("ann", octets)
    site.configure({"uidl-style": POPA3D})
    with otherservers.popa3d(site) as wire:
        theirs = listing(wire)
    assert theirs == golden(f"{name}.popa3d").split()
    check_popa3d(ours(site), theirs[hidden:], ids_of(octets, TPOP3D))
    with otherservers.popa3d(site) as wire:
        assert wire.ask(f"DELE {hidden + 1}").startswith(b"+OK")
    own = ids_of(octets, TPOP3D)[1:]
    check_popa3d(ours(site), theirs[hidden + 1 :], own)


@pytest.mark.parametrize(("name", "hidden"), SPOOLS)
@pytest.mark.parametrize("index", ["yes", "no"])
def test_from_dovecot(site, name, hidden, index):
    site.add("ann", golden(f"{name}.mbox"))
    site.configure({"uidl-style": DOVECOT, "mailspool-index": index})
    theirs = dovecots(site)
    assert len(theirs) == len(golden(f"{name}.popa3d").split()) - hidden
    assert ours(site) == theirs
    assert dovecots(site, 1, 3) == theirs
    left = [theirs[1], *theirs[3:]]
    assert dovecots(site) == ours(site) == left
    # Mail that dovecot has not seen, one with what it would not believe.
    deliver(site, b"Subject: new\n\ntext\n", b"X-UID: 1\nSubject: forged\n\ntext\n")
    *ids, new, forged = ours(site)
    assert ids == left
    assert len(new) == len(forged) == 32
    # Ours removes the first one, and with it what the others' ids are made of.
    assert ours(site, 1) == [*left, new, forged]
    assert ours(site) == [*left[1:], new, forged]
    deliver(site, b"Subject: newer\n\ntext\n")
    assert ours(site)[:-1] == [*left[1:], new, forged]


@pytest.mark.parametrize("name", ["mail", "c-client"])
def test_dovecot_reads_the_golden_spool_as_we_do(site, name):
    site.add("ann", golden(f"{name}-dovecot.mbox"))
    assert dovecots(site) == golden(f"{name}-dovecot.dovecot").split()
