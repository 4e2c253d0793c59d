"""A nameserver that does not answer: nobody is told that a password is wrong, or waits for it.

The listener and what listens for it run where /etc/hosts and /etc/resolv.conf are the test's.
"""

import contextlib
import signal
import socket

import pytest

import doors
from mailsite import IS_ROOT, need, poll
from samples import MESSAGES, spool_of

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root may mount an /etc/hosts")

NAME = "pop.tpop3d.test"
OTHER = "elsewhere.tpop3d.test"
SILENCE = 25  # seconds; resolv.conf(5) knows no more than 30
SERVER = doors.SERVER
MOUNT = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf'
UNDECIDED = b"-ERR [SYS/TEMP] logins cannot be checked now, try again later\r\n"


class Nameserver:
    """One that reads nothing, and who finds `NAME` without it as long as it `answers`."""

    def __init__(self, directory):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for last in range(1, 255):
            try:
                self._socket.bind((f"127.77.0.{last}", 53))
                break
            except OSError:
                continue
        self._socket.setblocking(False)
        self._hosts = directory / "hosts"
        self._hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
        resolver = f"nameserver {self._socket.getsockname()[0]}\noptions timeout:1 attempts:1\n"
        self._resolver = directory / "resolv.conf"
        self._resolver.write_text(resolver)

    def die(self):
        """Its file is written to, not replaced, since it is mounted."""
        self._hosts.write_text("127.0.0.1 localhost\n")

    def slow_down(self):
        """Have it waited for much longer."""
        resolver = self._resolver.read_text().replace("timeout:1", f"timeout:{SILENCE}")
        self._resolver.write_text(resolver)

    def asked(self, name=NAME):
        """How many questions there were for a name."""
        count, label = 0, name.partition(".")[0].encode()
        with contextlib.suppress(BlockingIOError):
            while True:
                count += label in self._socket.recv(512)
        return count

    def close(self):
        self._socket.close()


@pytest.fixture
def nameserver(site):
    site.add("anna@example.org", spool_of(MESSAGES))
    site.spool("anna@example.org").rename(site.spool("anna"))
    site.add("bert")
    made = Nameserver(site.path)
    yield made
    made.close()


def door(site, *options, passed=False):
    """The server on `NAME`, its domain being example.org."""
    names = [need("unshare"), "--mount", "sh", "-c", f'{MOUNT} && exec "$@"', str(site.path)]
    logs = doors.Logs(site.path / "stderr")
    start = [need("systemd-socket-activate"), *options] if passed else []

    def command(port):
        listen = f"{NAME}:{port}(example.org)"
        site.configure({"listen-address": listen, "append-domain": "yes"})
        if not passed:
            return [*names, *SERVER, "-d", "-f", str(site.conf)]
        variables = [f"--setenv={key}={value}" for key, value in doors.ENVIRONMENT.items()]
        arguments = ["--inetd"] if "--inetd" in options else []
        return [*names, *start, "-l", f"127.0.0.1:{port}", *variables, *SERVER, *arguments,
                "-f", str(site.conf)]  # fmt: skip

    ready = "Listening" if passed else "listening on"
    return doors.door_of(*doors.listening(command, logs, ready), logs)


def attempt(door, name, password="secret"):
    wire = door.connect()
    assert wire.line().startswith(b"+OK")
    wire.ask(f"USER {name}")
    reply = wire.ask(f"PASS {password}")
    wire.ask("QUIT")
    return reply


def reload(door):
    door.process.send_signal(signal.SIGHUP)
    door.logs.wait_for("reload: the configuration is read again")


def test_the_addresses_that_were_bound_are_the_names(site, nameserver):
    with door(site) as here:
        nameserver.die()
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        assert attempt(here, "anna", "wrong").startswith(b"-ERR [AUTH]")
        assert nameserver.asked() == 0
        reload(here)
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        assert nameserver.asked() == 0


def test_a_reload_that_waits_for_a_nameserver_keeps_nobody_waiting(site, nameserver):
    with door(site) as here:
        nameserver.die()
        nameserver.slow_down()
        before = site.settings["listen-address"]
        site.configure({"listen-address": f"{before} pop.{OTHER}:{here.port}"})
        here.process.send_signal(signal.SIGHUP)
        poll(lambda: nameserver.asked(OTHER), "the nameserver to be asked")
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        assert "reload" not in here.logs.text()
        site.configure({"listen-address": before})
        reload(here)  # which does not wait for the one before
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))


def test_a_listener_on_passed_sockets_asks_once(site, nameserver):
    with door(site, passed=True) as here:
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        nameserver.die()
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        reload(here)
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        assert nameserver.asked() == 0


def test_what_cannot_be_looked_up_is_no_wrong_password(site, nameserver):
    """Where each connection has a process of its own, each looks the name up if it has to."""
    with door(site, "--accept", "--inetd", passed=True) as here:
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        nameserver.die()
        assert attempt(here, "anna") == UNDECIDED
        assert nameserver.asked() > 0
        here.logs.wait_for(
            rf"login undecided rip=127.0.0.1 user=anna .*reason=.listen-address: {NAME}: "
        )
        assert "login failed" not in here.logs.text()
        # Those who need no domain are none the worse for it.
        assert attempt(here, "bert").startswith(b"+OK maildrop has 0 ")
        nameserver.asked()
        assert attempt(here, "anna@example.org").startswith(b"+OK maildrop has %d " % len(MESSAGES))
        assert attempt(here, "anna@example.org", "wrong").startswith(b"-ERR [AUTH]")
        assert nameserver.asked() == 0


def test_a_name_that_is_none_is_no_trouble(site, nameserver):
    """That of an address is not this one's: there is no domain to append."""
    with door(site, "--accept", "--inetd", passed=True) as here:
        listen = site.settings["listen-address"].replace(NAME, "localhost")
        site.configure({"listen-address": listen.replace("localhost", "127.0.0.9")})
        nameserver.die()
        assert attempt(here, "anna").startswith(b"-ERR [AUTH]")
        site.configure({"listen-address": listen})
        assert attempt(here, "anna").startswith(b"+OK maildrop has %d " % len(MESSAGES))
