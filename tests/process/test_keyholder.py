"""The keyholder: it has the keys, forks relays, and ends when nobody wants any of them."""

import os
import select
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import tlskit
from authkit import config_of
from mailsite import poll
from relaykit import Client, Plain, Relayed
from test_certificates import encrypt, when
from test_listener import children_of
from tpop3d.system import logs
from tpop3d.system.privileges import Sandbox
from tpop3d.system.refusal import PERMANENT, Refusal
from tpop3d.tls import keyholder as keyholders
from tpop3d.tls.relay_channel import Ready, RelayOrder


@pytest.fixture
def site(tmp_path):
    return SimpleNamespace(path=tmp_path)


def recipe(*pairs, **settings):
    identities = [(tuple(map(str, pair)),) for pair in pairs]
    config = config_of(**settings)
    sandbox = Sandbox(None, os.getegid(), "")
    return keyholders.Recipe(sandbox, identities, config.tls_min_version, config.tls_ciphers)


def own_children():
    return {pid for pid, state in children_of(os.getpid()).items() if state != "Z"}


@contextmanager
def started(*pairs, **settings):
    """A keyholder; its process has ended when all that it is asked for has."""
    before = own_children()
    keyholder = keyholders.start(recipe(*pairs, **settings))
    assert isinstance(keyholder, keyholders.Keyholder), keyholder
    (keyholder.pid,) = own_children() - before
    try:
        yield keyholder
    finally:
        if keyholder._socket.fileno() >= 0:
            keyholder.retire()
        poll(lambda: os.waitpid(keyholder.pid, os.WNOHANG)[0], "the keyholder to end")


def readable(one):
    waiting = select.poll()
    waiting.register(one.fileno(), select.POLLIN)
    return waiting.poll(0)


class Connection(Relayed):
    """A connection that one of the keyholder's relays serves."""

    def __init__(self, keyholder, index=0, context=None, session=None):
        self.keyholder = keyholder
        self.number, channel = keyholder.start_relay()
        (ours, theirs), (plain, inner) = socket.socketpair(), socket.socketpair()
        fds = theirs.fileno(), theirs.fileno(), inner.fileno()
        channel.give_order(RelayOrder(fds, index, 10.0, 10.0))
        theirs.close()
        inner.close()
        client = Client([ours], context or tlskit.context(), session=session)
        super().__init__(0, channel, client, Plain([plain]))

    def has_ended(self):
        return bool(readable(self.channel)) and self.channel.receive() is None

    def works(self):
        self.secure()
        self.client.say(b"up")
        self.session.say(b"down")
        self.run(lambda: (self.session.got, self.client.got) == (b"up", b"down"), "both ways")
        return True

    def close(self):
        self.client.close()
        self.session.close()
        poll(self.has_ended, "the relay to end")
        self.channel.close()
        self.keyholder.release()


@pytest.fixture
def pair(site):
    return tlskit.certify(site, tlskit.NAME)


def test_relays_serve_one_connection_after_the_other_and_at_once(pair):
    with started(pair) as keyholder:
        many = [Connection(keyholder) for _ in range(4)]
        for one in many:
            one.secure()
        assert all(one.works() for one in many)
        relays = children_of(keyholder.pid)
        assert len(relays) == 4
        for one in many:
            one.close()
        poll(lambda: not children_of(keyholder.pid), "all relays to be buried")
        one = Connection(keyholder)
        assert one.works()
        one.close()


def test_a_relay_has_the_certificates_of_its_order(site, pair):
    other = tlskit.certify(site, "other.example", tlskit.NAME, file="other")
    with started(pair, other) as keyholder:
        for index, first in enumerate((tlskit.NAME, "other.example")):
            one = Connection(keyholder, index).secure()
            assert one.client.tls.getpeercert()["subjectAltName"][0] == ("DNS", first)
            one.close()


def test_a_session_goes_on_with_another_relay(pair):
    """RFC 8446 section 2.2; with another keyholder it does not."""

    context = tlskit.context()

    def handshake(keyholder, session=None):
        one = Connection(keyholder, context=context, session=session)
        one.works()
        found = one.client.tls.session_reused, one.client.tls.session
        one.close()
        return found

    with started(pair) as keyholder, started(pair) as another:
        is_resumed, session = handshake(keyholder)
        assert not is_resumed
        assert handshake(keyholder, session)[0]
        assert not handshake(another, session)[0]


def test_warnings_come_with_it(site, pair):
    old = tlskit.certify(site, "a.example", file="old", not_before=when(days=-9),
                         not_after=when(days=-1))  # fmt: skip
    with started(pair) as keyholder:
        assert keyholder.warnings == []
    # The same certificate at two addresses is one worry.
    with started(old, pair, old) as keyholder:
        warnings = [one.partition(" on ")[0] for one in keyholder.warnings]
        assert warnings == [f"{old[0]}: has expired"]


