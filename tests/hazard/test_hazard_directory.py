"""A directory that does not answer: nobody is told that a password is wrong, and nobody banned.

slapd, nslcd and nscd are the real ones (see `ldapkit`).
"""

import os
import re
import signal

import pytest

import ldapkit
from mailsite import MAIL_USER, poll
from samples import MESSAGES, on_the_wire, spool_of

IN = b"+OK"
WRONG = b"-ERR [AUTH] wrong name or password\r\n"
UNDECIDED = b"-ERR [SYS/TEMP] logins cannot be checked now, try again later\r\n"
NOT_READY = b"-ERR [SYS/TEMP] server is not ready, try again later\r\n"
SILENCE = (
    "ldap does not answer: No such file or directory; see passwd in /etc/nsswitch.conf"  # errno 2
)
ENABLE = {
    "auth-flatfile-enable": None,
    "auth-failure-delay-seconds": 0,
} | {f"auth-flatfile-{name}": None for name in ("passwd-file", "mail-user", "mailbox")}
DRIVERS = ("passwd", "pam")


@pytest.fixture(scope="module")
def machine():
    ldapkit.require()
    made = ldapkit.Directory()
    yield made
    made.close()


@pytest.fixture
def directory(machine):
    """The directory, which answers; whatever a test does to it is undone."""
    yield machine
    machine.mend()


def settings_for(site, driver):
    site.spools.chmod(0o777)
    return ENABLE | {f"auth-{driver}-enable": "yes", "mailbox": f"bsd:{site.spools}/$(user)"}


@pytest.fixture(params=DRIVERS)
def driver(request):
    if request.param == "pam":
        pytest.importorskip("pam", reason="python-pam is not installed in this Python")
    return request.param


@pytest.fixture
def door(site, directory, driver):
    site.add("anna", spool_of(MESSAGES))
    with directory.door(site, settings_for(site, driver)) as door:
        yield door


def attempt(door, name="anna", password="secret"):
    """What a client is told that tries to log in: `IN`, or the whole line."""
    wire = door.connect()
    assert wire.line().startswith(b"+OK")
    wire.ask(f"USER {name}")
    line = wire.ask(f"PASS {password}")
    if line.startswith(IN):
        assert wire.ask("QUIT").startswith(IN)
        line = IN
    wire.close()
    return line


def counted(door, directory):
    """Those whom fail2ban's filter for us finds in the log, each as often as it does."""
    log = door.logs.path.with_name("as-in-syslog")
    stamp = "2026-11-28T05:00:00+00:00 mail "
    log.write_text("".join(f"{stamp}{line}\n" for line in door.logs.lines()))
    return directory.fail2ban_regex(log)


# Users


def test_the_directorys_users_log_in(door):
    assert attempt(door) == IN
    assert attempt(door, password="wrong") == WRONG
    assert attempt(door, "nobody-knows") == WRONG
    door.logs.wait_for(r"login failed rip=127.0.0.1 user=nobody-knows .*reason=.unknown user")


def test_whoever_ignores_case_gets_the_users_maildrop(door):
    """`ignorecase yes` in nslcd.conf(5)."""
    wire = door.connect()
    wire.login("Anna")
    assert wire.ask("STAT") == b"+OK %d %d\r\n" % (
        len(MESSAGES), sum(len(on_the_wire(one)) for one in MESSAGES)
    )  # fmt: skip
    assert wire.ask("QUIT").startswith(IN)
    door.logs.wait_for(r"session .*user=anna ")
    assert not os.path.exists(f"{door.logs.path.parent}/spool/Anna")


