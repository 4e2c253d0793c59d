"""Command lines: however the octets come in, the same lines come out."""

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol import bytewise, pieces
from tpop3d.pop3.commands import (
    BEGINNING,
    MAX_COMMAND,
    OVERLONG,
    LineBuffer,
    is_malformed,
    number,
    parse,
)

LINES = [
    # octets, lines, what stays in the buffer
    (b"", [], b""),
    (b"NOOP", [], b"NOOP"),
    (b"NOOP\r", [], b"NOOP\r"),
    (b"NOOP\r\n", [b"NOOP"], b""),
    (b"NOOP\n", [b"NOOP"], b""),
    (b"\r\n", [b""], b""),
    (b"\n\n", [b"", b""], b""),
    (b":\r\n", [b":"], b""),
    (b"USER a\r\nPASS b\nQUIT", [b"USER a", b"PASS b"], b"QUIT"),
    (b"NOOP\r\r\n", [b"NOOP\r"], b""),
    (b"NO\rOP\r\n", [b"NO\rOP"], b""),
    (b"NO\0OP\r\n", [b"NO\0OP"], b""),
    (b"A" * 253 + b"\r\nNOOP\r\n", [b"A" * 253, b"NOOP"], b""),
    (b"A" * 254 + b"\nNOOP\r\n", [b"A" * 254, b"NOOP"], b""),
    (b"A" * 254 + b"\r\nNOOP\r\n", [OVERLONG, b"NOOP"], b""),
    (b"A" * 255 + b"\nNOOP\r\n", [OVERLONG, b"NOOP"], b""),
    (b"A" * 5000 + b"\r\nNOOP\r\n", [OVERLONG, b"NOOP"], b""),
    (b"A" * 300 + b"\r\n" + b"B" * 300 + b"\r\nQ\r\n", [OVERLONG, OVERLONG, b"Q"], b""),
    (b"A" * 254, [], b"A" * 254),
    (b"A" * 255, [], b""),
]
FEEDS = {"whole": lambda octets: [octets], "bytewise": bytewise}


def read(chunks, limit=MAX_COMMAND):
    """All lines, and what is left when the last chunk is in."""
    buffer = LineBuffer()
    lines = []
    for chunk in chunks:
        buffer.feed(chunk)
        while (line := buffer.next_line(limit)) is not None:
            lines.append(line)
    return lines, buffer.rest()


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(("octets", "lines", "rest"), LINES)
def test_lines_come_out_whole(octets, lines, rest, feed):
    assert read(FEEDS[feed](octets)) == (lines, rest)


COMPLETE = [(octets, lines) for octets, lines, _ in LINES if octets.endswith(b"\n")]


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(("octets", "lines"), COMPLETE)
def test_data_behind_a_complete_line_changes_nothing(octets, lines, feed):
    assert read(FEEDS[feed](octets + b"RETR 1")) == (lines, b"RETR 1")


@settings(max_examples=150, deadline=None)
@given(
    octets=st.lists(
        st.one_of(
            st.sampled_from([b"\r\n", b"\n", b"\r", b"\0", b"USER a\r\n", b"x" * 253, b"x" * 255]),
            st.binary(max_size=6),
        ),
        max_size=12,
    ).map(b"".join),
    cuts=st.lists(st.integers(0, 800), max_size=8),
)
@example(octets=b"x" * 255 + b"\r\n", cuts=[254, 255, 256])
@example(octets=b"x" * 255 + b"\r\n", cuts=[255])
def test_every_split_gives_the_same_lines(octets, cuts):
    lines, _ = read([octets])
    assert read(pieces(octets, cuts))[0] == lines
    assert read(bytewise(octets))[0] == lines
    expected = [
        OVERLONG if len(line) + 1 > MAX_COMMAND else line.removesuffix(b"\r")
        for line in octets.split(b"\n")[:-1]
    ]
    assert lines == expected


@pytest.mark.parametrize("limit", [1, 2, 40, 255, 12288])
def test_the_limit_is_exact_and_counts_the_line_end(limit):
    assert read([b"x" * (limit - 1) + b"\n"], limit) == ([b"x" * (limit - 1)], b"")
    assert read([b"x" * limit + b"\n"], limit) == ([OVERLONG], b"")
    if limit >= 2:
        assert read([b"x" * (limit - 2) + b"\r\n"], limit) == ([b"x" * (limit - 2)], b"")
        assert read([b"x" * (limit - 1) + b"\r\n"], limit) == ([OVERLONG], b"")


def test_the_limit_of_a_command_is_that_of_rfc_2449():
    assert MAX_COMMAND == 255


def test_the_limit_may_change_from_line_to_line():
    buffer = LineBuffer(b"AUTH PLAIN\r\n" + b"x" * 1000 + b"\r\n" + b"x" * 1000 + b"\r\nNOOP\r\n")
    assert buffer.next_line(255) == b"AUTH PLAIN"
    assert buffer.next_line(12288) == b"x" * 1000
    assert buffer.next_line(255) is OVERLONG
    assert buffer.next_line(255) == b"NOOP"
    assert buffer.next_line(255) is None


