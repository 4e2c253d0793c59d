"""Mail programs that sites really use, over TLS, in every way in which a client can come to it.

Each verifies the certificate, and leaves when it is of an authority that it does not trust.
"""

import io
import poplib
import re
import ssl
from contextlib import ExitStack, suppress
from itertools import product

import pytest
import trustme

import doors
import tlskit
from clients import LOCAL, Client
from mailsite import PATIENCE, end
from samples import MESSAGES, spool_of

NAMED = "localhost"
NUMBERS = range(1, len(MESSAGES) + 1)


class Taker(Client):
    """A mail program that takes all mail from a door with TLS of this mode, and removes it.

    `trust` is a file with the certificate of the authority that it trusts.
    """

    def __init__(self, site, door, mode):
        super().__init__(site, door)
        self.is_immediate = mode == "immediate"
        self.trust = self.home / "authority.pem"
        self.trust_in(tlskit.authority())

    def trust_in(self, authority):
        self.write(self.trust, authority.cert_pem.bytes().decode())

    def keep(self, messages):
        """What those do that deliver nothing themselves."""
        for number, message in enumerate(messages):
            (self.mail / str(number)).write_bytes(message)

    def delivered(self):
        return sorted(mail.replace(b"\r\n", b"\n") for mail in super().delivered())


class OpensslSClient(Taker):
    def take(self):
        how = [] if self.is_immediate else ["-starttls", "pop3"]
        # Without -quiet a line that begins with R would begin a handshake.
        how += ["-quiet", "-CAfile", self.trust, "-verify_return_error", "-verify_ip", tlskit.HOST]
        where = f"{tlskit.HOST}:{self.door.port}"
        login, ending = ["USER ann", "PASS secret"], [f"DELE {n}" for n in NUMBERS] + ["QUIT"]
        commands = [*login, *(f"RETR {n}" for n in NUMBERS), *ending]
        said = "".join(f"{command}\r\n" for command in commands).encode()
        done = self.run("openssl", "s_client", *how, "-connect", where, said=said)
        if done.returncode:
            return False
        heard = doors.Wire(io.BytesIO(done.stdout), io.BytesIO())
        if self.is_immediate:
            assert heard.line().startswith(b"+OK")
        assert all(heard.ask(command).startswith(b"+OK") for command in login)
        self.keep([heard.ask_long("RETR")[1] for _ in NUMBERS])
        assert all(heard.ask(command).startswith(b"+OK") for command in ending)
        return heard.line() == b""


class Curl(Taker):
    def take(self):
        url = f"{'pop3s' if self.is_immediate else 'pop3'}://{tlskit.HOST}:{self.door.port}"
        how = ["-sS", "-u", "ann:secret", "--cacert", self.trust]
        how += [] if self.is_immediate else ["--ssl-reqd"]
        every = f"{url}/[1-{len(MESSAGES)}]"
        if self.run("curl", *how, "-o", f"{self.mail}/#1", every).returncode:
            return False
        return self.run("curl", *how, "--request", "DELE", "--list-only", every).returncode == 0


class Poplib(Taker):
    def take(self):
        context = ssl.create_default_context(cafile=self.trust)
        where = tlskit.HOST, self.door.port
        client = None
        try:
            if self.is_immediate:
                client = poplib.POP3_SSL(*where, timeout=PATIENCE, context=context)
            else:
                client = poplib.POP3(*where, timeout=PATIENCE)
                client.stls(context)
        except ssl.SSLCertVerificationError:
            with suppress(OSError):  # it has closed the socket already, and stumbles over that
                if client:
                    client.close()
            return False
        client.user("ann")
        client.pass_("secret")
        self.keep([b"".join(line + b"\n" for line in client.retr(n)[1]) for n in NUMBERS])
        assert all(client.dele(n).startswith(b"+OK") for n in NUMBERS)
        return client.quit().startswith(b"+OK")


class Fetchmail(Taker):
    def take(self):
        self.write(
            self.home / ".fetchmailrc",
            f"""
            set invisible
            set no bouncemail
            poll {NAMED} service {self.door.port} protocol pop3 auth password uidl
                no dns
                username ann password secret fetchall nokeep no rewrite no mimedecode
                {"ssl" if self.is_immediate else "no ssl"} sslproto 'tls1.2+'
                sslcertck sslcertfile {self.trust} sslcertpath {self.home}
                mda {self.deliver}
            """,
        )
        return self.run("fetchmail", "--nodetach", "--nosyslog").returncode == 0


