"""Whole sessions with the real server: who gets in, and what they find."""

import os
import time
from base64 import b64encode
from hashlib import md5

import pytest

import doors
from mailsite import PATIENCE
from protocol import as_sent, run_server, unstuffed
from samples import spool_of

MESSAGES = [
    b"Subject: one\n\nfirst\n",
    b"Subject: two\n\n.dot\n..\n\n.\n",
    b"Subject: three\r\n\r\ncr\rlf\r\n",
    b"Subject: four\n\nno newline at the end",
]
SPOOL = spool_of(MESSAGES)
PLAIN = b64encode(b"\0ann\0secret")
WRONG = b64encode(b"\0ann\0wrong")
LOGIN = b"USER ann\r\nPASS secret\r\n"
AUTH_ERR = b"-ERR [AUTH] "


@pytest.fixture
def ann(site):
    """A site with one user and no delay after a failed login."""
    site.configure({"auth-failure-delay-seconds": 0})
    site.add("ann", SPOOL)
    return site


@pytest.fixture
def wire(ann, inetd):
    """A conversation on a socket pair, or on pipes, that starts behind the greeting."""
    inetd.greeting = inetd.line()
    assert inetd.greeting.startswith(b"+OK")
    return inetd


def ended(wire):
    """Wait for the end of the server; returns its last log line."""
    assert wire.line() == b""
    assert wire.process.wait(PATIENCE) == 0
    return wire.logs.wait_for(": session ")


# Ways to log in


def apop(wire, secret=b"secret"):
    timestamp = wire.greeting[wire.greeting.index(b"<") : wire.greeting.index(b">") + 1]
    return "APOP ann " + md5(timestamp + secret, usedforsecurity=False).hexdigest()


