"""However a client's octets are cut into packets, the same replies come back."""

import random
import re
from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import Memory, bytewise, converse, pieces, run_server
from samples import spool_of
from tpop3d.session.wire import EOF

MESSAGES = (b"Subject: one\n\nfirst\n", b"Subject: two\r\n\r\n.dot\r\n", b"")
PLAIN = b64encode(b"\0ann\0secret")
COMMANDS = [
    b"USER ann", b"PASS secret", b"PASS wrong", b"USER ann\r\nPASS secret", b"AUTH PLAIN",
    b"AUTH PLAIN " + PLAIN, PLAIN, b"*", b"=", b"AUTH PLAIN =", b"AUTH", b"CAPA", b"UTF8", b"STAT",
    b"LIST", b"LIST 2", b"UIDL", b"UIDL 9", b"RETR 1", b"RETR 2", b"TOP 2 0", b"TOP 1", b"DELE 1",
    b"DELE 3", b"RSET", b"NOOP", b"QUIT", b"", b":", b"XYZZY", b"NO\0OP", b"x" * 300, b"x" * 254,
]  # fmt: skip
SCRIPTS = st.lists(
    st.tuples(st.sampled_from(COMMANDS), st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r\r\n"])),
    max_size=12,
).map(lambda lines: b"".join(line + end for line, end in lines))
LOGIN = st.sampled_from([b"", b"USER ann\r\nPASS secret\r\n", b"AUTH PLAIN\r\n" + PLAIN + b"\r\n"])


def result(chunks):
    outcome = converse(chunks, Memory(*MESSAGES))
    return outcome.output, outcome.end, outcome.deleted


@settings(max_examples=80, deadline=None)
@given(LOGIN, SCRIPTS, st.lists(st.integers(0, 400), max_size=6))
def test_every_split_gives_the_same_replies(login, script, cuts):
    octets = login + script
    whole = result([octets])
    assert result(pieces(octets, cuts)) == whole
    assert result(bytewise(octets)) == whole


@settings(max_examples=80, deadline=None)
@given(LOGIN, SCRIPTS, st.sampled_from([b"QUIT", b"D", b"\0", b"x" * 300, b"RETR 1\r"]))
def test_half_a_command_behind_the_others_changes_nothing(login, script, trailing):
    octets = login + script
    assert result([octets + trailing]) == result([octets])
    assert result([octets, trailing]) == result([octets])


@settings(max_examples=80, deadline=None)
@given(LOGIN, SCRIPTS)
def test_only_quit_after_login_deletes(login, script):
    output, end, deleted = result([login + script])
    if any(deleted):
        assert b"+OK message deleted" in output
        assert b"QUIT" in script
        assert output.endswith(b"+OK goodbye\r\n")
    assert end == EOF or output.splitlines()[-1].startswith((b"+OK goodbye", b"-ERR"))


SCRIPT = (
    b"CAPA\r\nPASS secret\r\nUSER ann\r\nPASS wrong\r\nAUTH PLAIN\r\n*\r\n" + b"x" * 300 + b"\r\n"
    b"AUTH PLAIN\r\n"
    + PLAIN
    + b"\r\nSTAT\r\nLIST\nRETR 2\r\nTOP 1 0\r\nNO\0OP\r\nDELE 3\r\nUIDL\r\n"
    b"DELE 1\r\nRSET\r\nDELE 2\r\nLIST\r\n\r\nQUIT\r\nNOOP\r\n"
)
CUTTERS = {
    "whole": lambda octets: [octets],
    "bytewise": bytewise,
    "line by line": lambda octets: octets.splitlines(keepends=True),
    "behind each CR": lambda octets: pieces(
        octets, [found.end() for found in re.finditer(b"\r", octets)]
    ),
    "at random": lambda octets: pieces(octets, random.Random(1).sample(range(len(octets)), 40)),
}


@pytest.mark.parametrize("cut", CUTTERS)
def test_the_real_server_answers_the_same_however_it_is_fed(site, cut):
    site.configure({"auth-failure-delay-seconds": 0})
    site.add("ann", spool_of([b"Subject: one\n\nfirst\n", b"Subject: two\r\n\r\n.dot\r\n", b"a\n"]))
    output, log = run_server(site, CUTTERS[cut](SCRIPT))
    lines = output.splitlines(keepends=True)
    capa = lines.index(b".\r\n") + 1
    words = [line.split(b" ")[0].strip() for line in lines[capa:]]
    ok, err = b"+OK", b"-ERR"
    assert words[:11] == [err, ok, err, b"+", err, err, b"+", ok, ok, ok, b"1"]
    assert output.endswith(b"+OK goodbye\r\n")
    assert b"\r\n..dot\r\n.\r\n" in output
    assert output.count(err) == 6
    assert site.spool("ann").read_bytes() == spool_of([b"Subject: one\n\nfirst\n", b"a\n"])
    assert b" retr=1/22 top=1/16 dele=1 left=2 " in log
    assert b" octets_out=%d " % len(output) in log
