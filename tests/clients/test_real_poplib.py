"""Python's own POP3 client, through xinetd and through systemd's socket activation."""

import poplib

import pytest

from samples import MESSAGES, on_the_wire, spool_of

WIRE = [on_the_wire(message) for message in MESSAGES]


@pytest.fixture
def client(site, tcp_door):
    site.add("ann", spool_of(MESSAGES))
    client = tcp_door.poplib()
    client.user("ann")
    client.pass_("secret")
    return client


def text(lines):
    return b"".join(line + b"\r\n" for line in lines)


def contents(door, user="ann"):
    client = door.poplib()
    client.user(user)
    client.pass_("secret")
    messages = [text(client.retr(n)[1]) for n in range(1, client.stat()[0] + 1)]
    client.quit()
    return messages


def test_every_message_arrives_as_it_is_and_as_long_as_announced(client):
    sizes = [int(line.split()[1]) for line in client.list()[1]]
    retrieved = [text(client.retr(n)[1]) for n in range(1, len(MESSAGES) + 1)]
    assert retrieved == WIRE
    assert sizes == [len(message) for message in WIRE]
    assert client.stat() == (len(WIRE), sum(map(len, WIRE)))
    assert client.list(3) == b"+OK 3 %d" % len(WIRE[2])


def test_reading_changes_no_octet_of_the_spool(site, client):
    for n in range(1, len(MESSAGES) + 1):
        client.retr(n)
    client.quit()
    assert site.spool("ann").read_bytes() == spool_of(MESSAGES)


def test_top_gives_the_header_and_as_many_lines_as_asked(client):
    header, _, body = WIRE[1].partition(b"\r\n\r\n")
    for count in (0, 2, 100):
        lines = body.splitlines(keepends=True)[:count]
        assert text(client.top(2, count)[1]) == header + b"\r\n\r\n" + b"".join(lines)


def test_unique_ids_are_unique_and_stay(client, tcp_door):
    first = client.uidl()[1]
    assert len({line.split()[1] for line in first}) == len(MESSAGES)
    assert client.uidl(2) == b"+OK " + first[1]
    client.dele(1)
    client.quit()
    again = tcp_door.poplib()
    again.user("ann")
    again.pass_("secret")
    kept = [line.split()[1] for line in again.uidl()[1]]
    assert kept == [line.split()[1] for line in first[1:]]


def test_quit_removes_exactly_what_was_deleted(site, client, tcp_door):
    client.dele(2)
    client.dele(5)
    with pytest.raises(poplib.error_proto):
        client.retr(2)
    with pytest.raises(poplib.error_proto):
        client.dele(2)
    assert client.stat()[0] == len(MESSAGES) - 2
    client.quit()
    kept = [message for n, message in enumerate(MESSAGES, 1) if n not in (2, 5)]
    assert site.spool("ann").read_bytes() == spool_of(kept)
    assert contents(tcp_door) == [on_the_wire(message) for message in kept]


def test_all_deleted_leaves_an_empty_spool(site, client):
    for n in range(1, len(MESSAGES) + 1):
        client.dele(n)
    client.quit()
    assert site.spool("ann").read_bytes() == b""


def test_rset_takes_deletions_back(site, client):
    client.dele(1)
    assert client.rset().startswith(b"+OK")
    assert client.noop().startswith(b"+OK")
    assert client.stat()[0] == len(MESSAGES)
    client.quit()
    assert site.spool("ann").read_bytes() == spool_of(MESSAGES)


def test_hanging_up_without_quit_removes_nothing(site, client, tcp_door):
    client.dele(1)
    client.close()
    assert contents(tcp_door) == WIRE
    assert site.spool("ann").read_bytes() == spool_of(MESSAGES)


def test_mail_delivered_meanwhile_is_kept_for_the_next_session(site, client, tcp_door):
    late = b"Subject: late\n\nnew\n"
    client.retr(9)
    with site.spool("ann").open("ab") as spool:
        spool.write(b"\n\n" + spool_of([late]))
    assert client.stat()[0] == len(MESSAGES)
    client.dele(1)
    client.quit()
    assert contents(tcp_door) == [*WIRE[1:], on_the_wire(late)]


def test_capabilities_name_what_was_used_here(client):
    capabilities = client.capa()
    assert {"TOP", "UIDL", "USER", "PIPELINING"} <= capabilities.keys()
    assert "PLAIN" in capabilities["SASL"]


def test_apop(site, tcp_door):
    site.add("ann", spool_of(MESSAGES[:1]))
    client = tcp_door.poplib()
    client.apop("ann", "secret")
    assert client.stat() == (1, len(WIRE[0]))


LOGINS = {
    "PASS": lambda client, password: client.user("ann") and client.pass_(password),
    "APOP": lambda client, password: client.apop("ann", password),
}


@pytest.mark.parametrize("method", LOGINS)
def test_a_wrong_password_is_refused_and_the_right_one_still_taken(site, tcp_door, method):
    site.add("ann", spool_of(MESSAGES[:1]))
    client = tcp_door.poplib()
    with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
        LOGINS[method](client, "wrong")
    with pytest.raises(poplib.error_proto):
        client.stat()
    LOGINS[method](client, "secret")
    assert client.stat()[0] == 1


def test_a_second_session_on_the_mailbox_is_told_it_is_in_use(client, tcp_door):
    second = tcp_door.poplib()
    second.user("ann")
    with pytest.raises(poplib.error_proto, match=r"-ERR \[IN-USE\]"):
        second.pass_("secret")
    client.quit()


def test_nobody_reads_the_mail_of_another(site, tcp_door):
    site.add("ann", spool_of(MESSAGES[:1]))
    site.add("bob", spool_of(MESSAGES[1:3]))
    assert contents(tcp_door, "bob") == WIRE[1:3]
    assert contents(tcp_door, "ann") == WIRE[:1]
