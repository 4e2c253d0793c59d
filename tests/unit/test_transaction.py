"""The TRANSACTION state: every command on a maildrop in memory."""

import pytest

from protocol import OPEN, Memory, as_sent, said, status, unstuffed
from tpop3d.pop3 import authorization, replies
from tpop3d.pop3.transaction import COMMANDS, Transaction

MESSAGES = (
    b"Subject: one\n\nfirst\n",  # 23 octets
    b"Subject: two\r\n\r\n.dot\r\n..\r\nlast",
    b"",
    b"Subject: four\n\n" + b"line\n" * 30,
)
SIZES = [23, 32, 0, 197]
OK, ERR = b"+OK", b"-ERR"
WORDS = [
    b"0", b"00", b"5", b"05", b"00000000001", b"-1", b"+1", b"one", b"1.0", b"99999999999",
    b"4294967297", b"\xb2",
]  # fmt: skip


@pytest.fixture
def state():
    return Transaction(Memory(*MESSAGES), OPEN)


def ask(state, line):
    return said(state.handle(line))


def ask_long(state, line):
    first, _, rest = ask(state, line).partition(b"\r\n")
    assert first.split()[0] == OK
    return unstuffed(rest)


def test_stat_counts_messages_and_octets(state):
    assert ask(state, b"STAT") == b"+OK 4 %d\r\n" % sum(SIZES)


def test_sizes_are_what_retr_sends(state):
    for n, content in enumerate(MESSAGES, 1):
        retrieved = ask_long(state, b"RETR %d" % n)
        assert retrieved == as_sent(content)
        assert ask(state, b"LIST %d" % n) == b"+OK %d %d\r\n" % (n, len(retrieved))
        assert len(retrieved) == SIZES[n - 1]


def test_list_has_one_line_a_message(state):
    assert ask_long(state, b"LIST") == b"1 23\r\n2 32\r\n3 0\r\n4 197\r\n"


def test_uidl_has_one_line_a_message(state):
    assert ask_long(state, b"UIDL") == b"1 id-1\r\n2 id-2\r\n3 id-3\r\n4 id-4\r\n"
    assert ask(state, b"UIDL 2") == b"+OK 2 id-2\r\n"


def test_keywords_are_case_insensitive(state):
    assert ask(state, b"sTaT") == ask(state, b"STAT")


def test_deleted_messages_are_not_listed_and_numbers_stay(state):
    assert ask(state, b"DELE 2").startswith(OK)
    assert ask(state, b"STAT") == b"+OK 3 %d\r\n" % (sum(SIZES) - 32)
    assert ask_long(state, b"LIST") == b"1 23\r\n3 0\r\n4 197\r\n"
    assert ask_long(state, b"UIDL") == b"1 id-1\r\n3 id-3\r\n4 id-4\r\n"
    assert ask(state, b"LIST 4") == b"+OK 4 197\r\n"
    assert list(state.deleted) == [0, 1, 0, 0]
    assert (state.left, state.left_octets) == (3, sum(SIZES) - 32)


@pytest.mark.parametrize("command", [b"RETR 2", b"TOP 2 0", b"DELE 2", b"LIST 2", b"UIDL 2"])
def test_a_deleted_message_is_absent(state, command):
    assert status(state.handle(command)) == OK
    if command != b"DELE 2":
        assert status(state.handle(b"DELE 2")) == OK
    assert state.handle(command) is replies.NO_SUCH_MESSAGE
    assert list(state.deleted) == [0, 1, 0, 0]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("command", [b"RETR %b", b"TOP %b 1", b"DELE %b", b"LIST %b", b"UIDL %b"])
def test_what_names_no_message_is_refused(state, command, word):
    assert status(state.handle(command % word)) == ERR
    assert ask(state, b"STAT") == b"+OK 4 %d\r\n" % sum(SIZES)


@pytest.mark.parametrize("command", [b"RETR %b", b"TOP %b 1", b"DELE %b", b"LIST %b", b"UIDL %b"])
@pytest.mark.parametrize("word", [b"02", b"002", b"0000000002"])
def test_leading_zeros_change_no_number(command, word):
    plain, padded = Transaction(Memory(*MESSAGES), OPEN), Transaction(Memory(*MESSAGES), OPEN)
    answer = said(plain.handle(command % b"2"))
    assert answer.startswith(OK)
    assert said(padded.handle(command % word)) == answer
    assert padded.deleted == plain.deleted


def test_leading_zeros_change_no_number_of_lines(state):
    assert ask(state, b"TOP 1 00") == ask(state, b"TOP 1 0")
    assert ask(state, b"TOP 4 0000000002") == ask(state, b"TOP 4 2")


def test_a_listing_of_nothing_is_a_status_and_a_dot(state):
    empty = Transaction(Memory(), OPEN)
    for n in range(1, 5):
        state.handle(b"DELE %d" % n)
    for one in (empty, state):
        for command in (b"LIST", b"UIDL"):
            assert ask(one, command).split(b"\r\n", 1)[1] == b".\r\n"
        assert ask(one, b"STAT") == b"+OK 0 0\r\n"


