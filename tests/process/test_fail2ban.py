"""The filter for fail2ban: the real one reads what the real server has logged, and no more in it.

fail2ban runs in the box, beside the server, with Debian's Python; tests/run has it unpacked.
"""

import importlib.util
import re
import shutil
from base64 import b64encode

import pytest

import test_hazard_gatekeeper as evil
import tlskit
from mailsite import CHECKOUT, need, poll
from samples import MESSAGES, spool_of
from test_systemd import EACH, LISTENER

UNPACKED = CHECKOUT / ".unpacked"
OURS = CHECKOUT / "tpop3d/fail2ban"
PYTHON = "/usr/bin/python3"
PLACE = "/opt/tpop3d/fail2ban"  # in the box
SERVER = "192.0.2.1"
CLIENTS = ["192.0.2.7", "192.0.2.8", "2001:db8::7"]
THIRD = "192.0.2.9"  # whom somebody would have banned
OTHER_TLS = "tpop3d-listener-tls.socket"
SETTINGS = {
    "auth-flatfile-enable": "yes",
    "auth-flatfile-passwd-file": "/etc/tpop3d.passwd",
    "auth-flatfile-mail-user": "bob",
    "auth-flatfile-mailbox": "bsd:/var/mail/$(user)",
    "plaintext-logins": "yes",
    "max-children-per-source": 0,
}
FORGED = {
    "another address": f"x rip={THIRD} method=USER",
    "the rest of a line": f'x rip={THIRD} method=USER driver=passwd reason="wrong password"',
    "a quote": f'x" rip={THIRD} method=USER driver=passwd reason="x',
    "IPv6": "x rip=2001:db8::9 method=USER",
    "a word of the line": f"rip={THIRD}",
    "an address": THIRD,
    "an address of IPv6": "[2001:db8::9]",
    "a mapped address": f"::ffff:{THIRD}",
    "a whole line": f"login failed rip={THIRD} user=x method=USER driver=passwd reason=x",
    "a line of a file": f"Nov 25 22:00:00 vm tpop3d[1]: login failed rip={THIRD} user=x method=USER"
    ' driver=passwd reason="wrong password"',
    "the order of old": f"login failed user=x rip={THIRD} method=USER driver=passwd reason=x",
    "two names": f"x user=y rip={THIRD} method=USER driver=passwd reason=x",
    "fail2ban's own": f"<HOST> <ADDR> {THIRD}",
    "a tab": f"x\trip={THIRD}\tmethod=USER",
    "a line separator": f"x\u2028login failed rip={THIRD} user=x method=USER driver=x reason=x",
    "a space of Unicode": f"x\u00a0rip={THIRD}\u00a0method=USER\u00a0driver=x\u00a0reason=x",
    "no UTF-8": f"x\udcff rip={THIRD} method=USER",
}


@pytest.fixture(scope="module")
def fail2ban(installation):
    """fail2ban in the box, with our files where an administrator puts them."""
    for package in ("fail2ban", "python3-systemd"):
        if not (UNPACKED / package).exists():
            pytest.skip(f"{package} is not unpacked")
    place = installation.directory / "opt/tpop3d/fail2ban"
    place.mkdir()
    for package in ("fail2ban", "python3-systemd"):
        packages = UNPACKED / package / "usr/lib/python3/dist-packages"
        shutil.copytree(packages, place / "packages", dirs_exist_ok=True)
    shutil.copytree(UNPACKED / "fail2ban/usr/bin", place / "bin", symlinks=True)
    etc = installation.path("/etc/fail2ban")
    shutil.copytree(UNPACKED / "fail2ban/etc/fail2ban", etc)
    for directory in ("filter.d", "jail.d"):
        shutil.copy(OURS / directory / "tpop3d.conf", etc / directory)
    yield
    shutil.rmtree(etc)
    shutil.rmtree(place)