class Mpop(Taker):
    def take(self):
        self.write(
            self.home / ".mpoprc",
            f"""
            account default
            host {tlskit.HOST}
            port {self.door.port}
            user ann
            password secret
            tls on
            tls_starttls {"off" if self.is_immediate else "on"}
            tls_trust_file {self.trust}
            received_header off
            uidls_file ~/uidls
            keep off
            delivery mda {self.deliver}
            """,
        )
        return self.run("mpop", "--quiet").returncode == 0


class Getmail(Taker):
    def take(self):
        self.write(
            self.home / "getmailrc",
            f"""
[retriever]
type = SimplePOP3SSLRetriever
server = {tlskit.HOST}
port = {self.door.port}
username = ann
password = secret
ca_certs = {self.trust}
[destination]
type = MDA_external
path = {self.deliver}
[options]
delete = true
delivered_to = false
received = false
""",
        )
        # Its exit status is 0 whatever happened.
        return not self.run("getmail", "--getmaildir", str(self.home)).stderr


class Mutt(Taker):
    def take(self):
        self.write(
            self.home / "muttrc",
            f"""
            set folder={self.mail}
            set pop_user=ann pop_pass=secret pop_authenticators=user
            set ssl_force_tls=yes ssl_ca_certificates_file={self.trust}
            set pop_delete=yes delete=yes quit=yes wait_key=no sleep_time=0
            set pipe_decode=no pipe_split=yes pipe_sep=""
            push "<tag-pattern>~A<enter><tag-prefix><pipe-message>{self.deliver}<enter>\\
<delete-pattern>~A<enter><quit>"
            """,
        )
        scheme = "pops" if self.is_immediate else "pop"
        mailbox = f"{scheme}://{tlskit.HOST}:{self.door.port}/"
        # What it asks about a certificate only a keyboard answers: r, to reject it.
        screen = self.run_on_terminal("mutt", "-n", "-F", "muttrc", "-f", mailbox, typed=b"r")
        return b"(r)eject" not in screen


TAKERS = {
    "openssl s_client": OpensslSClient,
    "curl": Curl,
    "poplib": Poplib,
    "fetchmail": Fetchmail,
    "mpop": Mpop,
    "getmail": Getmail,
    "mutt": Mutt,
}
# getmail knows no STLS.
WAYS = [way for way in product(TAKERS, doors.MODES) if way != ("getmail", "stls")]


@pytest.fixture
def start(site):
    """Gives a function that starts a door, and makes a client for it."""
    site.add("ann", spool_of(MESSAGES))
    # fetchmail takes no address from a certificate, and wants a common name, too.
    certificate, key = tlskit.certify(site, tlskit.HOST, NAMED, common_name=NAMED)
    site.configure({"tls-certificate": certificate, "tls-private-key": key})
    with ExitStack() as stack:

        def make(name, door, mode):
            opened = stack.enter_context(doors.TLS_DOORS[door](site, mode))
            return TAKERS[name](site, opened, mode)

        yield make


@pytest.mark.parametrize("door", doors.TLS_DOORS)
@pytest.mark.parametrize(("name", "mode"), WAYS)
def test_takes_all_and_removes_it(site, start, name, mode, door):
    site.configure({"plaintext-logins": "no"})
    client = start(name, door, mode)
    assert client.take()
    assert client.delivered() == LOCAL
    assert site.spool("ann").read_bytes() == b""


@pytest.mark.parametrize(("name", "mode"), WAYS)
def test_says_nothing_to_one_whom_it_does_not_trust(site, start, name, mode):
    site.configure({"plaintext-logins": "yes", "log-level": "debug"})
    client = start(name, "listener", mode)
    client.trust_in(trustme.CA())
    assert not client.take()
    end(client.door.process)
    log = client.door.logs.text()
    assert re.search("tls failed rip=127.0.0.1|session .*user=- .* tls=", log)
    assert set(re.findall(r'says="C: (\w+)', log)) <= {"CAPA", "STLS"}
    assert set(re.findall(r"method=(\S+)", log)) <= {"-"}
    assert client.delivered() == []
    assert site.spool("ann").read_bytes() == spool_of(MESSAGES)
