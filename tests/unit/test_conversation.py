"""The loop: gathering, limits, and what the command log may say."""

import os
import socket
import threading
from base64 import b64encode

import pytest

from mailsite import PATIENCE
from protocol import OPEN, TIMESTAMP, Memory, bytewise, converse, packets, wired
from tpop3d.pop3 import replies
from tpop3d.pop3.authorization import Authorization, Policy
from tpop3d.pop3.commands import MAX_COMMAND
from tpop3d.pop3.transaction import Transaction
from tpop3d.session.conversation import Conversation
from tpop3d.session.wire import EOF, TIMEOUT, Ended
from tpop3d.system import logs

MESSAGES = (b"Subject: one\n\nfirst\n", b"Subject: two\n\n.second\n")
LOGIN = b"USER ann\r\nPASS secret\r\n"
BAD = [b"XYZZY", b"", b":", b" ", b"x" * 300, b"NO\0OP", b"NOOP\r", b"STAT 1", b"TOP 1",
       b"USER ann", b"GET / HTTP/1.1", b"\x16\x03\x01"]  # fmt: skip
LAST_WORD = replies.TOO_MANY_BAD_COMMANDS.line + b"\r\n"


@pytest.fixture
def records():
    """A wire on which each send stays a record of its own: (wire, the client's socket)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    with ours, theirs, wired(theirs.fileno(), theirs.fileno()) as (wire, _):
        yield wire, ours


def run(wire, state):
    """How a conversation ends: an outcome, or a word of the wire's."""
    try:
        return Conversation(wire).run(state).outcome
    except Ended as ended:
        return ended.how


@pytest.mark.parametrize("commands", [1, 2, 50, 1000])
def test_replies_to_pipelined_commands_go_out_in_one_send(records, commands):
    wire, client = records
    client.send(b"NOOP\r\nSTAT\r\n" * commands)
    client.shutdown(socket.SHUT_WR)
    assert run(wire, Transaction(Memory(*MESSAGES), OPEN)) == EOF
    assert client.recv(1 << 20) == b"+OK\r\n+OK 2 48\r\n" * commands


def test_messages_go_out_with_their_status_line(records):
    wire, client = records
    client.send(b"RETR 1\r\nRETR 2\r\nLIST\r\n")
    client.shutdown(socket.SHUT_WR)
    assert run(wire, Transaction(Memory(*MESSAGES), OPEN)) == EOF
    sent = client.recv(1 << 20)
    assert sent.startswith(b"+OK 23 octets\r\nSubject: one\r\n")
    assert sent.count(b"\r\n.\r\n") == 3


def test_the_end_of_the_input_is_reached_with_every_reply_sent(records):
    wire, client = records
    client.send(b"NOOP\r\n")
    thread = threading.Thread(target=run, args=(wire, Transaction(Memory(), OPEN)))
    thread.start()
    assert client.recv(1 << 16) == b"+OK\r\n"
    client.send(b"NOOP\r\nST")
    assert client.recv(1 << 16) == b"+OK\r\n"
    client.send(b"AT\r\n")
    assert client.recv(1 << 16) == b"+OK 0 0\r\n"
    client.shutdown(socket.SHUT_WR)
    thread.join()


def test_no_command_runs_behind_quit(records):
    wire, client = records
    client.send(b"QUIT\r\nNOOP\r\n")
    assert run(wire, Authorization(OPEN)) == replies.CLOSE
    wire.flush()
    assert client.recv(1 << 16) == replies.GOODBYE.line + b"\r\n"


