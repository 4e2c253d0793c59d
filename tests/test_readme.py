"""What README tells an administrator to type, typed."""

import re

import pytest

import databases
from mailsite import CHECKOUT, need, poll
from samples import MESSAGES, spool_of

README = (CHECKOUT / "README").read_text()
PASSWORD = "open sesame"


def commands(after):
    """The first indented lines after some text."""
    section = README.partition(f"\n{after}")[2]
    block = re.search(r"(?:^    .*\n)+", section, re.MULTILINE)
    return [line.strip() for line in block[0].splitlines()]


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


def typed(box, command):
    """Run a command as root, in the directory of the sources."""
    return box.run("/bin/sh", "-ec", f"cd /opt/tpop3d/checkout\n{command}")


def test_the_commands_for_systemd_make_a_server_that_serves(box):
    """On a system that has none of it yet."""
    for command in (
        "rm -rf /etc/systemd/system/tpop3d* /etc/sysusers.d/tpop3d.conf",
        "rm -rf /etc/tmpfiles.d/tpop3d.conf /var/lib/tpop3d",
        "userdel tpop3d",
        "systemctl daemon-reload",
    ):
        assert typed(box, command).returncode == 0
    box.add("ann", spool_of(MESSAGES))
    told = commands("For systemd, from this directory")
    assert any("systemd-sysusers" in command for command in told)
    for command in told:
        done = typed(box, command)
        assert done.returncode == 0, done.stderr
    assert box.show("tpop3d.socket", "ActiveState") == "active"
    client = box.wire()
    client.login("ann")
    assert client.ask("QUIT").startswith(b"+OK")
    box.systemctl("disable", "tpop3d.socket")
