"""The spool is changed by somebody else in mid-session: the client is never told a lie."""

import os

import pytest

from spools import mbox, messages_of

THREE = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n", b"Subject: three\n\n3\n")
CHANGED = b"-ERR [SYS/TEMP] maildrop was changed by another program, nothing deleted\r\n"


def logged_in(site, inetd, spool):
    site.add("anna", spool)
    inetd.login("anna")
    return site.spool("anna")


@pytest.mark.parametrize("command", ["RETR 2", "TOP 2 0", "UIDL", "UIDL 2", "QUIT"])
def test_a_rewritten_spool_ends_the_session_and_nothing_is_deleted(site, inetd, command):
    path = logged_in(site, inetd, THREE)
    assert inetd.ask("DELE 1").startswith(b"+OK")
    rewritten = THREE.replace(b"Subject: one\n", b"Subject: one\nStatus: RO\n")
    with path.open("r+b") as file:
        file.write(rewritten)
    answer = inetd.ask(command)
    if command == "QUIT":
        assert answer.startswith(b"-ERR [SYS/TEMP] deleted messages were not removed")
    else:
        assert answer == CHANGED
    assert inetd.line() == b""
    assert path.read_bytes() == rewritten
    inetd.logs.wait_for(r"reason=.*message 1 is another")
    inetd.logs.wait_for(r"session .*user=anna .*dele=0 left=3 .*end=error")


def test_a_spool_cut_while_a_message_is_sent_is_no_whole_message(site, inetd):
    size = 30_000_000
    path = logged_in(site, inetd, mbox(b"x" * 70 + b"\n") + mbox(b"y" * size + b"\n"))
    assert inetd.ask("DELE 1").startswith(b"+OK")
    inetd.send(b"RETR 2\r\nQUIT\r\n")
    assert inetd.line().startswith(b"+OK")
    os.truncate(path, 1_000_000)
    received = inetd.reader.read()
    # No final dot: no client takes this for the message. And QUIT was not heard.
    assert not received.endswith(b"\r\n.\r\n")
    assert len(received) < size
    assert path.stat().st_size == 1_000_000
    inetd.logs.wait_for("maildrop changed .*user=anna .*became shorter while it was read")
    inetd.logs.wait_for("session .*user=anna .*retr=0/0 .*dele=0 .*end=error")


def test_mail_that_arrives_is_neither_shown_nor_lost(site, inetd):
    path = logged_in(site, inetd, THREE)
    new = mbox(b"Subject: new\n\nnew\n")
    with path.open("ab") as file:
        file.write(new)
    assert inetd.ask("STAT").startswith(b"+OK 3 ")
    assert inetd.ask_long("RETR 2")[1].endswith(b"2\r\n")
    assert inetd.ask("DELE 3").startswith(b"+OK")
    assert inetd.ask("DELE 1").startswith(b"+OK")
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert path.read_bytes() == messages_of(THREE)[1] + new


def test_a_spool_that_appears_in_mid_session_is_left_alone(site, inetd):
    path = logged_in(site, inetd, b"")
    path.unlink()
    assert inetd.ask("STAT") == b"+OK 0 0\r\n"
    path.write_bytes(THREE)
    site.give_to_mail_user(path)
    assert inetd.ask_long("LIST")[1] == b""
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert path.read_bytes() == THREE
