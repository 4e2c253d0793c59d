"""APOP is offered where it can be done, in a form that clients know: the real ones get in."""

import hashlib
import os
import subprocess
from contextlib import closing

import pytest

import doors
from authkit import config_of
from clients import Client
from mailsite import ENVIRONMENT, need, poll
from samples import MESSAGES, spool_of
from tpop3d.auth import flatfile, passwords
from tpop3d.auth.switch import Switch

NUMBER = str(len(MESSAGES))
# What each makes of the greeting, with name and password, as they do by themselves.
CLIENTS = {
    "Mail::POP3Client": """
        use Mail::POP3Client;
        my $pop = Mail::POP3Client->new(HOST => $host, PORT => $port);
        $pop->User($user); $pop->Pass($password); $pop->Connect() >= 0 or exit 1;
        print $pop->Count(); $pop->Close();
    """,
    "Net::POP3": """
        use Net::POP3;
        my $pop = Net::POP3->new($host, Port => $port) or exit 1;
        my $can = $pop->capabilities();
        my $count = exists $can->{APOP} ? $pop->apop($user, $password)
                                        : $pop->login($user, $password);
        defined $count or exit 1;
        print $count + 0; $pop->quit();
    """,
    "Mail::Transport::POP3": """
        use Mail::Transport::POP3;
        my $pop = Mail::Transport::POP3->new(hostname => $host, port => $port,
            username => $user, password => $password) or exit 1;
        print scalar($pop->messages); $pop->disconnect;
    """,
}
PLAIN = [
    b"ann:{plaintext}secret\n", b"# none\n  ann:{PLAIN}secret\r\n", b"a:$1$x\nann:{clear.hex}73\n",
    b"ann:{CLEARTEXT}secret:and:more", b"ann:{plain.b64}c2VjcmV0", b"a@b:{plaintext} x\n",
]  # fmt: skip
NOT_PLAIN = [
    b"", b"ann:$6$salt$hash\n", b"ann:{plain-md5}5ebe2294ecd0e0f08eab7690d2a6ee69\n",
    b"#ann:{plaintext}secret\n", b" # ann:{plaintext}secret\n", b"ann:x:{plaintext}secret\n",
    b"ann:{plaintext}\n", b"ann:{plaintext}\r\n", b"ann:{plaintext}", b":{plaintext}secret\n",
    b"ann: {plaintext}secret\n", b"ann{plaintext}secret\n", b"ann:{plaintext}:more\n",
]  # fmt: skip


@pytest.mark.parametrize("content", PLAIN)
def test_a_password_in_plain_text_is_found(tmp_path, content):
    (tmp_path / "passwd").write_bytes(content)
    assert offered(tmp_path / "passwd")


@pytest.mark.parametrize("content", NOT_PLAIN)
def test_what_is_none_is_not(tmp_path, content):
    (tmp_path / "passwd").write_bytes(content)
    assert not offered(tmp_path / "passwd")


def offered(file, **more):
    config = config_of({"auth-flatfile-passwd-file": file}, **more)
    return Switch(config.drivers, config).offers_apop()


def test_what_apop_takes_for_plain_text_is_looked_for():
    for scheme in passwords.PLAINTEXT:
        assert passwords.split(b"{%b}secret" % scheme.encode(), "crypt") == (scheme, b"secret")
    assert {"plaintext", "plain", "clear", "cleartext"} == set(passwords.PLAINTEXT)


def test_files_of_domains_are_looked_at(tmp_path):
    for domain in ("example.org", "example.net"):
        (tmp_path / f"of-{domain}.passwd").write_bytes(b"ann:$6$x\n")
        (tmp_path / domain).mkdir()
    (tmp_path / "other").write_bytes(PLAIN[0])
    assert not offered(tmp_path / "of-$(domain).passwd")
    assert not offered(tmp_path / "$(domain)/passwd")
    (tmp_path / "of-example.net.passwd").write_bytes(PLAIN[0])
    (tmp_path / "example.org/passwd").write_bytes(PLAIN[0])
    assert offered(tmp_path / "of-$(domain).passwd")
    assert offered(tmp_path / "$(domain)/passwd")
    assert not offered(tmp_path / "$(domain)/passwords")


def test_not_more_files_than_so_many(tmp_path, monkeypatch):
    monkeypatch.setattr(flatfile, "MAX_FILES", 3)
    for n in range(4):
        (tmp_path / str(n)).write_bytes(b"ann:$6$x\n" if n < 3 else PLAIN[0])
    assert not offered(tmp_path / "$(domain)")


def test_a_file_that_is_not_there_has_none(tmp_path):
    assert not offered(tmp_path / "passwd")


