"""The AUTHORIZATION state: which lines make a login attempt, and which only a refusal."""

from base64 import b64encode

import pytest

from protocol import OPEN, TIMESTAMP, said, status
from tpop3d.pop3 import replies, transaction
from tpop3d.pop3.authorization import COMMANDS, Attempt, Authorization, Policy

APOP = Policy(TIMESTAMP, plaintext=True)
APOP_ONLY = Policy(TIMESTAMP, plaintext=False)
DIGEST = b"c4c9334bac560ecc979e58001b3e22fb"  # RFC 1939's own: of TIMESTAMP and "tanstaaf"
PLAIN = b64encode(b"\0ann\0secret")
ANN = ("USER", b"ann", b"secret")
ANN_PLAIN = ("PLAIN", b"ann", b"secret")
OK, ERR = b"+OK", b"-ERR"


def talk(*lines, policy=OPEN):
    """The status word of each answer; of an attempt what it says."""
    state = Authorization(policy)
    answers = [state.handle(line) for line in lines]
    return [said(one) if isinstance(one, Attempt) else status(one) for one in answers]


def test_user_and_pass_make_an_attempt():
    assert talk(b"USER ann", b"PASS secret") == [OK, ANN]


def test_keywords_are_case_insensitive_and_arguments_are_not():
    assert talk(b"uSeR Ann", b"pAsS Secret") == [OK, ("USER", b"Ann", b"Secret")]


@pytest.mark.parametrize(
    "password", [b"two words", b" leading", b"trailing ", b"  ", b"=", b"*", b"\xff\xfe", b"a\tb"]
)
def test_the_password_is_the_rest_of_the_line(password):
    assert talk(b"USER ann", b"PASS " + password) == [OK, ("USER", b"ann", password)]


def test_an_empty_password_is_an_attempt_with_an_empty_password():
    attempt = (state := Authorization(OPEN)).handle(b"USER ann") and state.handle(b"PASS ")
    assert isinstance(attempt, Attempt)
    assert attempt.password == b""


BETWEEN = [
    b"NOOP", b"CAPA", b"UTF8", b"STAT", b"XYZZY", b"", b":", b"USER", b"USER ", b"AUTH",
    b"AUTH CRAM-MD5", b"AUTH PLAIN =", b"QUIT now", b"PASS", b"APOP ann", b"RSET",
]  # fmt: skip


@pytest.mark.parametrize("line", BETWEEN)
def test_pass_must_follow_its_user_immediately(line):
    assert talk(b"USER ann", line, b"PASS secret")[2] == ERR
    assert talk(b"USER ann", line, b"USER ann", b"PASS secret")[3] == ANN


def test_pass_without_user_is_refused():
    assert talk(b"PASS secret") == [ERR]
    assert said(Authorization(OPEN).handle(b"PASS secret")) == replies.USER_FIRST.line + b"\r\n"


def test_the_last_user_counts():
    assert talk(b"USER bob", b"USER ann", b"PASS secret") == [OK, OK, ANN]


def test_one_user_is_good_for_one_attempt():
    assert talk(b"USER ann", b"PASS wrong", b"PASS secret")[2] == ERR


@pytest.mark.parametrize("reply", [replies.LINE_TOO_LONG, replies.MALFORMED_LINE])
def test_a_line_that_cannot_be_read_comes_between_user_and_pass_too(reply):
    state = Authorization(OPEN)
    state.handle(b"USER ann")
    assert state.refuse_line(reply) is reply
    assert state.handle(b"PASS secret") is replies.USER_FIRST


HTTP = [
    b"GET / HTTP/1.1", b"POST /x?y HTTP/1.0", b"GET /", b"GET", b"OPTIONS * HTTP/1.1",
    b"PRI * HTTP/2.0", b"PUT http://example.org/ HTTP/1.1", b"USER /ann HTTP/1.1",
    b"ANYTHING / HTTP/1.1", b"CONNECT localhost:110 HTTP/1.1",
]  # fmt: skip


