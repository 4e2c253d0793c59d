"""The inetd door: one connection on stdin and stdout, and nothing but POP3 on it."""

import pytest

import doors
from samples import MESSAGES, on_the_wire, spool_of


def test_one_session_and_the_process_ends(site, inetd):
    site.add("ann", spool_of(MESSAGES))
    inetd.login("ann")
    for n, message in enumerate(MESSAGES, 1):
        status, content = inetd.ask_long(f"RETR {n}")
        assert status.startswith(b"+OK")
        assert content == on_the_wire(message)
    assert inetd.ask("DELE 1").startswith(b"+OK")
    assert inetd.ask("QUIT").startswith(b"+OK")
    assert inetd.line() == b""
    assert inetd.process.wait(doors.PATIENCE) == 0
    assert site.spool("ann").read_bytes() == spool_of(MESSAGES[1:])


def test_many_commands_in_one_packet_are_answered_in_order(site, inetd):
    site.add("ann", spool_of(MESSAGES))
    inetd.login("ann")
    inetd.send(b"NOOP\r\nDELE 1\r\nDELE 1\r\nSTAT\r\nQUIT\r\nNOOP\r\n")
    answers = [inetd.line()[:4].strip() for _ in range(5)]
    assert answers == [b"+OK", b"+OK", b"-ERR", b"+OK", b"+OK"]
    assert inetd.line() == b""


def test_hanging_up_ends_the_process_and_removes_nothing(site, inetd):
    site.add("ann", spool_of(MESSAGES))
    inetd.login("ann")
    inetd.ask("DELE 1")
    inetd.close()
    inetd.process.wait(doors.PATIENCE)
    assert site.spool("ann").read_bytes() == spool_of(MESSAGES)


def test_sessions_are_logged_to_stderr(site, inetd):
    site.add("ann")
    inetd.login("ann")
    inetd.ask("QUIT")
    assert inetd.process.wait(doors.PATIENCE) == 0
    assert "ann" in inetd.logs.wait_for("ann")
    assert "secret" not in inetd.logs.text()


# A listener does not start then, and no client is there to be told.
@pytest.mark.parametrize("door", [door for door in doors.TCP_DOORS if door != "listener"])
def test_a_broken_configuration_is_one_refusal_without_its_text(site, door):
    site.configure({"no-such-directive": "yes"})
    with doors.TCP_DOORS[door](site) as tcp:
        client = tcp.connect()
        refusal = client.line()
        assert refusal.startswith(b"-ERR [SYS/")
        assert b"directive" not in refusal
        assert client.line() == b""


def test_xinetd_gives_the_client_no_log_line(site):
    # There stderr is the client's connection, whatever the configuration says about logs.
    site.add("ann", spool_of(MESSAGES[:1]))
    site.configure({"log-level": "debug"})
    with doors.xinetd(site) as tcp:
        client = tcp.connect()
        client.send(b"USER ann\r\nPASS wrong\r\nUSER ann\r\nPASS secret\r\nRETR 7\r\nQUIT\r\n")
        lines = list(iter(client.line, b""))
    answers = [line.split()[0] for line in lines]
    assert answers == b"+OK +OK -ERR +OK +OK -ERR +OK".split()