TROUBLES = {
    "slapd is gone": lambda directory: directory.stop("slapd"),
    "slapd hangs": lambda directory: directory.send("slapd", signal.SIGSTOP),
    "nslcd is gone": lambda directory: directory.stop("nslcd"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_who_cannot_be_looked_up_has_no_wrong_password(door, directory, trouble):
    TROUBLES[trouble](directory)
    assert attempt(door) == UNDECIDED
    assert attempt(door, "nobody-knows") == UNDECIDED
    line = door.logs.wait_for(r"login undecided rip=127.0.0.1 user=anna ")
    assert SILENCE in line
    assert "login failed" not in door.logs.text()
    assert counted(door, directory) == []
    directory.mend()
    assert attempt(door) == IN
    assert attempt(door, password="wrong") == WRONG
    assert counted(door, directory) == ["127.0.0.1"]


def test_who_takes_too_long_is_cut_off(site, directory, driver):
    """nslcd itself hangs: whoever asks it waits for a minute."""
    site.add("anna", spool_of(MESSAGES))
    settings = settings_for(site, driver) | {"auth-timeout-seconds": 1}
    with directory.door(site, settings) as door:
        directory.send("nslcd", signal.SIGSTOP)
        assert attempt(door) == UNDECIDED
        door.logs.wait_for("login undecided .*driver gave no answer in 1 seconds")
        assert counted(door, directory) == []


LINES = [
    "files ldap",
    "files systemd ldap",
    "files ldap [NOTFOUND=return]",
    "files ldap [NOTFOUND=return] systemd",
    "files[SUCCESS=return]ldap[!UNAVAIL=return]systemd",
    "compat ldap",
    # Behind which the C library's own answer is that there is no such user.
    "files ldap systemd",
    "ldap files",
    "ldap files systemd  # as somebody likes it",
]


@pytest.mark.parametrize("line", LINES)
def test_whichever_way_the_services_are_named(site, directory, line):
    directory.switch(line)
    site.add("anna", spool_of(MESSAGES))
    with directory.door(site, settings_for(site, "passwd")) as door:
        assert attempt(door) == IN
        assert attempt(door, "nobody-knows") == WRONG
        directory.stop("nslcd")
        assert attempt(door) == UNDECIDED
        assert SILENCE in door.logs.text()


def test_an_administrator_may_say_that_silence_is_no_trouble(site, directory):
    directory.switch("files ldap [UNAVAIL=continue] files")
    with directory.door(site, settings_for(site, "passwd")) as door:
        directory.stop("nslcd")
        assert attempt(door) == WRONG


def test_a_cache_that_says_there_is_nobody_is_not_believed(door, directory):
    """nscd(8), which Debian installs with nslcd."""
    directory.start("nscd")
    directory.stop("slapd")
    assert not directory.knows("anna")
    assert attempt(door) == UNDECIDED
    assert counted(door, directory) == []


def test_a_cache_that_remembers_that_there_was_nobody(site, directory):
    """Nor is it right that a new user is kept out for as long."""
    pytest.importorskip("pam", reason="python-pam is not installed in this Python")
    directory.start("nscd")
    assert not directory.knows("newcomer")
    directory.add("newcomer")
    assert not directory.knows("newcomer")
    site.add("newcomer", spool_of(MESSAGES))
    site.configure({"auth-flatfile-mail-user": "newcomer"})
    assert directory.tpop3d("-f", site.conf, "--check-config").returncode == 0
    settings = settings_for(site, "pam") | {"auth-pam-facility": ldapkit.STRICT}
    with directory.door(site, settings) as door:
        assert attempt(door, "newcomer") == IN
        assert not directory.knows("newcomer")


def test_a_cache_that_knows_the_user_does_not_check_the_password(site, directory):
    """Debian's services pass over pam_ldap(8) where nslcd does not answer, and say AUTH_ERR."""
    pytest.importorskip("pam", reason="python-pam is not installed in this Python")
    site.add("bert", spool_of(MESSAGES))
    directory.start("nscd")
    with directory.door(site, settings_for(site, "pam")) as door:
        assert attempt(door, "bert") == IN
        assert attempt(door, "bert", "wrong") == WRONG
        directory.stop("nslcd")
        assert directory.knows("bert")
        assert attempt(door, "bert") == UNDECIDED
        assert counted(door, directory) == ["127.0.0.1"]  # for the wrong one before


def test_services_that_do_not_pass_over_a_directory(site, directory):
    """The sample's: what PAM is told of trouble, we are, also where users can be looked up."""
    pytest.importorskip("pam", reason="python-pam is not installed in this Python")
    site.add("bert", spool_of(MESSAGES))
    directory.start("nscd")
    settings = settings_for(site, "pam") | {"auth-pam-facility": ldapkit.STRICT}
    with directory.door(site, settings) as door:
        assert attempt(door, "bert") == IN
        assert attempt(door, "bert", "wrong") == WRONG
        assert attempt(door, "nobody-knows") == WRONG
        before = counted(door, directory)
        directory.stop("slapd")
        assert directory.knows("bert")
        assert attempt(door, "bert") == UNDECIDED
        door.logs.wait_for("user=bert .*PAM: Authentication service cannot retrieve")
        assert counted(door, directory) == before
        directory.mend()
        assert attempt(door, "bert") == IN


@pytest.mark.parametrize("service", ["tpop3d", ldapkit.STRICT])
def test_a_service_that_passes_over_a_directory_is_a_warning(site, directory, service):
    pytest.importorskip("pam", reason="python-pam is not installed in this Python")
    site.configure(settings_for(site, "pam") | {"auth-pam-facility": service})
    done = directory.tpop3d("-f", site.conf, "--check-config")
    assert done.returncode == 0
    passed_over = f"/etc/pam.d/{service}:2: pam_ldap is passed over when whom it asks does not"
    assert (passed_over in done.stderr.decode()) == (service != ldapkit.STRICT)


def test_of_who_has_a_hash_here_the_directory_is_not_asked(site, directory):
    """A wrong password is a wrong one, whoever does not answer."""
    site.add("local", spool_of(MESSAGES))
    with (directory.etc / "passwd").open("a") as passwd:
        passwd.write(f"local:x:{MAIL_USER.pw_uid}:{MAIL_USER.pw_gid}::/nonexistent:/bin/false\n")
    with (directory.etc / "shadow").open("a") as shadow:
        shadow.write(f"local:{ldapkit.SHA512_OF_SECRET}:19000:0:99999:7:::\n")
    settings = settings_for(site, "pam")
    pytest.importorskip("pam", reason="python-pam is not installed in this Python")
    with directory.door(site, settings) as door:
        directory.stop("nslcd")
        assert attempt(door, "local") == IN
        assert attempt(door, "local", "wrong") == WRONG
        door.logs.wait_for("user=local .*wrong password")


def test_sssd_that_does_not_answer(site, directory):
    """libnss-sss, where somebody has set up an sssd, and where nobody has."""
    directory.switch("files systemd sss")
    with directory.door(site, settings_for(site, "passwd")) as door:
        assert attempt(door) == WRONG  # as on any machine of a distribution that has it in the line
        sssd = directory.etc / "sssd"
        (sssd / "conf.d").mkdir(parents=True)
        assert attempt(door) == WRONG
        (sssd / "sssd.conf").write_text("[sssd]\n")
        assert attempt(door) == UNDECIDED
        assert "sss does not answer: " in door.logs.text()
        (sssd / "sssd.conf").rename(sssd / "conf.d/sssd.conf")
        directory.switch("sss files systemd")  # Red Hat's order
        assert attempt(door) == UNDECIDED


# Users and groups of the configuration


def test_a_login_that_is_tried_cannot_be_checked(site, directory, driver):
    site.configure(settings_for(site, driver))
    arguments = ("-f", site.conf, "--test-login", "anna")
    directory.stop("nslcd")
    done = directory.tpop3d(*arguments, stdin=None, input=b"secret\n")
    assert done.returncode == 4, done.stderr
    assert f"cannot say: {SILENCE}".encode() in done.stdout
    directory.mend()
    site.add("anna", spool_of(MESSAGES))
    assert directory.tpop3d(*arguments, stdin=None, input=b"secret\n").returncode == 0


VIRTUAL = {
    "auth-flatfile-mail-user": ("anna", "user 'anna'"),
    "auth-flatfile-mail-group": ("mailers", "group 'mailers'"),
    "gatekeeper-user": ("anna", "user 'anna'"),
}


@pytest.mark.parametrize("key", VIRTUAL)
def test_a_name_in_the_configuration_that_cannot_be_looked_up(site, directory, key):
    name, what = VIRTUAL[key]
    site.configure({key: name})
    check = ("-f", site.conf, "--check-config")
    assert directory.tpop3d(*check).returncode == 0
    directory.stop("nslcd")
    site.configure({"listen-address": "127.0.0.1:1"})
    recover = ("--recover", "-f", site.conf) if key != "gatekeeper-user" else check
    for words in (check, ("-d", "-f", site.conf), recover):
        done = directory.tpop3d(*words)
        assert done.returncode != 0
        said = done.stderr.decode()
        assert f"{key}: {what} cannot be looked up: ldap does not answer: " in said
        assert not re.search("there is no (user|group)", said)
        assert "useradd" not in said


def test_groups_have_a_line_of_their_own(site, directory):
    site.configure({"auth-flatfile-mail-group": "mailers"})
    directory.switch("files", group="files ldap")
    check = ("-f", site.conf, "--check-config")
    assert directory.tpop3d(*check).returncode == 0
    directory.stop("nslcd")
    said = directory.tpop3d(*check).stderr.decode()
    assert "ldap does not answer: No such file or directory; see group in /etc/nsswitch" in said
    directory.switch("files ldap", group="files")
    assert "there is no group 'mailers'" in directory.tpop3d(*check).stderr.decode()


@pytest.mark.parametrize("key", VIRTUAL)
def test_a_client_is_told_to_come_again(site, directory, key):
    """Where each connection has a process, which reads the configuration."""
    site.add("anna", spool_of(MESSAGES))
    site.configure({key: VIRTUAL[key][0]})
    serve = ("--inetd", "-f", site.conf)
    directory.stop("nslcd")
    assert directory.tpop3d(*serve, stdin=None, input=b"QUIT\r\n").stdout == NOT_READY
    site.configure({"tls-mode": "no such mode"})
    refused = directory.tpop3d(*serve, stdin=None, input=b"QUIT\r\n").stdout
    assert refused.startswith(b"-ERR [SYS/PERM]")
    site.configure({"tls-mode": None})
    directory.mend()
    assert directory.tpop3d(*serve, stdin=None, input=b"QUIT\r\n").stdout.startswith(IN)


# A reload


def test_a_reload_that_waits_for_the_directory_keeps_nobody_waiting(site, directory):
    site.add("bob", spool_of(MESSAGES))
    with directory.door(site, {"auth-failure-delay-seconds": 0}) as door:
        site.configure({"auth-flatfile-mail-group": "mailers"})
        directory.send("nslcd", signal.SIGSTOP)
        door.process.send_signal(signal.SIGHUP)
        looking_up = poll(lambda: _asking(door.process.pid), "somebody to ask nslcd", 60)
        for _ in range(3):
            assert attempt(door, "bob") == IN
        # nslcd's clients wait for a minute.
        assert os.path.exists(f"/proc/{looking_up}")
        assert "reload" not in door.logs.text()
        directory.send("nslcd", signal.SIGCONT)
        door.logs.wait_for("reload: the configuration is read again")
        assert attempt(door, "bob") == IN
        # One that cannot be carried out changes nothing.
        directory.stop("nslcd")
        door.process.send_signal(signal.SIGHUP)
        door.logs.wait_for("reload: the configuration has errors, and is kept as it was")
        assert "group 'mailers' cannot be looked up: ldap does not answer: " in door.logs.text()
        assert attempt(door, "bob") == IN


def test_a_reload_that_waits_ends_with_the_listener_and_gives_way_to_the_next(site, directory):
    site.add("bob", spool_of(MESSAGES))
    with directory.door(site, {"auth-failure-delay-seconds": 0}) as door:
        site.configure({"auth-flatfile-mail-group": "mailers"})
        directory.send("nslcd", signal.SIGSTOP)
        door.process.send_signal(signal.SIGHUP)
        first = poll(lambda: _asking(door.process.pid), "somebody to ask nslcd", 60)
        site.configure({"auth-flatfile-mail-group": "mail", "max-children": 7})
        door.process.send_signal(signal.SIGHUP)
        door.logs.wait_for("reload: the configuration is read again")
        poll(lambda: not os.path.exists(f"/proc/{first}"), "the first to be ended", 60)
        door.process.send_signal(signal.SIGUSR1)
        door.logs.wait_for("serving 0 of 7 connections")
        site.configure({"auth-flatfile-mail-group": "mailers"})
        door.process.send_signal(signal.SIGHUP)
        poll(lambda: _asking(door.process.pid), "somebody to ask nslcd", 60)
        # What is read then is not what was looked up: that is done again.
        site.configure({"auth-flatfile-mail-group": "games", "max-children": 9})
        directory.send("nslcd", signal.SIGCONT)
        poll(
            lambda: door.logs.text().count("configuration is read again") == 2, "the other file", 60
        )
        door.process.send_signal(signal.SIGUSR1)
        door.logs.wait_for("serving 0 of 9 connections")
        directory.send("nslcd", signal.SIGSTOP)
        site.configure({"auth-flatfile-mail-group": "mailers"})
        door.process.send_signal(signal.SIGHUP)
        last = poll(lambda: _asking(door.process.pid), "somebody to ask nslcd", 60)
        door.process.terminate()
        assert door.process.wait(60) == 0
        poll(lambda: not os.path.exists(f"/proc/{last}"), "the last to be ended", 60)


def _asking(listener):
    """The pid of the listener's process that asks nslcd: of sockets it has one, none of the
    listener's, and a pipe besides that for signals."""
    theirs = _links(listener)
    with open(f"/proc/{listener}/task/{listener}/children") as children:
        for pid in children.read().split():
            links = _links(pid)
            sockets = {link for link in links if link.startswith("socket:")}
            pipes = {link for link in links if link.startswith("pipe:")}
            if len(pipes) == 2 and len(sockets) == 1 and not sockets & theirs:
                return pid
    return None


def _links(pid):
    """What a process has open."""
    files, links = f"/proc/{pid}/fd", set()
    try:
        for fd in os.listdir(files):
            links.add(os.readlink(f"{files}/{fd}"))
    except OSError:
        pass  # it, or the descriptor, has gone
    return links
