"""Unique-ids and sizes are those of a message alone, whoever delivers, goes, or is killed."""

import hashlib
import os
import random
import subprocess
import sys
import tempfile

import pytest

import doors
from mailsite import CHECKOUT, ENVIRONMENT
from spools import good, mbox, messages_of
from tpop3d.mailspool import index as indexes
from tpop3d.mailspool.uidl_styles import DOVECOT, POPA3D, STYLES, X_UIDL
from tpop3d.system.refusal import Refusal

FROM = b"From sender@example.org Sun Nov 22 08:00:00 2026\n"
SHORT = FROM + b"Subject: short\n\nsome text\n"
LONG = FROM + b"Subject: long\n\n" + b"some text\n" * 80
LIVES = 250


def visit(path, *deleted, **how):
    """Ids and sizes that a session sees, which removes something."""
    spool = good(path, **how)
    seen = list(zip(spool.unique_ids(), spool.octets, strict=True))
    assert spool.expunge(bytearray(n in deleted for n in range(len(spool)))) is None
    spool.close()
    return seen


def at_once(*contents):
    """A tidy spool of messages with the same From_ line."""
    return b"".join(FROM + one + b"\n" for one in contents)


def append(path, octets):
    with path.open("ab") as file:
        file.write(octets)


def test_random_lives_beside_a_model():
    """modelling.py tells what happens in them."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        command = [
            sys.executable,
            "-S",
            CHECKOUT / "tests/kit/modelling.py",
            directory,
            "0",
            str(LIVES),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done
    assert int(done.stdout) > 5 * LIVES


def test_a_thousand_tidy_spools_have_the_ids_of_the_c_program():
    """It takes the MD5 of all up to the next From_ line, or of 512 octets."""
    chance = random.Random(1)
    lines = [b"text\n", b"\n", b".\n", b"From here\n", b"\r\n", b"x" * 200 + b"\n"]
    for number in range(1000):
        contents = []
        for n in range(chance.randrange(1, 6)):
            body = b"".join(chance.choices(lines, k=chance.randrange(9)))
            contents.append(b"Message-ID: <%d>\n\n%b" % (100 * number + n, body))
        octets = mbox(*contents)
        if len(messages := messages_of(octets)) != len(contents):
            continue  # text that is a separator
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            path = f"{directory}/spool"
            with open(path, "wb") as file:
                file.write(octets)
            seen = visit(path)
        assert [one for one, _ in seen] == [
            hashlib.md5(message[:512]).hexdigest().encode() for message in messages
        ]
        assert [octets for _, octets in seen] == [
            len(content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")) for content in contents
        ]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("message", [SHORT, LONG], ids=["short", "long"])
def test_a_message_is_the_same_with_neighbours_and_without(tmp_path, monkeypatch, message, index):
    """As of dma, which writes the empty line before a mail, alone and behind others."""
    monkeypatch.setattr(indexes, "WORTH", 0)
    path = tmp_path / "spool"
    path.write_bytes(message)
    wanted = visit(path, index=index)
    assert wanted[0][1] == len(message[len(FROM) :]) + message[len(FROM) :].count(b"\n")
    for before in (b"", b"\n", b"\n\n", b"\r\n"):
        path.write_bytes(before + message)
        assert visit(path, index=index) == wanted
    # Deliver behind it, and remove that again, in either way, time and again.
    for separator in (b"\n", b""):
        path.write_bytes(message + separator)
        assert visit(path, index=index) == wanted
        for other in (b"Subject: other\n\nx\n", b"Subject: no body\n"):
            for _ in range(3):
                append(path, b"\n" + FROM + other)
                assert visit(path, index=index)[:1] == wanted
                append(path, b"\n" + FROM + other.replace(b"Subj", b"subj"))
                assert visit(path, 2, index=index)[:1] == wanted
                assert visit(path, 1, index=index)[:1] == wanted
                assert visit(path, index=index) == wanted
    # In front of it.
    path.write_bytes(b"\n" + FROM + b"Subject: first\n\nx\n\n" + message)
    assert visit(path, 0, index=index)[1:] == wanted
    assert visit(path, index=index) == wanted


@pytest.mark.parametrize("tidy", [b"\n", b"\r\n"])
def test_empty_lines_at_the_end_of_a_message_are_its_own_in_a_tidy_spool(tmp_path, tidy):
    path = tmp_path / "spool"
    path.write_bytes(SHORT + tidy * 3 + FROM + b"Subject: x\n\ny\n" + tidy)
    spool = good(path)
    assert b"".join(spool.blocks(0)) == SHORT[len(FROM) :] + tidy * 2
    spool.close()


def test_what_is_delivered_next_never_becomes_a_part_of_what_stays(tmp_path):
    """Of the empty lines before what is removed at the end a single one stays."""
    path = tmp_path / "spool"
    path.write_bytes(SHORT + b"\n\n" + FROM + b"Subject: x\n\ny\n")
    visit(path, 1)
    assert path.read_bytes() == SHORT + b"\n"
    append(path, LONG + b"\n")
    assert len(visit(path)) == 2


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_last_line_may_get_its_end_with_the_next_delivery(tmp_path, monkeypatch, index, end):
    """A twin that is gone is no reason to give its id to another then."""
    monkeypatch.setattr(indexes, "WORTH", 0)
    twin = FROM.replace(b"\n", end) + b"Subject: twin" + end * 2 + b"text"
    path = tmp_path / "spool"
    path.write_bytes((twin + end * 2) * 2)
    visit(path, index=index)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2 * len(end))
    os.utime(path, (1, 1))
    _, (unique_id, octets) = visit(path, 0, index=index)
    assert b"-" in unique_id
    assert visit(path, index=index) == [(unique_id, octets)]
    append(path, end * 2 + FROM.replace(b"\n", end) + b"Subject: next" + end * 2 + b"x" + end)
    assert visit(path, index=index)[0] == (unique_id, octets)


NO_FROM_LINES = {
    "CR alone ends its lines": b"From a\rSubject: secret\r\rThe text.\r",
    "text behind a CR": b"From a\rThe text.\n\n",
    "a long line": b"From " + b"The text. " * 60 + b"\n\n",
    "a long line without an end": b"From " + b"The text. " * 60,
    "a CR and another octet": b"From a\rx",
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("octets", NO_FROM_LINES.values(), ids=NO_FROM_LINES)
def test_what_nobody_was_sent_is_never_removed(site, inetd, octets, first):
    """A From_ line is not sent; what is none, and may be anything, is."""
    text = octets.rstrip(b"\n")
    end = b"" if octets.endswith(b"\n\n") else b"\n\n"
    site.add("anna", octets + end + SHORT + b"\n" if first else SHORT + b"\n" + octets)
    inetd.login("anna")
    number = 1 if first else 2
    sent = inetd.ask_long(f"RETR {number}")[1]
    # An LF that follows a CR ends its line with it.
    assert sent == text + (b"\n" if first and text.endswith(b"\r") else b"\r\n")
    assert inetd.ask(f"LIST {number}") == b"+OK %d %d\r\n" % (number, len(sent))
    assert inetd.ask(f"DELE {number}").startswith(b"+OK")
    assert inetd.ask("QUIT").startswith(b"+OK")


def test_an_envelope_is_not_sent(site, inetd):
    site.add("anna", b"From a\r\nSubject: x\r\n\r\ny\r\n\r\nFrom " + b"a" * 506 + b"\nz\n\nFrom b")
    inetd.login("anna")
    assert inetd.ask_long("RETR 1")[1] == b"Subject: x\r\n\r\ny\r\n"
    assert inetd.ask_long("RETR 2")[1] == b"z\r\n"
    assert inetd.ask_long("RETR 3")[1] == b""
    assert inetd.ask("QUIT").startswith(b"+OK")


def settle(path):
    os.utime(path, (1, 1))


def tomorrow(monkeypatch):
    """From now on nobody has touched anything for a day."""
    now = indexes.time_ns()
    monkeypatch.setattr(indexes, "time_ns", lambda: now + 86_400 * 10**9)


LARGE = [b"Message-ID: <%d>\n\n%b" % (n, b"some text\n" * 7000) for n in range(4)]


def changed_in_place(path, line_end=b"\n", instead=b"_"):
    """The second message is changed far from its start, and stays as long as it was."""
    octets = bytearray(path.read_bytes())
    at = octets.index(line_end, octets.index(b"<1>") + 5000)
    octets[at : at + len(line_end)] = instead
    with path.open("r+b") as file:
        file.write(octets)


def test_a_size_out_of_an_index_is_compared_with_what_is_sent(site):
    site.add("anna", mbox(*LARGE))
    path = site.spool("anna")
    settle(path)
    with doors.inetd(site) as wire:
        wire.login("anna")
        ids = wire.ask_long("UIDL")[1]
        assert wire.ask("QUIT").startswith(b"+OK")
        assert wire.line() == b""
    changed_in_place(path)
    append(path, mbox(b"Subject: new\n\nx\n"))
    with doors.inetd(site) as wire:
        wire.login("anna")
        wire.send(b"RETR 2\r\nDELE 1\r\nQUIT\r\n")
        assert not wire.reader.read().endswith(b".\r\n")
        wire.logs.wait_for(r"maildrop changed .*user=anna .*not of the size that was told")
    # That was the end, of the session and of the index; ids are what they were.
    with doors.inetd(site) as wire:
        wire.login("anna")
        size = len(wire.ask_long("RETR 2")[1])
        assert wire.ask("LIST 2") == b"+OK 2 %d\r\n" % size
        assert wire.ask_long("UIDL")[1].startswith(ids)
        assert wire.ask("QUIT").startswith(b"+OK")


NEW_MESSAGE = b"\n\nFrom other@example.org Sun Nov 22 08:00:00 2026\nSubject: another\n\nits text\n"


@pytest.mark.parametrize("when", ["within the session", "before", "before, and it is read"])
@pytest.mark.parametrize("settled", [True, False])
def test_nothing_is_removed_that_was_no_message_when_the_session_began(
    tmp_path, monkeypatch, when, settled
):
    """Somebody makes a message within another, whose start stays as it was."""
    path = tmp_path / "spool"
    path.write_bytes(mbox(*LARGE))
    visit(path)
    if settled:
        tomorrow(monkeypatch)
    change = (path, b"some text\n" * 9, NEW_MESSAGE.ljust(90, b"."))
    if when == "within the session":
        spool = good(path)
        changed_in_place(*change)
    else:
        changed_in_place(*change)
        append(path, mbox(b"Subject: new\n\nx\n"))
        spool = good(path)
    if when == "before, and it is read":
        assert NEW_MESSAGE[2:] in b"".join(spool.blocks(1))
    before = path.read_bytes()
    marks = bytearray(len(spool))
    marks[1] = 1
    refused = spool.expunge(marks)
    spool.close()
    if when == "before, and it is read" and settled:
        assert refused is None  # it was sent with the one that it is in
        return
    assert isinstance(refused, Refusal)
    assert "message 2 is another" in refused.reason
    assert path.read_bytes() == before
    assert len(visit(path)) == (5 if when == "within the session" else 6)


@pytest.mark.parametrize("deleted", [(0, 1, 2, 3), (1, 2, 3), (0, 1, 2)])
def test_an_emptied_or_small_spool_has_no_index(tmp_path, deleted):
    path = tmp_path / "spool"
    path.write_bytes(mbox(*LARGE))
    visit(path)
    state = tmp_path / "spool.state"
    assert (state / "index").exists()
    visit(path, *deleted)
    assert not list(state.glob("index*"))
    assert not list(state.glob("ids*"))


def test_mail_that_comes_again_into_a_spool_that_others_emptied_is_as_new(tmp_path):
    twin = at_once(b"Subject: twin\n\n" + b"x" * 600 + b"\n")
    path = tmp_path / "spool"
    path.write_bytes(twin * 2)
    wanted = visit(path)
    visit(path, 0)
    assert visit(path) == wanted[1:]
    path.write_bytes(b"")
    visit(path)
    path.write_bytes(twin)
    assert visit(path) == wanted[:1]


TWINS = {
    X_UIDL: [b"X-UIDL: %b\n\n%d\n" % (b"a" * 70, n) for n in (1, 2, 2, 3)],
    POPA3D: [b"Message-ID: <same>\n\n%d\n" % n for n in (1, 2, 2, 3)],
    "tpop3d": [b"Subject: same\n\n" + b"x" * 600 + b"%d\n" % n for n in (1, 2, 2, 3)],
    # The number of the third came with the mail.
    DOVECOT: [
        b"X-IMAPbase: 1500000000 0000000009\nX-UID: 1\n\n1\n",
        b"Subject: without\n\n2\n",
        b"X-UID: 5\n\n3\n",
        b"X-UID: 6\n\n4\n",
    ],
}


# Others may remove them, too; but which of two that are the same they have removed nobody knows,
# and what goes with dovecot's first message nothing else says.
REMOVED = [(style, deleted, True) for style in STYLES for deleted in (0, 1)]
REMOVED += [(style, 1 if style == DOVECOT else 0, False) for style in STYLES]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(("style", "deleted", "by_us"), REMOVED)
def test_ids_stay_in_a_small_spool_when_the_one_they_depend_on_goes(
    tmp_path, style, deleted, by_us, index
):
    path = tmp_path / "spool"
    path.write_bytes(at_once(*TWINS[style]))
    how = {"style": style, "index": index}
    wanted = visit(path, **how)
    assert len(dict(wanted)) == 4
    if by_us:
        visit(path, deleted, **how)
    else:
        messages = messages_of(path.read_bytes())
        del messages[deleted]
        path.write_bytes(b"".join(messages))
    del wanted[deleted]
    assert visit(path, **how) == wanted
    append(path, mbox(b"Subject: new\n\nx\n"))
    assert visit(path, **how)[:3] == wanted
    settle(path)
    assert visit(path, **how)[:3] == wanted


@pytest.mark.parametrize("code", [4, 5, 24])
def test_what_cannot_be_read_now_is_not_nothing(tmp_path, monkeypatch, code):
    path = tmp_path / "spool"
    path.write_bytes(at_once(*TWINS["tpop3d"]))
    visit(path)
    visit(path, 0)
    real = os.open

    def failing(what, *arguments, **named):
        if str(what).endswith("/ids"):
            raise OSError(code, os.strerror(code))
        return real(what, *arguments, **named)

    from spools import opened

    wanted = visit(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        refused = opened(path)
    assert isinstance(refused, Refusal)
    assert refused.kind == "temporary"
    assert "/ids" in refused.reason
    assert visit(path) == wanted


def damaged(octets):
    for at in range(len(octets)):
        yield octets[:at] + bytes([octets[at] ^ 1 << at % 8]) + octets[at + 1 :]
        yield octets[:at]
    yield octets + b"\0"
    yield octets * 2


def test_what_is_remembered_is_damaged_in_every_octet(tmp_path):
    """Then it is as if there were nothing, which makes other ids, and no trouble."""
    path = tmp_path / "spool"
    path.write_bytes(at_once(*TWINS["tpop3d"]))
    visit(path, 0)
    file = tmp_path / "spool.state" / "ids"
    whole = file.read_bytes()
    wanted = visit(path)
    file.unlink()
    as_new = visit(path)
    assert as_new != wanted
    for octets in damaged(whole):
        file.write_bytes(octets)
        assert visit(path) == as_new
    file.write_bytes(whole)
    assert visit(path) == wanted


def test_a_validity_that_came_with_a_mail_is_not_believed(tmp_path):
    """When the first message is gone, what it has left goes before that of the next one."""
    path = tmp_path / "spool"
    contents = [
        b"X-IMAPbase: 1500000000 0000000009\nX-UID: 1\n\n1\n",
        b"X-UID: 2\nX-IMAPbase: 1234567890 0000000099\n\n2\n",
        b"X-UID: 3\n\n3\n",
    ]
    path.write_bytes(mbox(*contents))
    wanted = visit(path, 0, style=DOVECOT)
    assert visit(path, style=DOVECOT) == wanted[1:]
    visit(path, 1, style=DOVECOT)
    assert visit(path, style=DOVECOT) == wanted[1:2]
