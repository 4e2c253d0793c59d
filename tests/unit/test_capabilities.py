"""CAPA promises what works, in both states, and nothing else."""

from base64 import b64encode

import pytest

from protocol import OPEN, TIMESTAMP, Memory, converse, said, status
from tpop3d.pop3 import authorization, transaction
from tpop3d.pop3.authorization import Attempt, Authorization, Policy
from tpop3d.pop3.capabilities import OF_COMMAND, PLAINTEXT
from tpop3d.pop3.transaction import Transaction

APOP_ONLY = Policy(TIMESTAMP, plaintext=False)
POLICIES = [OPEN, APOP_ONLY, Policy(TIMESTAMP, plaintext=True)]
INTERNATIONAL = "Subject: gr\u00fc\u00dfe\nFrom: k\u00e4the@example.org\n\ntext\n".encode()


def capabilities(state):
    """{tag: arguments}"""
    first, *lines, dot, end = said(state.handle(b"CAPA")).split(b"\r\n")
    assert first.startswith(b"+OK")
    assert (dot, end) == (b".", b"")
    announced = {line.split()[0]: line.split()[1:] for line in lines}
    assert len(announced) == len(lines), "announced twice"
    return announced


@pytest.mark.parametrize("policy", POLICIES)
def test_both_states_announce_the_same(policy):
    before = capabilities(Authorization(policy))
    assert before == capabilities(Transaction(Memory(), policy))


def test_what_announces_a_command_is_in_a_table():
    commands = {*authorization.COMMANDS, *transaction.COMMANDS}
    assert OF_COMMAND.keys() <= commands
    assert {*PLAINTEXT} <= OF_COMMAND.keys()
    assert OF_COMMAND[b"AUTH"].split() == [b"SASL", *authorization.MECHANISMS]
    by_other_means = {b"PASS", b"APOP", b"CAPA", b"QUIT", b"STLS"}
    required = {b"STAT", b"LIST", b"RETR", b"DELE", b"NOOP", b"RSET"}  # RFC 1939 section 5
    assert commands - OF_COMMAND.keys() == by_other_means | required


def test_what_is_announced():
    announced = capabilities(Authorization(OPEN))
    assert announced.keys() >= {
        b"TOP", b"UIDL", b"USER", b"SASL", b"RESP-CODES", b"AUTH-RESP-CODE", b"PIPELINING",
    }  # fmt: skip
    assert announced[b"SASL"] == [b"PLAIN"]
    assert not announced.keys() & {b"APOP", b"STLS", b"LANG", b"LAST", b"XTND", b"LOGIN-DELAY"}


def test_no_message_ever_expires():
    assert capabilities(Authorization(OPEN)).get(b"EXPIRE", [b"NEVER"]) == [b"NEVER"]


def test_the_implementation_has_no_version():
    words = capabilities(Authorization(OPEN)).get(b"IMPLEMENTATION", [])
    assert not any(c in b"0123456789" for word in words for c in word.replace(b"tpop3d", b""))


def test_plaintext_logins_are_announced_only_where_they_are_taken():
    announced = capabilities(Authorization(APOP_ONLY))
    assert not announced.keys() & {b"USER", b"SASL"}
    assert announced.keys() >= {b"TOP", b"UIDL", b"PIPELINING"}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_line_is_a_line_of_at_most_512_octets(policy):
    for line in said(Authorization(policy).handle(b"CAPA")).splitlines(keepends=True):
        assert len(line) <= 512
        assert line.endswith(b"\r\n")
        assert line == b".\r\n" or not line.startswith(b".")


def test_announced_commands_work_in_their_state():
    announced = capabilities(Authorization(OPEN))
    tried = {
        b"TOP": lambda: Transaction(Memory(b"a: b\n\n"), OPEN).handle(b"TOP 1 0"),
        b"UIDL": lambda: Transaction(Memory(b"a: b\n\n"), OPEN).handle(b"UIDL"),
        b"USER": lambda: Authorization(OPEN).handle(b"USER ann"),
        b"UTF8": lambda: Authorization(OPEN).handle(b"UTF8"),
    }
    for tag in announced.keys() & tried.keys():
        assert status(tried[tag]()) == b"+OK", tag
    for mechanism in announced[b"SASL"]:
        attempt = Authorization(OPEN).handle(b"AUTH %b " % mechanism + b64encode(b"\0ann\0secret"))
        assert isinstance(attempt, Attempt)


@pytest.mark.parametrize("state", [Authorization(OPEN), Transaction(Memory(), OPEN)])
def test_capa_takes_no_argument(state):
    assert status(state.handle(b"CAPA all")) == b"-ERR"
    assert status(state.handle(b"capa")) == b"+OK"


def test_utf8_is_a_command_of_the_first_state_only():
    state = Authorization(OPEN)
    assert status(state.handle(b"UTF8 on")) == b"-ERR"
    if b"UTF8" in capabilities(state):
        assert status(state.handle(b"UTF8")) == b"+OK"
    assert status(Transaction(Memory(), OPEN).handle(b"UTF8")) == b"-ERR"


def test_messages_are_sent_as_they_are_stored_with_utf8_and_without():
    # RFC 6856 would keep a message with 8-bit headers from a client that did not say UTF8. Such
    # mail is common, and few clients say UTF8: who cannot retrieve a message has lost it.
    login = b"USER ann\r\nPASS secret\r\n"
    for before in (b"", b"UTF8\r\n"):
        output = converse([before + login + b"RETR 1\r\nQUIT\r\n"], Memory(INTERNATIONAL)).output
        assert "Subject: gr\u00fc\u00dfe\r\n".encode() in output