@pytest.mark.parametrize("feed", [lambda octets: [octets], bytewise], ids=["whole", "bytewise"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_is_refused_exactly_once(bad, feed):
    outcome = converse(feed(LOGIN + bad + b"\r\nSTAT\r\n"), Memory())
    assert [line.split()[0] for line in outcome.lines] == [b"+OK"] * 3 + [b"-ERR", b"+OK"]


@pytest.mark.parametrize("octet", [b"\0", b"\r"], ids=["NUL", "CR"])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_nul_and_cr_spoil_a_line_that_is_good_without_them(octet, end):
    refused = replies.MALFORMED_LINE.line + b"\r\n"
    name = b"USER an" + octet + b"n" + end
    password = b"USER ann\r\nPASS secret" + octet + b"x" + end
    login = converse([name + password + b"PASS secret\r\n"], Memory(), secret=b"secret" + octet)
    assert [login.lines[1], login.lines[3]] == [refused, refused]
    assert login.lines[4] == replies.USER_FIRST.line + b"\r\n"
    listing = converse([LOGIN + b"LIST 1" + octet + b"x" + end], Memory(*MESSAGES))
    assert listing.lines[3:] == [refused]


@pytest.mark.parametrize("length", [MAX_COMMAND - 1, MAX_COMMAND, MAX_COMMAND + 1, 5000])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_the_limit_of_a_command_line_is_exact(length, end):
    line = b"USER " + b"a" * (length - len(b"USER ") - len(end)) + end
    output = converse([line], Memory()).lines
    assert len(output) == 2
    assert output[1].startswith(b"+OK" if length <= MAX_COMMAND else b"-ERR")


def test_a_long_response_needs_its_own_line():
    response = b64encode(b"\0ann\0" + b"p" * 3000)
    one_line = converse([b"AUTH PLAIN " + response + b"\r\n"], Memory())
    assert one_line.lines[1] == replies.LINE_TOO_LONG.line + b"\r\n"
    two_lines = converse([b"AUTH PLAIN\r\n" + response + b"\r\nQUIT\r\n"], Memory(),
                         secret=b"p" * 3000)  # fmt: skip
    assert two_lines.lines[1] == b"+ \r\n"
    assert two_lines.lines[2].startswith(b"+OK")
    too_long = converse([b"AUTH PLAIN\r\n" + b"A" * 12287 + b"\r\nQUIT\r\n"], Memory())
    assert too_long.lines[2:] == [
        replies.LINE_TOO_LONG.line + b"\r\n", replies.GOODBYE.line + b"\r\n",
    ]  # fmt: skip


@pytest.mark.parametrize("login", [b"", LOGIN], ids=["before login", "after login"])
@pytest.mark.parametrize("bad", [b"XYZZY", b"x" * 300, b"NO\0OP"])
def test_twenty_bad_commands_in_a_row_end_the_session(login, bad):
    output = converse([login + (bad + b"\r\n") * 40 + b"QUIT\r\n"], Memory()).lines
    assert output[-1] == LAST_WORD
    assert sum(line.startswith(b"-ERR") for line in output) in (20, 21)


def test_the_last_bad_command_gets_one_answer_like_any_other():
    output = converse([b"XYZZY\r\n" * 20], Memory()).lines
    assert len(output) == 1 + 20


@pytest.mark.parametrize(("login", "good"), [(b"", b"CAPA"), (b"", b"USER ann"), (LOGIN, b"NOOP")])
def test_a_good_command_in_between_forgives_the_bad_ones(login, good):
    script = login + ((b"XYZZY\r\n" * 19) + good + b"\r\n") * 3 + b"QUIT\r\n"
    outcome = converse([script], Memory())
    assert LAST_WORD not in outcome.lines
    assert outcome.lines[-1] == replies.GOODBYE.line + b"\r\n"


def test_asking_for_an_absent_message_is_no_bad_command():
    outcome = converse([LOGIN + b"RETR 9\r\n" * 50 + b"QUIT\r\n"], Memory())
    assert outcome.lines[-1] == replies.GOODBYE.line + b"\r\n"


def test_an_idle_client_is_left_in_silence(records):
    wire, client = records
    wire.deadline = wire.now() + 0.05
    assert run(wire, Transaction(Memory(), OPEN)) == TIMEOUT
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)


@pytest.mark.parametrize(
    "command", [b"NOOP\r\n", b"XYZZY\r\n", b"RETR 9\r\n", b"x" * 300 + b"\r\n"]
)
def test_every_command_resets_the_idle_limit(records, command):
    wire, client = records
    wire.extension = 100.0
    client.send(command)
    client.shutdown(socket.SHUT_WR)
    assert run(wire, Transaction(Memory(), OPEN)) == EOF
    assert wire.deadline > wire.now() + 90


def test_before_login_the_deadline_stays_where_it_is(records):
    wire, client = records
    fixed = wire.deadline
    client.send(b"USER ann\r\nXYZZY\r\n")
    client.shutdown(socket.SHUT_WR)
    assert run(wire, Authorization(OPEN)) == EOF
    assert wire.deadline == fixed


# The command log

SECRET = b"s3cr3tpass"
DIGEST = b"c4c9334bac560ecc979e58001b3e22fb"
PLAIN = b64encode(b"\0ann\0" + SECRET)
SECRETS = [SECRET, PLAIN, PLAIN[8:20], b64encode(SECRET)[:12], DIGEST]
SCRIPTS = {
    "USER and PASS": b"USER ann\r\nPASS " + SECRET,
    "PASS without USER": b"PASS " + SECRET,
    "PASS after login": LOGIN + b"PASS " + SECRET,
    "lower case": b"user ann\r\npass " + SECRET,
    "two spaces": b"USER ann\r\nPASS  " + SECRET,
    "a space before": b"USER ann\r\n PASS " + SECRET,
    "a tab": b"USER ann\r\nPASS\t" + SECRET,
    "mistyped": b"USER ann\r\nPAS " + SECRET + b"\r\nPASSS " + SECRET + b"\r\nOASS " + SECRET,
    "no command": b"USER ann\r\n" + SECRET,
    "NUL in PASS": b"USER ann\r\nPASS " + SECRET + b"\0",
    "CR in PASS": b"USER ann\r\nPASS " + SECRET + b"\r\r\n",
    "lines that end in CR": b"USER ann\rPASS " + SECRET + b"\r\n",
    "USER and PASS around a NUL": b"USER ann\0PASS " + SECRET,
    "an overlong PASS": b"USER ann\r\nPASS " + SECRET * 40,
    "AUTH on one line": b"AUTH PLAIN " + PLAIN,
    "AUTH on two lines": b"AUTH PLAIN\r\n" + PLAIN,
    "AUTH after login": LOGIN + b"AUTH PLAIN " + PLAIN,
    "a response with NUL": b"AUTH PLAIN\r\n\0ann\0" + SECRET,
    "a response after a refusal": b"AUTH LOGIN\r\n" + b64encode(b"ann") + b"\r\n" + PLAIN,
    "AUTH mistyped": b"AUTHPLAIN " + PLAIN + b"\r\nAUTH" + PLAIN,
    "APOP": b"APOP ann " + DIGEST,
    "APOP mistyped": b"APOPP ann " + DIGEST + b"\r\nAPOP ann" + DIGEST.upper(),
}


@pytest.fixture
def verbose():
    logs.open_log("mail", "debug", to_stderr=True)
    yield
    logs.open_log("mail", "info", to_stderr=True)


@pytest.mark.parametrize("plaintext", [True, False])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.usefixtures("verbose")
def test_the_command_log_holds_no_secret(script, plaintext, capfd):
    converse([script + b"\r\nQUIT\r\n"], Memory(), Policy(TIMESTAMP, plaintext), SECRET)
    logged = capfd.readouterr().err.encode().lower()
    assert b"s: +ok" in logged
    assert [secret for secret in SECRETS if secret.lower() in logged] == []


@pytest.mark.usefixtures("verbose")
def test_a_response_is_a_secret_even_if_it_looks_like_a_command(capfd):
    converse([b"AUTH PLAIN\r\nUSER " + SECRET + b"\r\nQUIT\r\n"], Memory())
    assert SECRET.decode() not in capfd.readouterr().err


@pytest.mark.usefixtures("verbose")
def test_the_command_log_says_what_was_asked_and_answered(capfd):
    converse([LOGIN + b"LIST 7\r\nQUIT\r\n"], Memory())
    logged = capfd.readouterr().err
    wanted = ["C: USER ann", "C: PASS", "C: LIST 7", "S: -ERR no such message", "C: QUIT"]
    assert [one for one in wanted if one not in logged] == []


@pytest.mark.usefixtures("verbose")
def test_the_command_log_holds_no_mail(capfd):
    converse([LOGIN + b"RETR 1\r\nTOP 2 1\r\nQUIT\r\n"], Memory(*MESSAGES))
    logged = capfd.readouterr().err
    assert "S: +OK 23 octets" in logged
    assert "Subject" not in logged


def test_without_verbosity_no_command_is_logged(capfd):
    converse([LOGIN + b"STAT\r\nQUIT\r\n"], Memory())
    assert capfd.readouterr().err == ""


def test_the_packets_of_these_tests_arrive_one_by_one():
    with packets([b"a", b"bc", b"d"]) as fd:
        assert [os.read(fd, 100) for _ in range(4)] == [b"a", b"bc", b"d", b""]
