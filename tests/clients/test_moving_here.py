"""A site moves here from popa3d, dovecot, the C tpop3d or qpopper: the ids of its messages stay.

popa3d and dovecot are asked, the real ones. The C tpop3d's and qpopper's programs are not to be
had: what is known of the ids of the one is in golden/*.tpop3d (csplit, head -c 512, md5sum), and
the other has written its own into the messages. All are asked of the whole server, after a login.
"""

import pytest

import doors
import otherservers
from otherservers import listing
from samples import MESSAGES, spool_of
from spools import mbox, separators_lead
from test_uidl_styles import check_popa3d, golden, ids_of
from tpop3d.mailspool.uidl_styles import DOVECOT, POPA3D, TPOP3D, X_UIDL

SPOOLS = [("mail", 0), ("c-client", 1)]


def numbered(content, count):
    return [content % n for n in range(count)]


# Spools in which all servers see the same messages.
SHAPES = {
    "empty": b"",
    "one message": mbox(MESSAGES[0]),
    "samples": spool_of(MESSAGES),
    "no newline at its end": mbox(b"Date: 1\n\nx\n", b"Date: 2\n\nx\n")[:-2],
    "headers alone": mbox(b"Date: 1\n", b"Date: 2\n", b"Message-ID: <3>\n"),
    "folded fields": mbox(
        *numbered(
            b"Subject: x\nMESSAGE-ID:\n <%d@x>\nreceived: a\n\tb; c\nReceived: d\n e\nDate: f\n"
            b"Delivered-To:g\n\nbody\n",
            5,
        )
    ),
    "other programs' notes": mbox(
        *numbered(
            b"Status: RO\nX-Status: A\nX-UID: 7\nX-Keywords: \nContent-Length: 9\nDate: %d\n\n1\n",
            5,
        )
    ),
    "qpopper's ids": mbox(*numbered(b"X-UIDL: %032x\nStatus: U\nDate: 1\nMessage-ID: x\n\n1\n", 3)),
    "long headers": mbox(
        *numbered(b"Date: %d\nX-Long: " + b"x\n y" * 9000 + b"\nMessage-ID: <x>\n\n1\n", 3)
    ),
    "octets that are no text": mbox(b"Message-ID: <\xe4@x>\nDate: \xff\n\nx\n", b"Date: \0\n\nx\n"),
    "the same message again": mbox(
        *[MESSAGES[0]] * 3, MESSAGES[0] + b"another body\n", MESSAGES[1]
    ),
    "many messages": b"".join(mbox(one) for one in numbered(b"Message-ID: <%d@x>\n\n1\n", 300)),
}


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
    """Append messages, behind an empty line, as programs do that deliver."""
    before = site.spool("ann").read_bytes()[-2:]
    with site.spool("ann").open("ab") as spool:
        spool.write(b"" if before == b"\n\n" else b"\n" if before.endswith(b"\n") else b"\n\n")
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


@pytest.mark.parametrize("shape", SHAPES)
def test_from_popa3d_with_any_spool(site, shape):
    octets = SHAPES[shape]
    site.add("ann", octets)
    site.configure({"uidl-style": POPA3D})
    with otherservers.popa3d(site) as wire:
        theirs = listing(wire)
    check_popa3d(ours(site), theirs, ids_of(octets, TPOP3D))


@pytest.mark.parametrize("index", ["yes", "no"])
def test_ids_of_popa3d_stay_when_messages_go_and_come(site, index):
    """And its own are still the same, if it is asked again."""
    site.add("ann", golden("mail.mbox"))
    site.configure({"uidl-style": POPA3D, "mailspool-index": index})
    first = ours(site, 2, 3)
    left = [first[0], *first[3:]]
    assert ours(site) == left
    deliver(site, b"Message-ID: <new@x>\nDate: now\n\ntext\n", b"Subject: nothing lasting\n\nx\n")
    *ids, new, nothing = ours(site)
    # The last one's header has an end now; popa3d sees that as well.
    assert ids[:-1] == left[:-1]
    with otherservers.popa3d(site) as wire:
        theirs = listing(wire)
    assert theirs[-2] == new
    assert len(nothing) == 32
    assert all(mine == its or len(mine) == 32 or mine.startswith(its + b"-")
               for mine, its in zip(ours(site), theirs, strict=True))  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_from_dovecot_with_any_spool(site, shape):
    site.add("ann", SHAPES[shape])
    site.configure({"uidl-style": DOVECOT})
    theirs = dovecots(site)
    assert len(theirs) == SHAPES[shape].count(b"From sender@") + SHAPES[shape].count(b"From ann@")
    assert ours(site) == theirs