@pytest.mark.parametrize("line", HTTP)
def test_http_ends_the_connection_where_it_comes_first_and_only_there(line):
    assert Authorization(OPEN).handle(line) is replies.NOT_HTTP
    for reply in (replies.LINE_TOO_LONG, replies.MALFORMED_LINE):
        assert Authorization(OPEN).refuse_line(reply, line) is replies.NOT_HTTP
        state = Authorization(OPEN)
        state.refuse_line(reply, b"x")
        assert state.refuse_line(reply, line) is reply
    state = Authorization(OPEN)
    state.handle(b"CAPA")
    assert state.handle(line) is not replies.NOT_HTTP


@pytest.mark.parametrize(
    "line",
    [b"USER /ann", b"get", b"", b"/ HTTP/1.1", b"QUIT", b"AUTH PLAIN =", b"GETA x"],
)
def test_what_is_no_http_is_answered_as_ever(line):
    assert Authorization(OPEN).handle(line) is not replies.NOT_HTTP


def test_the_answer_to_user_is_the_same_for_every_name():
    names = [b"ann", b"root", b"nobody-of-this-name", b"a b", b"../x", b"x" * 200, b"\xff"]
    assert {said(Authorization(OPEN).handle(b"USER " + name)) for name in names} == {
        said(replies.SEND_PASS)
    }


@pytest.mark.parametrize("command", sorted(transaction.COMMANDS.keys() - COMMANDS.keys()))
def test_commands_of_the_other_state_are_refused(command):
    assert talk(command, command + b" 1") == [ERR, ERR]


@pytest.mark.parametrize("command", [b"", b":", b" ", b"XTND", b"LAST", b"RPOP", b"STLS", b"GET /"])
def test_what_is_no_command_is_refused(command):
    assert talk(command) == [ERR]


# APOP


def test_apop_makes_an_attempt_with_the_banners_timestamp():
    attempt = Authorization(APOP).handle(b"APOP mrose " + DIGEST)
    assert said(attempt) == ("APOP", b"mrose", DIGEST)
    assert attempt.timestamp == TIMESTAMP
    assert attempt.password is None


@pytest.mark.parametrize(
    "argument",
    [b"", b" ann", b" ann ", b" " + DIGEST, b"  " + DIGEST, b" ann " + DIGEST.upper(),
     b" ann " + DIGEST[:-1], b" ann " + DIGEST + b"0", b" ann " + DIGEST[:16] + b"g" + DIGEST[17:],
     b" ann " + DIGEST + b" ", b" ann " + b" " * 32],
)  # fmt: skip
def test_a_malformed_apop_is_refused(argument):
    assert talk(b"APOP" + argument, policy=APOP) == [ERR]


def test_apop_without_a_timestamp_in_the_banner_is_refused():
    assert talk(b"APOP mrose " + DIGEST) == [ERR]


# AUTH


def test_plain_on_one_line():
    assert talk(b"AUTH PLAIN " + PLAIN) == [ANN_PLAIN]
    assert talk(b"auth plain " + PLAIN) == [ANN_PLAIN]


def test_plain_on_two_lines():
    assert talk(b"AUTH PLAIN", PLAIN) == [b"+", ANN_PLAIN]


def test_the_empty_challenge_keeps_its_space():
    assert said(Authorization(OPEN).handle(b"AUTH PLAIN")) == b"+ \r\n"


def test_an_equals_sign_is_an_initial_response_of_no_octets():
    state = Authorization(OPEN)
    assert state.handle(b"AUTH PLAIN =") is replies.SASL_MALFORMED  # PLAIN knows no such message
    assert not state.confidential
    assert state.handle(b"AUTH PLAIN") is replies.SASL_CONTINUE
    assert state.handle(b"") is replies.SASL_MALFORMED


REFUSED_RESPONSES = {
    "cancelled": b"*",
    "no base64": b"!!!!",
    "cut base64": PLAIN[:-1],
    "equals sign": b"=",
    "equals signs alone": b"====",
    "an equals sign too many": PLAIN + b"=",
    "four equals signs too many": PLAIN + b"====",
    "equals signs behind a whole response": b64encode(b"\0ann\0secr") + b"====",
    "cancelled with padding": b"*===",
    "empty": b"",
    "a command": b"QUIT",
    "no PLAIN message": b64encode(b"ann"),
    "acting for another": b64encode(b"root\0ann\0secret"),
    "a name with LF": b64encode(b"\0a\nn\0secret"),
    "a name with CR": b64encode(b"\0a\rn\0secret"),
    "two NULs in a row": b64encode(b"\0\0secret"),
    "four parts": b64encode(b"\0ann\0secret\0"),
}