@pytest.fixture
def box(box, fail2ban):
    """The box with some addresses, and an empty journal."""
    for address in (SERVER, *CLIENTS, THIRD):
        box.run("ip", "address", "add", address, "dev", "lo")
    box.add("ann", spool_of(MESSAGES))
    box.path("/etc/tpop3d.passwd").write_text("eve:{plaintext}secret\n")
    box.configure(SETTINGS)
    box.do("journalctl", "--rotate")
    box.do("journalctl", "--vacuum-size=1")
    return box


def run_fail2ban(box, program, *arguments):
    path = f"PYTHONPATH={PLACE}/packages"
    return box.do("env", path, "PYTHONDONTWRITEBYTECODE=1", PYTHON, f"{PLACE}/bin/{program}",
                  *arguments)  # fmt: skip


def banned(box, mode="normal"):
    """Who would be, and for which name or kind of line: the same from the journal, and from a file
    such as syslog daemons write."""
    log = box.path("/var/log/mail.log")
    log.write_text(box.do("journalctl", "--output=short", "--no-hostname", "-t", "tpop3d"))
    log.write_text(log.read_text().replace(" tpop3d[", " mail.example.org tpop3d["))
    found = []
    for source in ("systemd-journal", "/var/log/mail.log"):
        told = run_fail2ban(
            box, "fail2ban-regex", "--usedns=no", "-o", "<ip> <msg>", source,
            f"tpop3d[mode={mode}]",
        )  # fmt: skip
        # A message of several lines would be one that was forged.
        lines = [
            re.fullmatch(r"(\S+) .*?tpop3d\[\d+\]: (\w+)(?: failed rip=\S+ user=(\S+)| )?.*", line)
            for line in told.splitlines()
        ]
        found.append([(line[1], line[3] or line[2]) for line in lines])
    log.unlink()
    assert found[0] == found[1]
    return found[0]


def attempt(box, user, password="wrong", host=SERVER, **more):
    """One with USER and PASS."""
    wire = box.wire(host, **more)
    wire.line()
    wire.ask(f"USER {user}")
    answer = wire.ask(f"PASS {password}")
    wire.ask("QUIT")
    return answer


@pytest.fixture(params=[EACH, LISTENER])
def either(request):
    return request.param


@pytest.fixture
def unit():
    return LISTENER


