"""Finding messages: against an oracle that reads line by line, whatever the block size."""

import os
from binascii import crc32
from hashlib import md5

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spools import content_of, covered, mbox, messages_of, odd_spools, on_the_wire, separators_lead
from tpop3d.mailspool import scan as scan_module
from tpop3d.mailspool.failures import Truncated
from tpop3d.mailspool.scan import NotAnMbox, is_internal, scan

INTERNAL = (
    b"Date: Sun, 22 Nov 2026 08:00:00 +0000\n"
    b"From: Mail System Internal Data <MAILER-DAEMON@example.org>\n"
    b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\n"
    b"X-IMAP: 1234567890 0000000042\nStatus: RO\n\nThis text is part of the format.\n"
)


def memory_file(octets):
    fd = os.memfd_create("spool")
    os.write(fd, octets)
    return fd


def listing_of(octets, block=None, with_digests=False):
    fd = memory_file(octets)
    before = scan_module.BLOCK
    scan_module.BLOCK = block or before
    try:
        return scan(fd, 0, len(octets), with_digests)
    finally:
        scan_module.BLOCK = before
        os.close(fd)


def check_against_oracle(octets, listing):
    messages = messages_of(octets)
    leads = separators_lead(octets)
    assert listing.separators_lead == leads
    assert len(listing) == len(messages)
    for index, message in enumerate(messages):
        start, end = listing.starts[index], listing.next_start(index)
        assert octets[start:end] == message
        content = octets[listing.bodies[index] : listing.ends[index]]
        assert content == content_of(message, leads)
        assert listing.octets[index] == len(on_the_wire(content))
        head = octets[start : start + listing.head(index)]
        assert listing.prints[index] == crc32(head)
        digest = md5(covered(message, leads)).digest()
        assert listing.digests[16 * index : 16 * index + 16] == digest
    # Nothing is between messages, and nothing behind the last.
    assert octets[: listing.starts[0]].strip(b"\r\n") == b""
    assert listing.next_start(len(messages) - 1) == len(octets)


@given(octets=odd_spools, block=st.integers(1, 40))
@example(octets=b"From a\n\nFrom b\n\n", block=1)
@example(octets=b"From a\r\n\r\nFrom b\r\n\r\n", block=2)
@example(octets=b"From a", block=3)
@example(octets=b"From a\r", block=1)
@example(octets=b"From a\nx\r\r\n\r\nFrom b\nx\r", block=5)
@example(octets=b"From a\rSubject: x\r\rtext\n\nFrom b\n\n", block=7)
@example(octets=b"From a\rx", block=2)
@example(octets=b"From a\r\rx\r\n\r\nFrom b\r\n\r\n", block=3)
@example(octets=b"From " + b"a" * 507 + b"\nx\n\n", block=40)
@example(octets=b"From " + b"a" * 508 + b"\r\nx\n\n", block=40)
@example(octets=b"From " + b"a" * 600, block=40)
@example(octets=b"\nFrom a\nx\n\n\r\n\nFrom b\nx\n", block=4)
@example(octets=b"From a\n\n\n\nFrom b\nx\n", block=1)
@settings(max_examples=600, deadline=None)
def test_messages_and_sizes_are_the_oracles(octets, block):
    check_against_oracle(octets, listing_of(octets, block, with_digests=True))


def test_a_spool_larger_than_a_block_in_real_blocks():
    contents = [b"Subject: %d\n\n%b\n" % (n, b"line\r\n" * (n * 977 % 9000)) for n in range(60)]
    octets = mbox(*contents)
    assert len(octets) > 4 * scan_module.BLOCK
    check_against_oracle(octets, listing_of(octets, with_digests=True))


@pytest.mark.parametrize("octets", [b"", b"\n", b"\r\n\n", b"\n" * 1000])
def test_empty_lines_are_an_empty_spool(octets):
    assert len(listing_of(octets)) == 0


@pytest.mark.parametrize(
    ("octets", "offset"),
    [
        (b"x", 0),
        (b"\nfrom a\n", 1),
        (b"\n\r\n garbage\n\nFrom a\n\n", 3),
        (b">From a\n\nFrom b\n\n", 0),
        (b"\0" * 600000 + b"\n\nFrom a\n\n", 0),
        (b"\n" * 600000 + b"x\n\nFrom a\n\n", 600000),
    ],
)
def test_garbage_before_the_first_message_is_refused_with_its_offset(octets, offset):
    with pytest.raises(NotAnMbox) as caught:
        listing_of(octets)
    assert caught.value.offset == offset


def test_a_spool_shorter_than_it_was_is_an_error():
    fd = memory_file(mbox(b"text\n"))
    with pytest.raises(Truncated):
        scan(fd, 0, 10_000)
    os.close(fd)


@pytest.mark.parametrize(
    ("content", "internal"),
    [
        (INTERNAL, True),
        (INTERNAL.replace(b"\n", b"\r\n"), True),
        (INTERNAL.replace(b"X-IMAP:", b"X-IMAPBASE:"), False),
        (INTERNAL.replace(b"DON'T", b"Don't"), False),
        (b"Subject: hello\n\n" + INTERNAL, False),
    ],
)
def test_a_mail_programs_own_first_message_is_recognised(content, internal):
    octets = mbox(content, b"Subject: other\n\ntext\n")
    fd = memory_file(octets)
    listing = scan(fd, 0, len(octets))
    assert len(listing) == 2
    assert is_internal(fd, listing) is internal
    os.close(fd)


def test_nothing_is_internal_in_an_empty_spool():
    assert not is_internal(memory_file(b""), listing_of(b""))