WAYS = {
    "USER": lambda wire: [wire.ask("USER ann"), wire.ask("PASS secret")],
    "user": lambda wire: [wire.ask("user ann"), wire.ask("pass secret")],
    "APOP": lambda wire: [wire.ask(apop(wire))],
    "PLAIN on one line": lambda wire: [wire.ask(f"AUTH PLAIN {PLAIN.decode()}")],
    "PLAIN on two lines": lambda wire: [wire.ask("AUTH PLAIN"), wire.ask(PLAIN.decode())],
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_log_in(wire, way):
    replies = WAYS[way](wire)
    assert [reply[:1] for reply in replies] == [b"+"] * len(replies)
    assert b"4 messages" in replies[-1]
    assert wire.ask("STAT") == b"+OK 4 %d\r\n" % sum(len(as_sent(one)) for one in MESSAGES)
    assert wire.ask("QUIT").startswith(b"+OK")
    assert f"method={way.split()[0].upper()} " in ended(wire)


def test_ways_not_to_log_in(wire):
    assert wire.ask("PASS secret").startswith(b"-ERR")
    wire.ask("USER ann")
    wire.ask("CAPA")
    while wire.line() != b".\r\n":
        pass
    assert wire.ask("PASS secret").startswith(b"-ERR")
    assert wire.ask("AUTH PLAIN =").startswith(b"-ERR")
    assert wire.ask("AUTH PLAIN") == b"+ \r\n"
    assert wire.ask("*").startswith(b"-ERR")
    assert wire.ask("AUTH PLAIN") == b"+ \r\n"
    assert wire.ask("!no base64!").startswith(b"-ERR")
    assert wire.ask("STAT").startswith(b"-ERR")
    assert [reply[:3] for reply in WAYS["USER"](wire)] == [b"+OK"] * 2
    assert [wire.ask(one)[:4] for one in ("USER ann", "PASS secret", "AUTH PLAIN")] == [b"-ERR"] * 3
    assert wire.ask("AUTH PLAIN " + PLAIN.decode()).startswith(b"-ERR")


FAILURES = {
    "wrong password": lambda wire: [wire.ask("USER ann"), wire.ask("PASS wrong")],
    "unknown user": lambda wire: [wire.ask("USER zoe"), wire.ask("PASS secret")],
    "no password": lambda wire: [wire.ask("USER ann"), wire.ask("PASS ")],
    "APOP": lambda wire: [wire.ask(apop(wire, b"wrong"))],
    "PLAIN": lambda wire: [wire.ask("AUTH PLAIN " + WRONG.decode())],
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_three_failed_logins_end_the_connection(wire, failure):
    replies = [failure(wire) for _ in range(3)]
    assert len({reply[-1] for reply in replies}) == 1
    assert replies[0][-1].startswith(AUTH_ERR)
    assert " end=error" in ended(wire)


def test_a_known_and_an_unknown_name_get_the_same_answers(wire):
    assert FAILURES["unknown user"](wire) == FAILURES["wrong password"](wire)


def test_after_two_failed_logins_the_third_may_be_good(wire):
    for _ in range(2):
        assert FAILURES["wrong password"](wire)[-1].startswith(AUTH_ERR)
    assert wire.ask("PASS secret").startswith(b"-ERR")  # the name is forgotten
    assert WAYS["USER"](wire)[-1].startswith(b"+OK")


def test_a_failed_login_is_answered_after_a_pause(ann):
    ann.configure({"auth-failure-delay-seconds": 1})
    with doors.inetd(ann) as wire:
        wire.line()
        started = time.monotonic()
        assert FAILURES["wrong password"](wire)[-1].startswith(AUTH_ERR)
        assert time.monotonic() - started >= 0.9


def test_what_cannot_be_checked_is_no_failed_login(ann):
    ann.passwd.unlink()
    output, _ = run_server(ann, [LOGIN * 4 + b"QUIT\r\n"])
    assert output.count(b"-ERR [SYS/TEMP] ") == 4
    assert b"[AUTH]" not in output
    assert output.splitlines()[-1].startswith(b"+OK")


@pytest.mark.parametrize("way", ["USER", "PLAIN on one line", "PLAIN on two lines"])
def test_with_apop_only_no_plaintext_login_is_possible(ann, way):
    ann.configure({"apop-only": "yes"})
    with doors.inetd(ann) as wire:
        wire.greeting = wire.line()
        assert {reply[:4] for reply in WAYS[way](wire)} == {b"-ERR"}
        assert WAYS["APOP"](wire)[-1].startswith(b"+OK")


def test_a_second_session_is_told_that_the_maildrop_is_in_use_only_if_it_may_know(ann):
    with doors.inetd(ann) as first:
        first.login("ann")
        output, _ = run_server(ann, [b"USER ann\r\nPASS wrong\r\n" + LOGIN + b"STAT\r\n"])
        assert first.ask("QUIT").startswith(b"+OK")
    replies = output.splitlines()
    assert replies[2].startswith(AUTH_ERR)
    assert replies[4].startswith(b"-ERR [IN-USE] ")
    assert len(replies) == 5


# What is in a session


def test_every_message_arrives_as_it_is_listed(wire):
    WAYS["USER"](wire)
    for n, content in enumerate(MESSAGES, 1):
        wire.send(b"RETR %d\r\n" % n)
        assert wire.line().startswith(b"+OK")
        body = []
        while not body or body[-1] != b".\r\n":
            body.append(wire.line())
        assert unstuffed(b"".join(body)) == as_sent(content)
        assert wire.ask(f"LIST {n}") == b"+OK %d %d\r\n" % (n, len(as_sent(content)))
        assert as_sent(content).startswith(wire.ask_long(f"TOP {n} 1")[1])
    assert len(set(wire.ask_long("UIDL")[1].split()[1::2])) == len(MESSAGES)


def test_capa_is_the_same_in_both_states(wire):
    before = wire.ask_long("CAPA")
    WAYS["USER"](wire)
    assert wire.ask_long("CAPA") == before
    assert before[0].startswith(b"+OK")


def test_unique_ids_persist(ann):
    script = LOGIN + b"UIDL\r\nDELE 2\r\nQUIT\r\n"
    first, second = (run_server(ann, [script])[0].split(b"follow\r\n")[1] for _ in range(2))
    ids = [line.split()[1] for line in first.splitlines()[:4]]
    assert [line.split()[1] for line in second.splitlines()[:3]] == [ids[0], ids[2], ids[3]]


def test_new_mail_waits_for_the_next_session_and_is_not_removed(ann, wire):
    WAYS["USER"](wire)
    new = b"Subject: five\n\nnew\n"
    with ann.spool("ann").open("ab") as spool:
        spool.write(b"\n\n" + spool_of([new]))
    assert wire.ask("STAT").startswith(b"+OK 4 ")
    assert wire.ask("RETR 5").startswith(b"-ERR")
    for n in range(1, 5):
        assert wire.ask(f"DELE {n}").startswith(b"+OK")
    assert wire.ask("QUIT").startswith(b"+OK")
    assert ann.spool("ann").read_bytes().strip(b"\n") == spool_of([new]).strip(b"\n")


def test_a_maildrop_without_a_spool_is_empty(ann):
    ann.spool("ann").unlink()
    output, _ = run_server(ann, [LOGIN + b"STAT\r\nLIST\r\nQUIT\r\n"])
    assert output.splitlines()[3] == b"+OK 0 0"
    assert output.splitlines()[5] == b"."
    assert not ann.spool("ann").exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_spool_is_for_the_administrator_to_mend(ann, make):
    ann.spool("ann").unlink()
    make(ann.spool("ann"))
    ann.give_to_mail_user(ann.spool("ann"))
    output, _ = run_server(ann, [LOGIN + b"STAT\r\n"])
    assert output.splitlines()[-1].startswith(b"-ERR [SYS/PERM] ")