class TestLogins:
    def test_refused_by_every_method(self, box, either):
        box.systemctl("start", either)
        first, second, third = CLIENTS
        assert attempt(box, "ann", source=first).startswith(b"-ERR [AUTH]")
        assert attempt(box, "zoe", source=second).startswith(b"-ERR [AUTH]")
        assert attempt(box, "bob", host="2001:db8::7", source=third).startswith(b"-ERR [AUTH]")
        wire = box.wire(SERVER, source=first)
        wire.line()
        assert wire.ask("AUTH PLAIN").startswith(b"+ ")
        wire.send(b64encode(b"\0eve\0wrong") + b"\r\n")
        assert wire.line().startswith(b"-ERR [AUTH]")
        assert wire.ask(f"APOP eve {'0' * 32}").startswith(b"-ERR [AUTH]")
        wire.ask("QUIT")
        poll(lambda: box.journal().count("end=quit") == 4, "the ends")
        assert sorted(banned(box)) == sorted(
            [(first, "ann"), (second, "zoe"), (third, "bob"), (first, "eve"), (first, "eve")]
        )

    def test_good_ones(self, box, unit):
        box.systemctl("start", unit)
        assert attempt(box, "ann", "secret", source=CLIENTS[0]).startswith(b"+OK")
        box.wire(SERVER, source=CLIENTS[1]).close()
        poll(lambda: box.journal().count("end=") == 2, "the ends")
        assert banned(box, "aggressive") == []

    def test_undecided_ones(self, box, unit):
        """The database is down, which is nobody's fault."""
        if importlib.util.find_spec("MySQLdb") is None:
            pytest.skip("mysqlclient is not installed in this Python")
        database = {"enable": "yes", "hostname": "127.0.0.1:1", "database": "mail",
                    "username": "x", "password": "x"}  # fmt: skip
        box.configure(SETTINGS | {f"auth-mysql-{key}": value for key, value in database.items()})
        box.systemctl("start", unit)
        assert attempt(box, "zoe@x", source=CLIENTS[0]).startswith(b"-ERR [SYS/TEMP]")
        box.wait_for_journal(f"login undecided rip={CLIENTS[0]} user=zoe@x ")
        assert banned(box, "aggressive") == []

    def test_apop_with_the_right_password_of_which_there_is_a_hash(self, box, unit):
        """The client has taken what it was offered, for somebody else."""
        box.path("/etc/tpop3d.passwd").write_text("eve:{plaintext}secret\nmia:$6$salt$hash\n")
        box.systemctl("start", unit)
        wire = box.wire(SERVER, source=CLIENTS[0])
        assert b"<" in wire.line()
        assert wire.ask(f"APOP mia {'0' * 32}").startswith(b"-ERR [AUTH]")
        box.wait_for_journal(f"login impossible rip={CLIENTS[0]} user=mia ")
        assert banned(box, "aggressive") == []

    def test_over_tls(self, box, unit):
        tls_settings(box)
        box.systemctl("start", unit)
        wire = box.wire(SERVER, source=CLIENTS[0])
        wire.line()
        tlskit.stls(wire)
        wire.ask("USER ann")
        assert wire.ask("PASS wrong").startswith(b"-ERR [AUTH]")
        wire.ask("QUIT")
        box.wait_for_journal("tls=TLSv1.3")
        assert banned(box) == [(CLIENTS[0], "ann")]

    def test_ipv4_over_ipv6(self, box, unit):
        box.adapt(unit, Socket_ListenStream="\nListenStream=[::]:110", Socket_BindIPv6Only="both")
        box.systemctl("start", unit)
        assert attempt(box, "ann", source=CLIENTS[0]).startswith(b"-ERR [AUTH]")
        box.wait_for_journal("login failed")
        assert banned(box) == [(CLIENTS[0], "ann")]

    def test_without_an_address_there_is_nobody(self, box, unit):
        box.adapt(unit, Socket_ListenStream="\nListenStream=/run/pop3")
        box.systemctl("start", unit)
        talk = (
            "import socket as s; c = s.socket(s.AF_UNIX); c.connect('/run/pop3'); f = c.makefile();"
            f" c.send(b'USER {THIRD}\\r\\nPASS x\\r\\nQUIT\\r\\n'); print(f.read())"
        )
        assert "-ERR [AUTH]" in box.do(PYTHON, "-c", talk)
        box.wait_for_journal(f"login failed rip=unix user={THIRD} ")
        assert banned(box) == []

    def test_forged_names(self, box, either):
        """All of them as USER can have them, and as AUTH PLAIN can."""
        box.systemctl("start", either)
        for text in FORGED.values():
            name = text.encode("utf-8", "surrogateescape")
            wire = box.wire(SERVER, source=CLIENTS[0])
            wire.line()
            wire.send(b"USER " + name + b"\r\nPASS wrong\r\n")
            assert wire.line().startswith(b"+OK")
            assert wire.line().startswith(b"-ERR [AUTH]")
            wire.ask("AUTH PLAIN")
            wire.send(b64encode(b"\0" + name + b"\0wrong") + b"\r\n")
            assert wire.line().startswith(b"-ERR [AUTH]")
            wire.ask("QUIT")
        poll(lambda: box.journal().count("end=quit") == len(FORGED), "the ends")
        found = banned(box, "aggressive")
        assert {address for address, _ in found} == {CLIENTS[0]}
        assert len(found) == 2 * len(FORGED)

    def test_long_names(self, box, either):
        """A log daemon that keeps 1,024 octets of a line, as RFC 3164 has it, keeps the address;
        the filter finds what it kept of a line that was not cut."""
        box.systemctl("start", either)
        wire = box.wire(SERVER, source=CLIENTS[0])
        wire.line()
        for octets in (255, 256, 9000):
            wire.ask("AUTH PLAIN")
            wire.send(b64encode(b"\0" + b"\xff" * octets + b"\0wrong") + b"\r\n")
            assert wire.line().startswith(b"-ERR [AUTH]")
        assert wire.line() == b""  # three are enough
        poll(lambda: box.journal().count("login failed") == 3, "the lines")
        lines = [line for line in box.journal().splitlines() if "login failed" in line]
        assert max(map(len, lines)) < 1500
        assert all(f"login failed rip={CLIENTS[0]} user=" in line for line in lines)
        assert banned(box) == [(CLIENTS[0], "\\xff" * 255)] * 3

    def test_forged_names_with_commands_logged(self, box, unit):
        """With -v, what clients send is in the log; it has nobody banned."""
        box.configure(SETTINGS | {"log-level": "debug"})
        box.systemctl("start", unit)
        wire = box.wire(SERVER, source=CLIENTS[0])
        wire.line()
        for what in ("a whole line", "a line of a file"):
            wire.ask(FORGED[what])
            wire.ask(f"NOOP {FORGED[what]}")
        wire.ask("QUIT")
        box.wait_for_journal("end=quit")
        assert THIRD in box.journal()
        assert banned(box, "aggressive") == []


