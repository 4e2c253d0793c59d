"""Message bodies on the wire: the same octets however the blocks are cut."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol import as_sent, bytewise, pieces, unstuffed
from tpop3d.pop3.stuffing import encode, top

ENCODED = [
    # stored, sent
    (b"", b".\r\n"),
    (b"\n", b"\r\n.\r\n"),
    (b"\r\n", b"\r\n.\r\n"),
    (b"a\n", b"a\r\n.\r\n"),
    (b"a\r\n", b"a\r\n.\r\n"),
    (b"a", b"a\r\n.\r\n"),
    (b"a\nb", b"a\r\nb\r\n.\r\n"),
    (b"a\n\n", b"a\r\n\r\n.\r\n"),
    (b".", b"..\r\n.\r\n"),
    (b".\n", b"..\r\n.\r\n"),
    (b".\r\n", b"..\r\n.\r\n"),
    (b"..\n", b"...\r\n.\r\n"),
    (b"...", b"....\r\n.\r\n"),
    (b"a\n.b\n", b"a\r\n..b\r\n.\r\n"),
    (b"a\r\n.b\r\n", b"a\r\n..b\r\n.\r\n"),
    (b"a\n.\nb\n", b"a\r\n..\r\nb\r\n.\r\n"),
    (b".\n.\n.\n", b"..\r\n..\r\n..\r\n.\r\n"),
    (b"a.b.\n", b"a.b.\r\n.\r\n"),
    (b"a\rb\n", b"a\rb\r\n.\r\n"),
    (b"\r", b"\r\r\n.\r\n"),
    (b"a\r", b"a\r\r\n.\r\n"),
    (b"a\r\r", b"a\r\r\r\n.\r\n"),
    (b"a\r\r\n", b"a\r\r\n.\r\n"),
    (b"a\n\r", b"a\r\n\r\r\n.\r\n"),
    (b"\r.\n", b"\r.\r\n.\r\n"),
    (b"\n\r.\n", b"\r\n\r.\r\n.\r\n"),
    (b"a\0b\0\n\0", b"a\0b\0\r\n\0\r\n.\r\n"),
    (b"\xff\x80\n", b"\xff\x80\r\n.\r\n"),
]
HEADER = b"From: ann\nSubject: x\n"
TOPS = [
    # stored, lines, the part of it that TOP shows
    (HEADER + b"\n1\n2\n3\n", 0, HEADER + b"\n"),
    (HEADER + b"\n1\n2\n3\n", 1, HEADER + b"\n1\n"),
    (HEADER + b"\n1\n2\n3\n", 2, HEADER + b"\n1\n2\n"),
    (HEADER + b"\n1\n2\n3\n", 3, HEADER + b"\n1\n2\n3\n"),
    (HEADER + b"\n1\n2\n3\n", 9999999999, HEADER + b"\n1\n2\n3\n"),
    (HEADER + b"\n\n\n2\n", 2, HEADER + b"\n\n\n"),
    (HEADER + b"\n1", 0, HEADER + b"\n"),
    (HEADER + b"\n1", 1, HEADER + b"\n1"),
    (HEADER + b"\n1\n2", 1, HEADER + b"\n1\n"),
    (HEADER + b"\n1\n2", 2, HEADER + b"\n1\n2"),
    (HEADER + b"\n", 5, HEADER + b"\n"),
    (HEADER, 5, HEADER),
    (b"Subject: x", 5, b"Subject: x"),
    (b"", 5, b""),
    (b"\n1\n2\n", 1, b"\n1\n"),
    (b"\r\n1\r\n2\r\n", 1, b"\r\n1\r\n"),
    (b"\n", 0, b"\n"),
    (b"a: b\r\n\r\n1\r\n2\r\n", 0, b"a: b\r\n\r\n"),
    (b"a: b\r\n\r\n1\r\n2\r\n", 1, b"a: b\r\n\r\n1\r\n"),
    (b"a: b\n\r\n1\r\n2\r\n", 1, b"a: b\n\r\n1\r\n"),
    (b"a: b\r\n\n1\n2\n", 1, b"a: b\r\n\n1\n"),
    (b"a: b\r\rc: d\n\n1\r2\n3\n", 1, b"a: b\r\rc: d\n\n1\r2\n"),
    (b"a: b\n\r\r\nc: d\n\n1\n2\n", 1, b"a: b\n\r\r\nc: d\n\n1\n"),
    (b"a: b\n \n\n.\n.\n", 1, b"a: b\n \n\n.\n"),
    (b".\n\n.\n..\n", 1, b".\n\n.\n"),
]
# Octets that matter, in the mixtures in which they matter.
CONTENT = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b".", b"\0", b"a", b"Subject: x", b"\xff"]), max_size=24
).map(b"".join)
CUTS = st.lists(st.integers(0, 80), max_size=6)


@pytest.mark.parametrize("cut", [lambda octets: [octets], bytewise], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("stored", "sent"), ENCODED)
def test_bodies_are_encoded(stored, sent, cut):
    assert b"".join(encode(cut(stored))) == sent


@settings(max_examples=300, deadline=None)
@given(CONTENT, CUTS)
@example(b"a\r\n.b", [2])
@example(b"a\n.b", [2])
@example(b"a\r\n.\r\n", [1, 2, 3, 4])
def test_every_cut_gives_the_same_octets(content, cuts):
    whole = b"".join(encode([content]))
    assert b"".join(encode(pieces(content, cuts))) == whole
    assert b"".join(encode(bytewise(content))) == whole
    with_empty_blocks = [b"", *(piece for one in pieces(content, cuts) for piece in (one, b""))]
    assert b"".join(encode(with_empty_blocks)) == whole


@settings(max_examples=300, deadline=None)
@given(CONTENT, CUTS)
def test_a_client_gets_back_the_content_with_each_bare_lf_as_crlf(content, cuts):
    assert unstuffed(b"".join(encode(pieces(content, cuts)))) == as_sent(content)


@pytest.mark.parametrize("cut", [lambda octets: [octets], bytewise], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("stored", "lines", "shown"), TOPS)
def test_top_shows_the_headers_and_so_many_lines(stored, lines, shown, cut):
    assert b"".join(top(cut(stored), lines)) == shown


@settings(max_examples=300, deadline=None)
@given(CONTENT, CUTS, st.integers(0, 6))
def test_top_is_the_start_of_the_message_however_it_is_cut(content, cuts, lines):
    shown = b"".join(top([content], lines))
    assert content.startswith(shown)
    assert b"".join(top(pieces(content, cuts), lines)) == shown
    assert b"".join(top(bytewise(content), lines)) == shown
    retr = b"".join(encode([content])).removesuffix(b".\r\n")
    sent = b"".join(encode(top(pieces(content, cuts), lines))).removesuffix(b".\r\n")
    assert retr.startswith(sent)


@settings(max_examples=300, deadline=None)
@given(CONTENT, st.integers(0, 6))
def test_top_is_what_a_line_by_line_reader_would_take(content, lines):
    taken = []
    in_headers, left = True, lines
    for line in content.splitlines(keepends=True) if b"\r" not in content else ():
        if not in_headers and left == 0:
            break
        left -= not in_headers
        in_headers = in_headers and line != b"\n"
        taken.append(line)
    if b"\r" not in content:
        assert b"".join(top([content], lines)) == b"".join(taken)


def test_nothing_is_read_behind_the_last_line_of_top():
    def blocks():
        yield b"a: b\n\n1\n"
        yield b"2\n3\n"
        raise AssertionError("read on")

    assert b"".join(top(blocks(), 2)) == b"a: b\n\n1\n2\n"


def test_one_block_at_a_time_is_held():
    reached = []

    def blocks():
        for n in range(4):
            reached.append(n)
            yield b"x" * 1000

    encoded = encode(blocks())
    assert next(encoded) == b"x" * 1000
    assert reached == [0]