def test_it_refuses_what_cannot_be_served(site, pair):
    certificate, _ = pair
    other = tlskit.certify(site, tlskit.NAME, file="other")
    secret = tlskit.certify(site, tlskit.NAME, file="secret")
    encrypt(secret[1])
    refused = {
        (certificate, other[1]): f"{other[1]}: is not the private key of {certificate}",
        (certificate, Path("/nonexistent")): "/nonexistent: No such file or directory",
        secret: f"{secret[1]}: is encrypted, and nobody is here to give the passphrase",
    }
    before = own_children()
    for wrong, text in refused.items():
        assert refusal(wrong) == text
        assert refusal(pair, wrong) == text
    text = "tls-ciphers: OpenSSL knows no cipher in 'x'"
    assert refusal(pair, tls_ciphers="x") == text
    poll(lambda: own_children() == before, "those that have refused to end")
    bury_all()


def refusal(*pairs, is_lasting=True, **settings):
    """Why there is no keyholder."""
    made = keyholders.start(recipe(*pairs, **settings))
    assert isinstance(made, Refusal), made
    assert (made.kind == PERMANENT) == is_lasting
    return made.reason


def bury_all():
    while True:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return


def test_one_that_dies_while_it_reads_is_an_error(pair, monkeypatch):
    monkeypatch.setattr(keyholders, "_keep", lambda *_: os._exit(1))
    assert "has died" in refusal(pair, is_lasting=False)
    bury_all()


def test_one_that_takes_too_long_is_an_error(pair, monkeypatch):
    monkeypatch.setattr(keyholders, "PATIENCE", 0.2)
    monkeypatch.setattr(keyholders, "_keep", lambda *_: signal.pause())
    before = own_children()
    assert "takes too long" in refusal(pair, is_lasting=False)
    (pid,) = own_children() - before
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_one_relay_is_killed_and_no_other(pair):
    with started(pair) as keyholder:
        one, other = Connection(keyholder).secure(), Connection(keyholder).secure()
        keyholder.kill(one.number)
        one.run(lambda: one.client.is_over and one.session.is_over, "the relay's death")
        assert other.works()
        keyholder.kill(one.number)  # nobody has that number any more
        keyholder.kill(12345)
        assert other.client.tls.version()
        for each in (one, other):
            each.close()


def test_a_retired_one_ends_with_its_last_relay(pair):
    with started(pair) as keyholder:
        one, other = Connection(keyholder), Connection(keyholder)
        keyholder.retire()
        assert one.works()
        assert other.works()
        one.close()
        assert keyholder.pid in own_children()
        other.close()
        poll(lambda: keyholder.pid not in own_children(), "the keyholder to end")


def test_its_relays_outlive_it(pair):
    with started(pair) as keyholder:
        one = Connection(keyholder)
        assert one.secure()
        waiting = keyholder.start_relay()[1]
        assert isinstance(poll(lambda: readable(waiting) and waiting.receive(), "it"), Ready)
        assert not readable(keyholder)
        os.kill(keyholder.pid, signal.SIGKILL)
        poll(lambda: readable(keyholder), "its death to be seen")
        with pytest.raises(OSError):
            keyholder.start_relay()
        keyholder.kill(one.number)  # nobody is there to do it, and nobody waits
        assert one.works()
        waiting.close()
        keyholder.release()
        one.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_no_relay(pair, number):
    with started(pair) as keyholder:
        one = Connection(keyholder).secure()
        os.kill(keyholder.pid, signal.SIGHUP)
        other = Connection(keyholder)
        assert other.works()  # so that one has been heard, and ends nothing
        os.kill(keyholder.pid, number)
        poll(lambda: readable(keyholder), "its end")
        assert one.works()
        one.close()
        other.close()


def test_a_hangup_ends_no_relay(pair):
    with started(pair) as keyholder:
        one = Connection(keyholder).secure()
        for pid in (keyholder.pid, *children_of(keyholder.pid)):
            os.kill(pid, signal.SIGHUP)
        assert one.works()
        one.close()


def test_files_are_told_apart(site, pair):
    made = recipe(pair, pair)
    before = made.files()
    assert len(before) == 2
    assert made.files() == before
    tlskit.certify(site, tlskit.NAME)  # as a renewal does it: other files of the same names
    after = made.files()
    assert all(one != other for one, other in zip(before, after, strict=True))
    pair[1].unlink()
    assert made.files() != after
    assert () in made.files()


def test_it_keeps_nothing_that_is_not_its_own(pair):
    """Neither descriptors of whoever forks it, nor a core file with the keys in it."""
    with started(pair) as keyholder, open(os.devnull, "rb") as null:
        own = Path(f"/proc/{keyholder.pid}")
        names = {int(fd.name): os.readlink(fd) for fd in (own / "fd").iterdir()}
        known = {0, 1, 2, *logs._outlet.descriptors()}
        others = sorted(name.split(":")[0] for fd, name in names.items() if fd not in known)
        assert others == ["pipe", "pipe", "socket"]
        assert null
        limits = (own / "limits").read_text().splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file")]
        assert core[4:6] == ["0", "0"]