def tls_settings(box):
    made = tlskit.authority().issue_cert(tlskit.HOST)
    tlskit.install(made, box.path("/etc/tpop3d.pem"), box.path("/etc/tpop3d.key"))
    files = {"tls-certificate": "/etc/tpop3d.pem", "tls-private-key": "/etc/tpop3d.key"}
    box.configure(SETTINGS | files)


def test_what_does_not_come_to_tls_is_for_another_mode(box):
    tls_settings(box)
    box.systemctl("start", LISTENER, OTHER_TLS)
    scanner = box.wire(SERVER, 995, source=CLIENTS[0])
    scanner.send(b"GET / HTTP/1.0\r\n\r\n")
    scanner.reader.read()
    box.wire(SERVER, 995, source=CLIENTS[1]).close()
    poll(lambda: box.journal().count("tls failed") == 2, "the lines")
    assert banned(box) == []
    assert sorted(banned(box, "aggressive")) == [(CLIENTS[0], "tls"), (CLIENTS[1], "tls")]


def test_too_many_connections_of_one_source(box):
    box.configure(SETTINGS | {"max-children": 3, "max-children-per-source": 2})
    box.systemctl("start", LISTENER)
    inside = [box.wire(SERVER, source=CLIENTS[0]) for _ in range(2)]
    assert all(wire.line().startswith(b"+OK") for wire in inside)
    assert box.is_full(SERVER, source=CLIENTS[0])
    # Another one, which finds no place because of the first, is not to blame.
    inside.append(box.wire(SERVER, source=CLIENTS[1]))
    assert inside[-1].line().startswith(b"+OK")
    assert box.is_full(SERVER, source=THIRD)
    poll(lambda: box.journal().count("connection refused") == 2, "the lines")
    # There may be an office behind that address, and none of them has guessed anything.
    assert banned(box) == []
    assert banned(box, "aggressive") == [(CLIENTS[0], "connection")]


