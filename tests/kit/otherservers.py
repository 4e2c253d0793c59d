"""Other POP3 servers for spools in mbox format: popa3d and dovecot's, the real ones.

Each serves the spool of ann in a site, and is asked on pipes; or on a port, by mail programs.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import doors
from doors import Wire
from mailsite import CHECKOUT, IS_ROOT, MAIL_USER, PATIENCE, Command, Site, end, need, piped

POPA3D = CHECKOUT / ".unpacked" / "popa3d" / "usr" / "sbin" / "popa3d"
DOVECOT = "/usr/lib/dovecot/pop3"
# popa3d knows its places and users only by their names: it gets a /var and an /etc of its own.
OWN_PLACES = """
mount -t tmpfs tpop3d-test /var/lib
mkdir -m 755 /var/lib/popa3d
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/pam.d" /etc/pam.d
mount --bind "$2" /var/mail
exec "$3"
"""
USERS = """
root:x:0:0::/:/bin/sh
popa3d:x:64999:64999::/:/bin/false
ann:x:{0.pw_uid}:{0.pw_gid}::/:/bin/false
"""
DOVECOT_CONF = """
base_dir = {place}/run
log_path = {log}
ssl = no
mail_location = mbox:{place}/home:INBOX={spool}
mail_uid = {user.pw_uid}
mail_gid = {user.pw_gid}
first_valid_uid = 1
mail_privileged_group =
mail_access_groups =
"""


DOVECOT_ON_A_PORT = """
state_dir = {place}/state
protocols = pop3
listen = {door.host}
disable_plaintext_auth = no
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={user.pw_uid} gid={user.pw_gid} home={place}/home
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
"""


def _popa3d(site: Site) -> Command:
    """The command for popa3d on a connection."""
    program = str(POPA3D) if POPA3D.exists() else shutil.which("popa3d", path="/usr/sbin")
    if not program:
        pytest.skip("popa3d is neither unpacked nor installed")
    if not IS_ROOT or subprocess.run([need("unshare"), "--mount", "true"]).returncode:
        pytest.skip("only root can give popa3d places of its own")
    place = site.path / "popa3d"
    (place / "pam.d").mkdir(parents=True, exist_ok=True)
    (place / "pam.d" / "popa3d").write_text(
        "auth required pam_permit.so\naccount required pam_permit.so\n"
    )
    (place / "passwd").write_text(USERS.format(MAIL_USER).lstrip())
    # It waits for a second where the spool has just changed.
    os.utime(site.spool("ann"), (0, 0))
    return ["unshare", "--mount", "sh", "-ec", OWN_PLACES, "sh", place, site.spools, program]


@contextmanager
def popa3d(site: Site) -> Iterator[Wire]:
    """popa3d, after the login."""
    with served(_popa3d(site)) as wire:
        wire.login("ann")
        yield wire


def popa3d_on_a_port(site: Site) -> AbstractContextManager[doors.Door]:
    """A door at which each connection gets a popa3d."""
    program, command = need("systemd-socket-activate"), _popa3d(site)
    logs = doors.Logs(site.path / "popa3d.log")

    def listen(port: int) -> Command:
        place = f"{doors.Door.host}:{port}"
        return [program, "-l", place, "--accept", "--inetd", *map(str, command)]

    return doors.door_of(*doors.listening(listen, logs), logs)


def _dovecot(site: Site, more: str = "", **values: object) -> Path:
    """Its configuration file."""
    if not os.path.exists(DOVECOT) or not IS_ROOT:
        pytest.skip("dovecot-pop3d is not installed, or we are not root")
    place = site.path / "dovecot"
    for path in (place, place / "home"):
        path.mkdir(exist_ok=True)
        site.give_to_mail_user(path)
    conf = place / "dovecot.conf"
    values |= {"place": place, "spool": site.spool("ann"), "user": MAIL_USER}
    conf.write_text((DOVECOT_CONF + more).format(**values))
    return conf


@contextmanager
def dovecot(site: Site) -> Iterator[Wire]:
    """dovecot's, which serves those who have logged in before; its indices stay in the site."""
    conf = _dovecot(site, log=site.path / "dovecot" / "log")
    with served([DOVECOT, "-c", conf], USER="ann", HOME=str(conf.parent / "home")) as wire:
        yield wire


def dovecot_on_a_port(site: Site) -> AbstractContextManager[doors.Door]:
    """All of dovecot, which everybody can log in to, and is ann then."""
    logs = doors.Logs(site.path / "dovecot.log")

    def listen(port: int) -> Command:
        more = DOVECOT_ON_A_PORT
        conf = _dovecot(site, more, log="/dev/stderr", door=doors.Door, port=port)
        return [need("dovecot"), "-F", "-c", conf]

    return doors.door_of(*doors.listening(listen, logs, "starting up"), logs)


@contextmanager
def served(command: Command, **environment: str) -> Iterator[Wire]:
    """A conversation with a server on pipes, since dovecot's takes no socket; it ends with QUIT."""
    process = subprocess.Popen(
        ["timeout", str(int(6 * PATIENCE)), *command],  # a pipe knows none
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": f"{os.defpath}:/usr/sbin:/sbin"} | environment,
        cwd="/",
    )
    wire = Wire(*piped(process))
    try:
        yield wire
        assert wire.ask("QUIT").startswith(b"+OK")
        assert not wire.line()
        process.wait(PATIENCE)
    finally:
        wire.close()
        end(process)


def listing(wire: Wire) -> list[bytes]:
    """The unique-ids in their order, which must be complete."""
    status, octets = wire.ask_long("UIDL")
    assert status.startswith(b"+OK"), status
    words = [line.split(b" ") for line in octets.splitlines()]
    assert [int(number) for number, _ in words] == list(range(1, len(words) + 1))
    return [one for _, one in words]
