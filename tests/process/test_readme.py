"""What README tells an administrator to type, typed."""

import pytest

import databases
from freshbox import commands
from mailsite import need, poll
from samples import MESSAGES, spool_of

PASSWORD = "open sesame"


@pytest.fixture
def database_in(box):
    """A MariaDB in the box, where Debian's has its socket; its administrator is root."""
    databases.require()
    need("useradd")
    data = "/var/lib/database"
    box.do("mkdir", "-p", "/run/mysqld")
    box.do("mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root",
           "--auth-root-authentication-method=normal", "--skip-test-db")  # fmt: skip
    box.do("systemd-run", "--unit=database", "mariadbd", "--no-defaults", f"--datadir={data}",
           "--user=root", "--socket=/run/mysqld/mysqld.sock", "--skip-networking",
           *databases.MODEST)  # fmt: skip
    poll(lambda: box.run("mariadb", "-e", "SELECT 1").returncode == 0, "the database")
    yield
    box.systemctl("stop", "database")
    box.do("rm", "-rf", data, "/var/vmail")
    box.run("userdel", "vmail")


@pytest.mark.parametrize("style", ["tpop3d.socket", "tpop3d-listener.socket"])
def test_five_commands_set_up_a_domain_and_a_mailbox(box, database_in, style):
    five = commands("ONE DOMAIN AND ONE MAILBOX IN A DATABASE")
    assert len(five) == 5
    for command in five:
        done = box.run(
            "setsid", "--wait", "/bin/sh", "-ec", f"cd /opt/tpop3d/checkout\n{command}",
            input=f"{PASSWORD}\n{PASSWORD}\n", stdin=None,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "auth-mysql-enable: yes\n" in box.do("tpop3d", "--check-config")
    box.path("/var/vmail/example.org/anna").write_bytes(spool_of(MESSAGES))
    box.do("chown", "vmail:vmail", "/var/vmail/example.org/anna")
    box.systemctl("start", style)
    client = box.wire()
    client.login("anna@example.org", PASSWORD)
    assert client.ask("STAT").startswith(b"+OK %d " % len(MESSAGES))
    assert client.ask("DELE 1").startswith(b"+OK")
    assert client.ask("QUIT").startswith(b"+OK")
    left = spool_of(MESSAGES[1:])
    poll(lambda: box.path("/var/vmail/example.org/anna").read_bytes() == left, "the spool")
    client = box.wire()
    assert client.line().startswith(b"+OK")
    assert client.ask("USER anna@example.org").startswith(b"+OK")
    assert client.ask("PASS wrong").startswith(b"-ERR [AUTH]")