def test_an_endless_line_takes_no_memory():
    buffer = LineBuffer()
    chunk = b"x" * 4096
    tracemalloc.start()
    try:
        for _ in range(4096):
            buffer.feed(chunk)
            assert buffer.next_line(MAX_COMMAND) is None
        assert tracemalloc.get_traced_memory()[1] < 16 * len(chunk)
    finally:
        tracemalloc.stop()
    buffer.feed(b"\r\nNOOP\r\n")
    assert buffer.next_line(MAX_COMMAND) is OVERLONG
    assert buffer.next_line(MAX_COMMAND) == b"NOOP"
    assert buffer.rest() == b""


def test_has_line_tells_whether_a_line_is_complete():
    buffer = LineBuffer(b"NOOP\r\nQU")
    assert buffer.has_line()
    buffer.next_line(MAX_COMMAND)
    assert not buffer.has_line()
    assert buffer.next_line(MAX_COMMAND) is None
    buffer.feed(b"IT\r\n")
    assert buffer.has_line()


def test_rest_is_what_was_not_taken_and_stays():
    """Whoever asks for a verdict tells what is left, and reads on after a no."""
    buffer = LineBuffer(b"NOOP\r\nSTAT\r\nLI")
    assert buffer.next_line(MAX_COMMAND) == b"NOOP"
    assert buffer.rest() == b"STAT\r\nLI"
    assert buffer.rest() == b"STAT\r\nLI"
    buffer.feed(b"ST\r\n")
    assert buffer.next_line(MAX_COMMAND) == b"STAT"
    assert buffer.rest() == b"LIST\r\n"
    assert buffer.next_line(MAX_COMMAND) == b"LIST"
    assert buffer.rest() == b""


PARSED = [
    # line, keyword, argument, words
    (b"NOOP", b"NOOP", None, []),
    (b"noop", b"NOOP", None, []),
    (b"nOoP", b"NOOP", None, []),
    (b"", b"", None, []),
    (b":", b":", None, []),
    (b" ", b"", b"", []),
    (b" NOOP", b"", b"NOOP", [b"NOOP"]),
    (b"LIST ", b"LIST", b"", []),
    (b"LIST 1", b"LIST", b"1", [b"1"]),
    (b"TOP 1 2", b"TOP", b"1 2", [b"1", b"2"]),
    (b"TOP 1  2", b"TOP", b"1  2", [b"1", b"", b"2"]),
    (b"LIST\t1", b"LIST\t1", None, []),
    (b"pass  Two  Spaces ", b"PASS", b" Two  Spaces ", [b"", b"Two", b"", b"Spaces", b""]),
    (b"USER Ann", b"USER", b"Ann", [b"Ann"]),
    (b"\xe4 \xff", b"\xe4", b"\xff", [b"\xff"]),
]


@pytest.mark.parametrize(("line", "keyword", "argument", "words"), PARSED)
def test_a_line_is_a_keyword_and_what_follows_the_first_space(line, keyword, argument, words):
    command = parse(line)
    assert (command.keyword, command.argument, command.words()) == (keyword, argument, words)


@pytest.mark.parametrize(
    ("line", "malformed"),
    [(b"NOOP", False), (b"", False), (b"\0", True), (b"US\0ER a", True), (b"USER a\r", True),
     (b"USER a\rb", True), (b"\rQUIT", True), (b"USER \xff\t", False)],
)  # fmt: skip
def test_nul_and_cr_make_a_line_malformed(line, malformed):
    assert is_malformed(line) is malformed


NUMBERS = [
    (b"0", 0), (b"1", 1), (b"9", 9), (b"10", 10), (b"2147483648", 2147483648),
    (b"9999999999", 9999999999), (b"10000000000", None), (b"99999999999999999999", None),
    (b"01", 1), (b"00", 0), (b"007", 7), (b"0000000001", 1), (b"0000000000", 0),
    (b"00000000001", None), (b"0" * 300 + b"1", None), (b"0 1", None), (b"-01", None),
    (b"", None), (b"-1", None), (b"+1", None), (b"-0", None),
    (b"1.", None), (b"1.0", None), (b"1e3", None), (b"0x1", None), (b"1_0", None), (b" 1", None),
    (b"1 ", None), (b"one", None), (b"\xb2", None), ("\u0663".encode(), None), (b"1\0", None),
]  # fmt: skip


@pytest.mark.parametrize(("word", "value"), NUMBERS)
def test_numbers_are_plain_decimal(word, value):
    assert number(word) == value


@pytest.mark.parametrize("size", [256, 5000])
@pytest.mark.parametrize("piece", [1, 100, 9999])
def test_how_an_overlong_line_began_is_known(size, piece):
    octets = b"NOOP\r\n" + (b"GET /" + b"x" * size)[:size] + b"\r\nNOOP\r\n"
    buffer, found = LineBuffer(), []
    for start in range(0, len(octets), piece):
        buffer.feed(octets[start : start + piece])
        while (line := buffer.next_line(MAX_COMMAND)) is not None:
            found.append(line)
    assert found == [b"NOOP", OVERLONG, b"NOOP"]
    assert buffer.beginning == (b"GET /" + b"x" * 99)[:BEGINNING]