@pytest.mark.parametrize("response", REFUSED_RESPONSES.values(), ids=REFUSED_RESPONSES)
def test_a_refused_response_leaves_a_clean_state(response):
    state = Authorization(OPEN)
    assert state.handle(b"AUTH PLAIN") is replies.SASL_CONTINUE
    assert status(state.handle(response)) == ERR
    assert not state.confidential
    assert state.handle(b"PASS secret") is replies.USER_FIRST
    assert state.handle(b"USER ann") is replies.SEND_PASS
    assert said(state.handle(b"PASS secret")) == ANN


@pytest.mark.parametrize("response", REFUSED_RESPONSES.values(), ids=REFUSED_RESPONSES)
def test_a_refused_response_is_refused_on_the_line_of_the_command_too(response):
    if response:
        assert talk(b"AUTH PLAIN " + response, b"AUTH PLAIN " + PLAIN) == [ERR, ANN_PLAIN]


def test_a_cancelled_exchange_says_so():
    state = Authorization(OPEN)
    state.handle(b"AUTH PLAIN")
    assert state.handle(b"*") is replies.SASL_CANCELLED


def test_auth_forgets_the_name_of_user():
    assert talk(b"USER ann", b"AUTH PLAIN", b"*", b"PASS secret") == [OK, b"+", ERR, ERR]


@pytest.mark.parametrize("reply", [replies.LINE_TOO_LONG, replies.MALFORMED_LINE])
def test_a_response_that_cannot_be_read_ends_the_exchange(reply):
    state = Authorization(OPEN)
    state.handle(b"AUTH PLAIN")
    assert state.confidential
    assert state.refuse_line(reply) is reply
    assert not state.confidential
    assert state.limit == 255
    assert state.handle(PLAIN) is replies.UNKNOWN_COMMAND


def test_only_a_response_may_be_long():
    state = Authorization(OPEN)
    assert state.limit == 255
    state.handle(b"AUTH PLAIN")
    assert state.limit == 12288
    long_one = b"\0ann\0" + b"p" * 8000
    assert said(state.handle(b64encode(long_one))) == ("PLAIN", b"ann", b"p" * 8000)
    assert state.limit == 255


@pytest.mark.parametrize(
    "line",
    [b"AUTH CRAM-MD5", b"AUTH LOGIN", b"AUTH " + PLAIN, b"AUTH PLAIN2", b"AUTH  PLAIN",
     b"AUTH PLAIN " + PLAIN + b" x", b"AUTH \xff", b"AUTH PLAIN  " + PLAIN],
)  # fmt: skip
def test_other_forms_of_auth_are_refused(line):
    assert talk(line) == [ERR]


def test_bare_auth_lists_the_mechanisms():
    assert said(Authorization(OPEN).handle(b"AUTH")).endswith(b"\r\nPLAIN\r\n.\r\n")


# Policy


@pytest.mark.parametrize(
    "line", [b"USER ann", b"PASS secret", b"AUTH PLAIN", b"AUTH PLAIN " + PLAIN]
)
def test_without_plaintext_logins_every_way_is_refused(line):
    assert talk(line, policy=APOP_ONLY) == [ERR]
    assert talk(b"USER ann", line, b"PASS secret", policy=APOP_ONLY) == [ERR] * 3
    assert talk(line, b"APOP mrose " + DIGEST, policy=APOP_ONLY)[1] == ("APOP", b"mrose", DIGEST)


def test_without_plaintext_logins_bare_auth_lists_nothing():
    assert b"PLAIN" not in said(Authorization(APOP_ONLY).handle(b"AUTH"))


# QUIT


def test_quit_says_goodbye_and_never_updates():
    assert Authorization(OPEN).handle(b"QUIT") is replies.GOODBYE
    assert replies.GOODBYE.outcome == replies.CLOSE


def test_quit_takes_no_argument():
    assert Authorization(OPEN).handle(b"QUIT now").outcome == replies.BAD


def test_an_attempt_shows_no_secret():
    secret = Attempt("USER", b"ann", password=b"s3cr3t")
    assert "s3cr3t" not in repr(secret) + str(secret) + f"{secret}"
    assert DIGEST.decode() not in repr(Authorization(APOP).handle(b"APOP mrose " + DIGEST))