@pytest.mark.parametrize(("name", "hidden"), SPOOLS)
@pytest.mark.parametrize("index", ["yes", "no"])
def test_from_the_c_program(site, name, hidden, index):
    theirs = golden(f"{name}.tpop3d").split()[hidden:]
    site.add("ann", golden(f"{name}.mbox"))
    site.configure({"mailspool-index": index})
    first = ours(site)
    octets = golden(f"{name}.mbox")
    if separators_lead(octets) or not octets.endswith(b"\n\n"):
        # It made an id of the last one without the empty line that is missing. Here that one's is
        # made as if it were there, and stays when it comes.
        assert first[-1] != theirs.pop()
        theirs.append(first[-1])
    assert [one for one in first if one in theirs] == list(dict.fromkeys(theirs))
    # Where it had one id for two messages, only the first can have that.
    assert all(mine == its or (its in theirs[:n] and mine.startswith(its + b"-"))
               for n, (mine, its) in enumerate(zip(first, theirs, strict=True)))  # fmt: skip
    assert ours(site, 2, 3) == first
    deliver(site, b"Subject: new\n\ntext\n")
    left = [first[0], *first[3:]]
    assert ours(site)[: len(left)] == left
    assert len(set(ours(site))) == len(left) + 1


def test_from_qpopper_and_mailutils(site):
    """Ids as qpopper has written them, in its forms, and mailutils in its own; and what they have
    not seen."""
    theirs = [
        b"0123456789abcdef0123456789abcdef",
        b':hH!!8e9"!CbS"!TkO!!',
        b"c4d~}|{z`_^]\\[@?>=<;:",
        b"7c1eb436035cb6ba8b386ced95161a36.1795645412.1",
    ]
    before = (
        b"X-UIDL: %b\nStatus: U\n",
        b"X-UIDL: %b\n",
        b"Status: RO\nx-uidl:%b  \n",
        b"X-UIDL: %b\n",
    )
    seen = [fields % one for fields, one in zip(before, theirs, strict=True)]
    site.add("ann", mbox(*(b"Subject: x\n%b\ntext\n" % one for one in seen)))
    site.configure({"uidl-style": X_UIDL})
    assert ours(site) == theirs
    deliver(site, b"Subject: new\n\ntext\n", b"Subject: x\nX-UIDL: %b\n\nforged\n" % theirs[0])
    *ids, new, forged = ours(site, 2)
    assert ids == theirs
    assert len(new) == 32
    assert forged.startswith(theirs[0] + b"-")
    assert ours(site) == [theirs[0], *theirs[2:], new, forged]
    ours(site, 2)
    assert ours(site) == [theirs[0], theirs[3], new, forged]


@pytest.mark.parametrize("text", ["From here on it is text", "From May to June", "From 10:30 on"])
def test_text_that_looks_like_a_message_costs_those_behind_it_no_id_of_dovecots(site, text):
    """It is one here, with an id of its own, which no client has seen."""
    texts = [b"Subject: %d\n\none\n" % n for n in range(4)]
    texts[1] += b"\n" + text.encode() + b"\nmore\n"
    site.add("ann", mbox(*texts))
    site.configure({"uidl-style": DOVECOT})
    theirs = dovecots(site)
    assert len(theirs) == 4
    for _ in range(2):
        mine = ours(site)
        assert len(mine) == 5
        assert [*mine[:2], *mine[3:]] == theirs
    deliver(site, b"Subject: new\n\nnew\n")
    assert ours(site)[:5] == mine


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
