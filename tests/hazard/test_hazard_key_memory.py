"""Keys and OpenSSL are in the processes that speak TLS and in no other, in every kind of door,
before and after the login: memory is searched, and /proc looked at."""

import os
import pwd
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import tlskit
from mailsite import IS_ROOT, MAIL_USER, poll
from spools import mbox
from test_gatekeeper_processes import DOORS, LISTENERS, datagram_sockets, processes
from test_hazard_gatekeeper_listener import memory_of
from test_listener_reload import OTHER_USERS
from tpop3d.listener.relays import SPARES

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root has privileges to separate")

KINDS = {"RSA": trustme.KeyType.RSA, "ECDSA": trustme.KeyType.ECDSA}


def gatekeeper_user():
    """Neither the mailbox's nor root."""
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(names[name] for name in OTHER_USERS if name in names)


def needles_of(key):
    """What of a key must be in no other memory: lines of its file, and its secret numbers."""
    text = key.read_bytes()
    lines = [line for line in text.splitlines() if not line.startswith(b"---")]
    numbers = load_pem_private_key(text, None).private_numbers()
    if hasattr(numbers, "private_value"):
        secret = [numbers.private_value]
    else:
        secret = [numbers.p, numbers.q, numbers.d]
    needles = [line for line in lines if len(line) > 40][:3]
    for number in secret:
        length = (number.bit_length() + 7) // 8
        needles += [number.to_bytes(length, order) for order in ("big", "little")]
    return needles


def speaks_tls(one):
    return "/libssl" in Path(f"/proc/{one.pid}/maps").read_text()


@contextmanager
def secured(site, door, kind):
    site.add("anna", mbox(b"Subject: x\n\nx\n"))
    site.configure({"gatekeeper-user": gatekeeper_user().pw_name})
    certificate, site.key = tlskit.certify(site, key_type=KINDS[kind])
    site.configure({"tls-certificate": certificate, "tls-private-key": site.key})
    with DOORS[door](site) as (wire, pid):
        wire.pid, wire.door = pid, door
        assert wire.line().startswith(b"+OK")
        tlskit.stls(wire)
        yield wire


def log_in(wire):
    assert wire.ask("USER anna").startswith(b"+OK")
    assert wire.ask("PASS secret").startswith(b"+OK")
    assert wire.ask("STAT").startswith(b"+OK 1 ")


def settled(wire):
    """All processes when those that wait for the next connection are there, too: first those that
    speak TLS."""
    expected = 1 if wire.door not in LISTENERS else 1 + 1 + SPARES

    def found():
        tree = processes(wire)
        inside = [one for one in tree if speaks_tls(one)]
        return len(inside) == expected and (inside, [one for one in tree if one not in inside])

    return poll(found, "as many processes as there must be")


def check_memory(wire, needles):
    inside, outside = settled(wire)
    for one in outside:
        try:
            memory = memory_of(one.pid)
        except FileNotFoundError:
            continue  # it has ended: the one that recovers mailboxes when a listener starts
        assert memory
        assert [needle for needle in needles if needle in memory] == []
    # The search works: who has the key, has it in one of these forms.
    for one in inside:
        assert any(needle in memory_of(one.pid) for needle in needles)


@pytest.mark.parametrize(
    ("door", "kind"),
    [
        ("inetd", "RSA"),
        ("xinetd", "ECDSA"),
        ("systemd, connected", "ECDSA"),
        ("listener", "ECDSA"),
        ("systemd, listening", "ECDSA"),
    ],
)
def test_keys_are_where_tls_is_spoken_and_nowhere_else(site, door, kind):
    with secured(site, door, kind) as wire:
        needles = needles_of(site.key)
        assert len(needles) >= 4
        check_memory(wire, needles)
        log_in(wire)
        check_memory(wire, needles)


def sockets(one):
    return {name for name in one.files.values() if "socket:" in name} - datagram_sockets()


def is_locked_in(one):
    """A relay has nothing and can do nothing but pass octets on."""
    user = gatekeeper_user()
    assert one.status["Uid"].split() == [str(user.pw_uid)] * 4
    assert one.status["Gid"].split() == [str(user.pw_gid)] * 4
    assert one.status["Groups"].split() == []
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(one.status[capabilities], 16) == 0
    assert one.status["NoNewPrivs"] == "1"
    assert one.root.endswith("/state/empty")
    assert os.listdir(f"/proc/{one.pid}/root/") == []
    assert one.memory_owner == 0
    for limit in ("Max file size", "Max core file size", "Max processes"):
        assert one.limits[limit] == ["0", "0"]
    assert {one.files[fd] for fd in (0, 1, 2)} == {"/dev/null"}
    own = [name.partition("[")[0] for fd, name in one.files.items() if fd > 2]
    assert set(own) <= {"pipe:", "socket:"}
    assert own.count("pipe:") == 2
    # The channel; and if it serves somebody, the connection and the way to the session.
    assert len(sockets(one)) in (1, 3)
    return True


@pytest.mark.parametrize("door", DOORS)
def test_what_each_process_may_do(site, door):
    with secured(site, door, "ECDSA") as wire:
        log_in(wire)

        def alone():
            """The one that serves, when nobody else has any socket of it."""
            inside, outside = settled(wire)
            (serving,) = [one for one in inside if len(sockets(one)) == 3]
            others = [one for one in (*inside, *outside) if one.pid != serving.pid]
            mine = sockets(serving)
            return not any(sockets(one) & mine for one in others) and (serving, inside, outside)

        serving, inside, outside = poll(alone, "all others to let go of the connection")
        keyholders = [one for one in inside if one.is_root]
        assert len(keyholders) == (1 if door in LISTENERS else 0)
        assert all(is_locked_in(one) for one in inside if one not in keyholders)
        for one in keyholders:
            assert one.memory_owner == 0
            assert one.limits["Max core file size"] == ["0", "0"]
            assert len(sockets(one)) == 1
        # The session: the mailbox's user, who cannot have the key, and a socket that leads to the
        # relay; another, on which that could say what breaks the TLS, where it is nobody else's.
        (session,) = [one for one in outside if "spool/anna" in " ".join(one.files.values())]
        assert session.status["Uid"].split() == [str(MAIL_USER.pw_uid)] * 4
        assert int(session.status["CapEff"], 16) == 0
        assert (site.key.stat().st_uid, site.key.stat().st_mode & 0o777) == (0, 0o600)
        assert len(sockets(session)) == (1 if door in LISTENERS else 2)
        for inner in sockets(session):
            assert inner.strip("socket:[]") in Path("/proc/net/unix").read_text()
            assert inner not in sockets(serving)
        # Nobody has the key's file open.
        for one in (*inside, *outside):
            assert str(site.key) not in one.files.values()
        assert wire.ask("QUIT").startswith(b"+OK")