@pytest.mark.parametrize("content", [PLAIN[0], NOT_PLAIN[1]])
def test_the_directive_decides(tmp_path, content):
    (tmp_path / "passwd").write_bytes(content)
    assert offered(tmp_path / "passwd", apop="yes")
    assert offered(tmp_path / "passwd", apop_only="yes")
    assert not offered(tmp_path / "passwd", apop="no")


def test_a_listener_learns_of_the_first_one(site):
    hashed(site, "ann")
    with doors.standalone(site) as door:

        def is_offered():
            with closing(door.connect()) as wire:
                greeting = wire.line()
            assert greeting.startswith(b"+OK")
            return b"<" in greeting

        assert not is_offered()
        site.add("bert")
        poll(is_offered, "the offer", 2 * flatfile.LOOK)


def hashed(site, user):
    command = [need("openssl"), "passwd", "-6", "secret"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    site.add(user, spool_of(MESSAGES), hashed=done.stdout.strip())


def perl(site, door, module, user, password):
    if subprocess.run([need("perl"), f"-M{module}", "-e1"], capture_output=True).returncode:
        pytest.skip(f"there is no {module}")
    script = f"my ($host, $port, $user, $password) = @ARGV; {CLIENTS[module]}"
    where = door.host, str(door.port)
    return Client(site, door).run("perl", "-e", script, *where, user, password)


def gets_in(site, door, module, method):
    """A client gets in by a method, and nobody is called a guesser for what it tried before."""
    done = perl(site, door, module, "ann", "secret")
    assert (done.returncode, done.stdout.decode()) == (0, NUMBER)
    door.logs.wait_for(f"session .*user=ann .*method={method}")
    assert "login failed" not in door.logs.text()


@pytest.mark.parametrize("module", CLIENTS)
class TestRealClients:
    def test_get_in_where_passwords_are_hashed(self, site, module):
        hashed(site, "ann")
        with doors.standalone(site) as door:
            gets_in(site, door, module, "USER")

    def test_get_in_with_apop_where_one_is_in_plain_text(self, site, module):
        site.add("ann", spool_of(MESSAGES))
        with doors.standalone(site) as door:
            gets_in(site, door, module, "APOP")

    def test_are_refused_with_a_wrong_password(self, site, module):
        site.add("ann", spool_of(MESSAGES))
        with doors.standalone(site) as door:
            done = perl(site, door, module, "ann", "wrong")
            assert NUMBER not in done.stdout.decode()
            door.logs.wait_for("login failed .*user=ann .*method=APOP")


class TestAHashWhereOthersHavePlainText:
    """APOP is offered for the others."""

    @pytest.fixture
    def mixed(self, site):
        hashed(site, "ann")
        site.add("bert", spool_of(MESSAGES))
        site.configure({"auth-failure-delay-seconds": 0})
        return site

    def apop(self, wire, user, password=b"secret"):
        timestamp = wire.line().split()[-1]
        digest = hashlib.md5(timestamp + password, usedforsecurity=False).hexdigest()
        return wire.ask(f"APOP {user} {digest}")

    def test_is_no_guess(self, mixed):
        with doors.inetd(mixed) as wire:
            assert self.apop(wire, "ann").startswith(b"-ERR [AUTH]")
            line = wire.logs.wait_for("login impossible .*user=ann ")
            assert 'method=APOP driver=flatfile reason="APOP needs a {plaintext} password"' in line
            assert wire.ask("USER ann").startswith(b"+OK")
            assert wire.ask("PASS secret").startswith(b"+OK maildrop")
            assert "login failed" not in wire.logs.text()

    def test_and_a_wrong_password_or_name_is_one(self, mixed):
        for user in ("bert", "zoe"):
            with doors.inetd(mixed) as wire:
                assert self.apop(wire, user, b"wrong").startswith(b"-ERR [AUTH]")
                wire.logs.wait_for(f"login failed .*user={user} .*method=APOP")
                assert "impossible" not in wire.logs.text()

    def test_nor_is_what_the_systems_drivers_say_of_apop(self, mixed):
        mixed.configure({"auth-passwd-enable": "yes"})
        with doors.inetd(mixed) as wire:
            assert self.apop(wire, "bert", b"wrong").startswith(b"-ERR [AUTH]")
            wire.logs.wait_for("login failed .*user=bert .*driver=flatfile")
        os.truncate(mixed.path / "stderr", 0)
        with doors.inetd(mixed) as wire:
            assert self.apop(wire, "nobody", b"wrong").startswith(b"-ERR [AUTH]")
            wire.logs.wait_for("login impossible .*user=nobody .*driver=passwd")


def test_a_hash_of_no_known_form_is_no_guess(site):
    site.add("ann", hashed="{nosuchscheme}x")
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER ann").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"-ERR [AUTH]")
        wire.logs.wait_for('login impossible .*user=ann .*reason="unknown password scheme"')
