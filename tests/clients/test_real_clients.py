"""Mail programs that sites really use, through xinetd and through systemd's socket activation.

Each hands what it fetched to the same delivery script, so that the octets can be compared.
"""

import pytest

from clients import LOCAL, Client
from samples import MESSAGES, on_the_wire, spool_of


@pytest.fixture
def client(site, tcp_door):
    site.add("ann", spool_of(MESSAGES))
    return Client(site, tcp_door)


def untouched(site):
    return site.spool("ann").read_bytes() == spool_of(MESSAGES)


class TestCurl:
    def curl(self, client, path="", *arguments, password="secret"):
        url = f"pop3://{client.door.host}:{client.door.port}/{path}"
        return client.run("curl", "-sS", "-u", f"ann:{password}", *arguments, url)

    def test_lists_all_messages_with_their_sizes(self, client):
        lines = [
            b"%d %d\r\n" % (n, len(on_the_wire(message))) for n, message in enumerate(MESSAGES, 1)
        ]
        assert self.curl(client).stdout == b"".join(lines)

    @pytest.mark.parametrize("login", ["AUTH=PLAIN", "AUTH=+APOP"])
    def test_retrieves_each_message(self, client, login):
        for n, message in enumerate(MESSAGES, 1):
            fetched = self.curl(client, str(n), "--login-options", login)
            assert (fetched.returncode, fetched.stdout) == (0, on_the_wire(message))

    def test_deletes_one_message(self, site, client):
        assert self.curl(client, "2", "--request", "DELE", "--list-only").returncode == 0
        assert site.spool("ann").read_bytes() == spool_of(MESSAGES[:1] + MESSAGES[2:])

    @pytest.mark.parametrize("login", ["AUTH=*", "AUTH=PLAIN", "AUTH=+APOP"])
    def test_wrong_password(self, client, login):
        refused = self.curl(client, "1", "--login-options", login, password="wrong")
        assert (refused.returncode, refused.stdout) == (67, b"")  # CURLE_LOGIN_DENIED


class TestFetchmail:
    NOTHING_NEW, NOT_LET_IN = 1, 3  # exit codes

    def fetchmail(self, client, option, password="secret"):
        client.write(
            client.home / ".fetchmailrc",
            f"""
            set invisible
            set no bouncemail
            poll {client.door.host} service {client.door.port} protocol pop3 auth password uidl
                no dns
                username ann password {password} {option} sslproto ''
                no rewrite no mimedecode mda {client.deliver}
            """,
        )
        return client.run("fetchmail", "--nodetach", "--nosyslog")

    def test_takes_all_and_removes_it(self, site, client):
        assert self.fetchmail(client, "fetchall nokeep").returncode == 0
        assert client.delivered() == LOCAL
        assert site.spool("ann").read_bytes() == b""

    def test_keeps_and_knows_again_what_it_has(self, site, client):
        assert self.fetchmail(client, "keep").returncode == 0
        assert client.delivered() == LOCAL
        assert self.fetchmail(client, "keep").returncode == self.NOTHING_NEW
        assert client.delivered() == LOCAL
        assert untouched(site)

    def test_wrong_password(self, site, client):
        assert self.fetchmail(client, "nokeep", "wrong").returncode == self.NOT_LET_IN
        assert client.delivered() == []
        assert untouched(site)


class TestMpop:
    NOT_LET_IN = 77  # EX_NOPERM

    def mpop(self, client, keep, auth, password="secret"):
        client.write(
            client.home / ".mpoprc",
            f"""
            account default
            host {client.door.host}
            port {client.door.port}
            user ann
            password {password}
            auth {auth}
            tls off
            keep {keep}
            received_header off
            uidls_file ~/uidls
            delivery mda {client.deliver}
            """,
        )
        return client.run("mpop", "--quiet")

    @pytest.mark.parametrize("auth", ["user", "plain", "apop"])
    def test_takes_all_and_removes_it(self, site, client, auth):
        assert self.mpop(client, "off", auth).returncode == 0
        assert client.delivered() == LOCAL
        assert site.spool("ann").read_bytes() == b""

    def test_keeps_and_knows_again_what_it_has(self, site, client):
        for _ in range(2):
            assert self.mpop(client, "on", "user").returncode == 0
            assert client.delivered() == LOCAL
        assert untouched(site)

    @pytest.mark.parametrize("auth", ["user", "plain", "apop"])
    def test_wrong_password(self, site, client, auth):
        assert self.mpop(client, "off", auth, "wrong").returncode == self.NOT_LET_IN
        assert client.delivered() == []
        assert untouched(site)


class TestGetmail:
    def getmail(self, client, delete, password="secret"):
        directory = client.home / "getmail"
        if not directory.exists():
            directory.mkdir(mode=0o700)
            client.site.give_to_mail_user(directory)
        client.write(
            directory / "getmailrc",
            f"""
[retriever]
type = SimplePOP3Retriever
server = {client.door.host}
port = {client.door.port}
username = ann
password = {password}
[destination]
type = MDA_external
path = {client.deliver}
[options]
delete = {delete}
read_all = false
delivered_to = false
received = false
""",
        )
        return client.run("getmail", "--getmaildir", str(directory))

    def test_takes_all_and_removes_it(self, site, client):
        assert self.getmail(client, "true").returncode == 0
        assert client.delivered() == LOCAL
        assert site.spool("ann").read_bytes() == b""

    def test_keeps_and_knows_again_what_it_has(self, site, client):
        for _ in range(2):
            assert self.getmail(client, "false").returncode == 0
            assert client.delivered() == LOCAL
        assert untouched(site)

    def test_wrong_password(self, site, client):
        refused = self.getmail(client, "true", "wrong")
        assert b"[AUTH]" in refused.stdout + refused.stderr
        assert client.delivered() == []
        assert untouched(site)


class TestMutt:
    def mutt(self, client, keys, *options, password="secret"):
        client.write(
            client.home / "muttrc",
            f"""
            set folder={client.mail}
            set pop_user=ann pop_pass={password} pop_authenticators=user
            set ssl_starttls=no ssl_force_tls=no
            set pop_delete=no delete=yes quit=yes wait_key=no sleep_time=0
            set pipe_decode=no pipe_split=yes pipe_sep=""
            push "{keys}"
            """,
        )
        mailbox = f"pop://{client.door.host}:{client.door.port}/"
        return client.run_on_terminal("mutt", "-n", "-F", "muttrc", *options, "-f", mailbox)

    def test_shows_every_message(self, site, client):
        pipe_all = f"<tag-pattern>~A<enter><tag-prefix><pipe-message>{client.deliver}<enter><exit>"
        self.mutt(client, pipe_all, "-R")
        assert client.delivered() == LOCAL
        assert untouched(site)

    def test_deletes_one_message(self, site, client):
        self.mutt(client, "<delete-pattern>~s dots<enter><quit>")
        assert site.spool("ann").read_bytes() == spool_of(MESSAGES[:1] + MESSAGES[2:])

    def test_wrong_password(self, site, client):
        screen = self.mutt(client, "<delete-pattern>~A<enter><quit>", password="wrong")
        assert b"Login failed" in screen
        assert untouched(site)
