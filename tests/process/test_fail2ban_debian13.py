"""The jail on a fresh Debian 13, under fail2ban's own unit; test_fail2ban.py has all else."""

import re
import shutil

import pytest

import freshbox
import systemdbox
import trixie
from freshbox import commands
from mailsite import CHECKOUT, PATIENCE, poll
from systemdbox import SystemdBox

SERVER, CLIENT, NOBODY = "192.0.2.1", "192.0.2.7", "203.0.113.1"
CONFIGURATION = """\
auth-flatfile-enable: yes
auth-flatfile-passwd-file: /etc/tpop3d.passwd
auth-flatfile-mail-user: nobody
auth-flatfile-mailbox: bsd:/var/mail/$(user)
auth-failure-delay-seconds: 0
plaintext-logins: yes
"""
COMMAND = '#!/bin/sh\ncd /usr/local/src/tpop3d && exec /usr/bin/python3 -m tpop3d "$@"\n'


@pytest.fixture(scope="module")
def box():
    """The system with the packages, the server, and what README has for fail2ban."""
    systemdbox.require()
    trixie.require()
    box = SystemdBox(trixie.ROOT)
    try:
        etc, source = box.directory / "etc", box.directory / "local/src/tpop3d"
        freshbox.copy_source(source)
        (box.directory / "local/bin/tpop3d").write_text(COMMAND)
        (box.directory / "local/bin/tpop3d").chmod(0o755)
        for directory in ("fail2ban", "dpkg", "apt"):
            shutil.copytree(trixie.ROOT / "etc" / directory, etc / directory)
        for directory in ("dpkg", "fail2ban"):
            shutil.copytree(
                trixie.ROOT / "var/lib" / directory, box.directory / "var/lib" / directory
            )
        units = etc / "systemd/system"
        units.mkdir(parents=True)
        for name in ("tpop3d.socket", "tpop3d@.service"):
            shutil.copy(CHECKOUT / "systemd" / name, units)
        (etc / "tpop3d.conf").write_text(CONFIGURATION)
        (etc / "tpop3d.passwd").write_text("eve:{plaintext}secret\n")
        box.boot()
        box.do("python3", "-m", "compileall", "-q", "/usr/local/src/tpop3d/tpop3d")  # as pip does
        box.do("systemd-sysusers", "/usr/local/src/tpop3d/systemd/sysusers.d/tpop3d.conf")
        box.do("systemd-tmpfiles", "--create",
               "/usr/local/src/tpop3d/systemd/tmpfiles.d/tpop3d.conf")  # fmt: skip
        for address in (SERVER, CLIENT):
            box.do("ip", "address", "add", address, "dev", "lo")
        box.systemctl("start", "fail2ban", "tpop3d.socket")
        for line in commands("Those who guess"):
            box.do("/bin/sh", "-ec", f"cd /usr/local/src/tpop3d\n{line}")
        (box.path("/etc/fail2ban") / "jail.local").write_text("[DEFAULT]\nignoreself = false\n")
        box.systemctl("restart", "fail2ban")
        poll(lambda: box.run("fail2ban-client", "status", "tpop3d").returncode == 0, "the jail",
             3 * PATIENCE)  # fmt: skip
        yield box
        print(box.do("journalctl", "--output=short"))
    finally:
        box.close()


def ruleset(box):
    return box.do("nft", "list", "ruleset")


def test_a_ban_is_proved_as_the_page_says(box):
    page = (CHECKOUT / "man/tpop3d.8").read_text()
    ban, show, unban = re.findall(r"^(?:fail2ban-client set|nft list) .*$", page, re.M)
    box.do("/bin/sh", "-ec", ban)
    found = poll(lambda: NOBODY in (told := box.do("/bin/sh", "-ec", show)) and told, "the ban")
    assert re.search(r"addr-set-tpop3d \{[^}]*elements = \{ 203\.0\.113\.1 \}", found)
    box.do("/bin/sh", "-ec", unban)
    poll(lambda: NOBODY not in ruleset(box), "its end")


def test_who_guesses_is_banned(box):
    for _ in range(10):
        with box.connect(SERVER, source=CLIENT) as connection, connection.makefile("rb") as answers:
            connection.sendall(b"USER eve\r\nPASS wrong\r\nQUIT\r\n")
            assert b"-ERR [AUTH]" in answers.read()
    poll(lambda: CLIENT in ruleset(box), "the ban", 3 * PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        box.connect(SERVER, source=CLIENT)
    box.connect(SERVER).close()