def test_long_listings_are_complete():
    state = Transaction(Memory(*[b"x\n"] * 3000), OPEN)
    state.handle(b"DELE 1024")
    state.handle(b"DELE 1025")
    numbers = [n for n in range(1, 3001) if n not in (1024, 1025)]
    assert ask_long(state, b"LIST") == b"".join(b"%d 3\r\n" % n for n in numbers)
    assert ask_long(state, b"UIDL") == b"".join(b"%d id-%d\r\n" % (n, n) for n in numbers)


def test_rset_undeletes_everything(state):
    for n in (1, 4):
        state.handle(b"DELE %d" % n)
    assert ask(state, b"RSET").startswith(OK)
    assert not any(state.deleted)
    assert ask(state, b"STAT") == b"+OK 4 %d\r\n" % sum(SIZES)
    assert ask(state, b"DELE 1").startswith(OK)


def test_top_shows_headers_and_lines(state):
    assert ask_long(state, b"TOP 4 0") == b"Subject: four\r\n\r\n"
    assert ask_long(state, b"TOP 4 2") == b"Subject: four\r\n\r\nline\r\nline\r\n"
    assert ask_long(state, b"TOP 4 9999999999") == as_sent(MESSAGES[3])
    assert ask_long(state, b"TOP 2 1") == b"Subject: two\r\n\r\n.dot\r\n"
    assert b"\r\n..dot\r\n.\r\n" in ask(state, b"TOP 2 1")


@pytest.mark.parametrize(
    "line", [b"TOP 1", b"TOP 1 ", b"TOP", b"TOP 1 -1", b"TOP 1 x", b"TOP 1 1 1",
             b"TOP 1 00000000001", b"TOP  1 1", b"TOP 1  1", b"TOP 1 10000000000"],
)  # fmt: skip
def test_top_wants_a_message_and_a_number_of_lines(state, line):
    assert status(state.handle(line)) == ERR


@pytest.mark.parametrize("command", [b"STAT", b"NOOP", b"RSET", b"CAPA", b"QUIT"])
def test_commands_without_arguments_take_none(state, command):
    state.handle(b"DELE 1")
    assert state.handle(command + b" 1") is replies.WRONG_ARGUMENTS
    assert state.deleted[0] == 1


@pytest.mark.parametrize("command", [b"RETR", b"DELE"])
@pytest.mark.parametrize("rest", [b"", b" ", b" 1 2", b"  1", b" 1 "])
def test_retr_and_dele_take_one_argument(state, command, rest):
    assert status(state.handle(command + rest)) == ERR
    assert not any(state.deleted)


@pytest.mark.parametrize("line", [b"LIST 1 2", b"UIDL 1 2", b"LIST  1", b"UIDL  1"])
def test_listings_take_one_argument_at_most(state, line):
    assert status(state.handle(line)) == ERR


FOREIGN = authorization.COMMANDS.keys() - COMMANDS.keys()


@pytest.mark.parametrize(
    "command", sorted(FOREIGN | {b"LAST", b"XTND", b"RPOP", b"STLS", b"", b":", b"X" * 200})
)
def test_other_commands_are_refused(state, command):
    assert state.handle(command) is replies.UNKNOWN_COMMAND
    assert state.handle(command + b" ann") is replies.UNKNOWN_COMMAND


def test_noop_does_nothing_and_says_ok(state):
    assert ask(state, b"NOOP").startswith(OK)


def test_only_quit_leads_to_update(state):
    lines = [b"STAT", b"LIST", b"UIDL", b"RETR 1", b"TOP 1 0", b"DELE 1", b"NOOP", b"RSET", b"CAPA",
             b"quit now", b"QUIT\t", b"XQUIT", b"USER ann", b"AUTH"]  # fmt: skip
    assert {state.handle(line).outcome for line in lines} <= {replies.CONTINUE, replies.BAD}
    assert state.handle(b"quit").outcome == replies.UPDATE


@pytest.mark.parametrize("command", [b"RETR 1", b"TOP 1 0", b"UIDL", b"UIDL 1"])
def test_a_changed_maildrop_ends_the_session_before_anything_is_sent(command):
    maildrop = Memory(*MESSAGES)
    state = Transaction(maildrop, OPEN)
    maildrop.why_changed = "it became shorter"
    assert state.handle(command) is replies.MAILDROP_CHANGED
    assert replies.MAILDROP_CHANGED.outcome == replies.BROKEN


def test_what_was_sent_to_the_end_is_tallied(state):
    ask(state, b"RETR 1")
    ask(state, b"RETR 2")
    ask(state, b"RETR 9")
    ask(state, b"TOP 4 0")
    cut_off = iter(state.handle(b"RETR 4").body)
    next(cut_off)
    assert str(state.retrieved) == "2/55"
    assert str(state.topped) == "1/17"


def test_nothing_is_marked_by_a_line_that_cannot_be_read(state):
    state.handle(b"DELE 1")
    assert state.refuse_line(replies.LINE_TOO_LONG) is replies.LINE_TOO_LONG
    assert list(state.deleted) == [1, 0, 0, 0]