def test_an_attack(box):
    """A gatekeeper in somebody else's hands says what it likes; whom it serves when that shows may
    be another client than who has it."""
    said = f"channel.log(3, 'login failed rip={THIRD} user=x method=USER driver=x reason=x')"
    body = f"    {said}\n    tell(channel.ask(attempt(name=b'{THIRD}')))\n    raw.send(b'X')"
    head, import_of_main, _ = box.path("/usr/local/bin/tpop3d").read_text().partition("from tpop3d")
    assert import_of_main
    script = box.directory / "local/bin/evil"
    script.write_text(head + evil.START.format(body=body))
    script.chmod(0o755)
    box.adapt("tpop3d@.service", Service_ExecStart="/usr/local/bin/evil --inetd")
    box.systemctl("start", EACH)
    wire = box.wire(SERVER, source=CLIENTS[0])
    assert wire.line() == b"+OK evil\r\n"
    wire.reader.read()
    box.wait_for_journal(f"attack serving={CLIENTS[0]} gatekeeper=")
    box.wait_for_journal(f'says="login failed rip={THIRD} user=x ')
    script.unlink()
    assert banned(box, "aggressive") == [(CLIENTS[0], THIRD)]


def test_what_another_user_of_the_machine_logs_is_nobodys_doing(box):
    """The journal knows who says so; a file does not."""
    line = f"login failed rip={THIRD} user=x method=USER driver=x reason=x"
    as_ann = ("setpriv", "--reuid=ann", "--clear-groups")
    box.do(*as_ann, "logger", "-t", "tpop3d", "-p", "mail.notice", line)
    box.wait_for_journal(line)
    told = run_fail2ban(box, "fail2ban-regex", "-o", "<ip>", "systemd-journal", "tpop3d")
    assert told == ""
    # As root's, it would be.
    box.do("logger", "-t", "tpop3d", "-p", "mail.notice", line)
    poll(
        lambda: run_fail2ban(box, "fail2ban-regex", "-o", "<ip>", "systemd-journal", "tpop3d"),
        "root's line",
    )


@pytest.fixture
def jailer(box):
    """The real daemon with our jail; and with sshd's, mended as tpop3d(8) says."""
    need("nft")
    etc = box.path("/etc/fail2ban")
    (etc / "jail.local").write_text("[DEFAULT]\nignoreself = false\n")  # all are the box's here
    (etc / "jail.d/sshd.local").write_text("[sshd]\nbackend = systemd\n")
    box.path("/run/fail2ban").mkdir(exist_ok=True)
    assert "successful" in run_fail2ban(box, "fail2ban-client", "--test")
    box.do(
        "systemd-run", "--quiet", "--collect", "--unit=fail2ban",
        f"--setenv=PYTHONPATH={PLACE}/packages", PYTHON, f"{PLACE}/bin/fail2ban-server",
        "-f", "--logtarget=STDERR", "start",
    )  # fmt: skip
    try:
        box.wait_for_journal("Jail 'tpop3d' started")
        yield box
    finally:
        box.systemctl("stop", "fail2ban.service")
        box.run("nft", "flush", "ruleset")
        box.do("rm", "-f", "/var/lib/fail2ban/fail2ban.sqlite3")  # where bans are remembered


def ruleset(box):
    return box.do("nft", "list", "ruleset")


class TestTheJail:
    def test_who_guesses_is_banned_in_earnest(self, jailer):
        box = jailer
        box.systemctl("start", EACH)
        for _ in range(10):
            attempt(box, FORGED["the rest of a line"], source=CLIENTS[0])
        poll(lambda: CLIENTS[0] in ruleset(box), "the ban")
        assert THIRD not in ruleset(box)
        with pytest.raises(ConnectionRefusedError):
            box.wire(SERVER, source=CLIENTS[0])
        assert attempt(box, "ann", "secret", source=CLIENTS[1]).startswith(b"+OK")

    def test_a_ban_is_proved_as_the_page_says(self, jailer):
        nobody = "203.0.113.1"
        run_fail2ban(jailer, "fail2ban-client", "set", "tpop3d", "banip", nobody)
        poll(lambda: nobody in ruleset(jailer), "the ban")
        assert re.search(r"addr-set-tpop3d \{[^}]*elements = \{ 203\.0\.113\.1 \}", ruleset(jailer))
        run_fail2ban(jailer, "fail2ban-client", "set", "tpop3d", "unbanip", nobody)
        poll(lambda: nobody not in ruleset(jailer), "its end")
