"""Every reply line: its form, its length and its response code."""

import os
import re

import pytest

from protocol import status
from tpop3d.pop3 import replies
from tpop3d.pop3.replies import Reply
from tpop3d.privsep.monitor import apop_timestamp

CONSTANTS = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}
LINES = {
    **{name: one.line for name, one in CONSTANTS.items() if one is not replies.QUIT_RECEIVED},
    "greeting": replies.greeting(b"").line,
    "greeting with APOP": replies.greeting(b"<" + b"9" * 200 + b"@" + b"h" * 64 + b">").line,
    "login": replies.logged_in(0, 0).line,
    "large login": replies.logged_in(10**10, 10**18).line,
}
CODES = {"IN-USE", "LOGIN-DELAY", "AUTH", "SYS/TEMP", "SYS/PERM", "UTF8"}
CREDENTIALS_WERE_WRONG = {"LOGIN_FAILED", "LOGIN_FAILED_LAST"}


def code_of(line):
    """The response code of a reply, without its brackets, or ""."""
    text = line.decode("ascii").partition(" ")[2]
    return text[1 : text.index("]")] if text.startswith("[") else ""


@pytest.mark.parametrize("name", LINES)
def test_a_line_has_at_most_512_octets(name):
    assert len(LINES[name] + b"\r\n") <= 512


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_a_status_word_and_plain_text(name):
    line = LINES[name]
    if line != b"+ ":
        assert re.fullmatch(rb"(\+OK|-ERR)( [!-~]+)*", line)


@pytest.mark.parametrize("name", LINES)
def test_text_in_brackets_is_a_known_code_of_a_failure(name):
    code = code_of(LINES[name])
    assert code in CODES | {""}
    assert not (code and LINES[name].startswith(b"+"))


def test_auth_is_said_of_wrong_credentials_and_of_nothing_else():
    assert {name for name in LINES if code_of(LINES[name]) == "AUTH"} == CREDENTIALS_WERE_WRONG


def test_who_could_not_be_checked_is_not_told_that_it_was_wrong():
    assert code_of(replies.LOGIN_UNDECIDED.line) == "SYS/TEMP"


@pytest.mark.parametrize(
    ("reply", "code"),
    [(replies.MAILDROP_IN_USE, "IN-USE"), (replies.MAILDROP_TROUBLE, "SYS/TEMP"),
     (replies.MAILDROP_REFUSED, "SYS/PERM"), (replies.SERVER_MISCONFIGURED, "SYS/PERM"),
     (replies.SERVER_NOT_READY, "SYS/TEMP"),
     (replies.NOTHING_REMOVED, "SYS/TEMP"), (replies.INTERNAL_ERROR, "SYS/TEMP")],
)  # fmt: skip
def test_trouble_has_its_code(reply, code):
    assert status(reply) == b"-ERR"
    assert code_of(reply.line) == code


def test_only_one_reply_leads_to_update_and_it_is_no_line():
    assert [name for name, one in CONSTANTS.items() if one.outcome == replies.UPDATE] == [
        "QUIT_RECEIVED"
    ]
    assert replies.QUIT_RECEIVED.line == b""


def test_both_answers_to_a_failed_login_are_alike():
    assert replies.LOGIN_FAILED.line == replies.LOGIN_FAILED_LAST.line


def test_constants_hold_no_body_that_could_be_used_up():
    assert {one.body for one in CONSTANTS.values()} == {None}


HOSTS = ["mail", "mail.example.org", "h" * 64, "a_b", "", "..", "k\u00e4the", "a b<c>@d"]


@pytest.mark.parametrize("host", HOSTS)
def test_the_timestamp_is_a_msg_id_on_every_host(monkeypatch, host):
    uname = os.uname()
    fields = [*uname]
    fields[1] = host
    monkeypatch.setattr(os, "uname", lambda: type(uname)(fields))
    line = replies.greeting(apop_timestamp()).line
    assert re.fullmatch(rb"\+OK [^<>@]*<[0-9]+\.[0-9]+@[!-;=?A-~]+>", line)
    assert len(line) + 2 <= 512


def test_no_two_timestamps_are_the_same():
    assert len({apop_timestamp() for _ in range(1000)}) == 1000


def test_without_apop_the_greeting_has_no_timestamp():
    assert b"<" not in replies.greeting(b"").line
