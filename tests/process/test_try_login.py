"""`tpop3d --test-login`: what each driver answers, whose the maildrop is, and whether it opens."""

import os
import pty
import subprocess

import pytest

import doors
from authkit import SERVER, read_line, tpop3d
from mailsite import ENVIRONMENT, IS_ROOT, MAIL_USER, PATIENCE, as_ordinary_user
from trying import OCTETS, SPOOL, Outcome, attempt

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")


@pytest.fixture
def anna(site):
    site.add("anna", SPOOL)
    return site


def test_a_login_that_succeeds(anna):
    got = attempt(anna)
    assert (got.status, got.stderr) == (0, "")
    assert got.words == [
        *([] if IS_ROOT else ["note"]),
        "name", "flatfile", "account", "mailbox", "state", "maildrop", "result",
    ]  # fmt: skip
    assert got.of("flatfile")[0].startswith("yes (0.")
    assert got.of("account")[0].startswith(f"anna: uid {MAIL_USER.pw_uid} ({MAIL_USER.pw_name}), ")
    assert got.of("mailbox") == [f"{anna.spool('anna')} (chosen)"]
    assert got.of("maildrop")[0].startswith(f"opens: 2 messages, {OCTETS} octets (0.")
    assert got.of("result") == ["the login succeeds, and the maildrop opens"]


def test_nothing_is_removed_and_no_more_made_than_by_a_session(anna):
    before = anna.spool("anna").stat()
    got = attempt(anna)
    after = anna.spool("anna").stat()
    assert anna.spool("anna").read_bytes() == SPOOL
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [path.name for path in anna.spools.iterdir()] == ["anna"]
    (place,) = anna.state.iterdir()
    assert got.of("state") == [str(place)]
    assert [path.name for path in place.iterdir()] == ["lock"]
    assert {path.stat().st_uid for path in (place, place / "lock")} == {MAIL_USER.pw_uid}


def test_a_wrong_password_with_every_drivers_answer(anna):
    anna.configure({"auth-passwd-enable": "yes", "auth-drivers": "flatfile passwd"})
    got = attempt(anna, said=b"wrong\n")
    assert got.status == (3 if IS_ROOT else 4)
    assert got.words[-4:] == ["name", "flatfile", "passwd", "result"]
    assert got.of("flatfile")[0].startswith("no: wrong password (")
    expected = "no: unknown user (" if IS_ROOT else "cannot say: /etc/shadow: "
    assert got.of("passwd")[0].startswith(expected)
    assert not list(anna.state.iterdir())


def test_the_first_yes_is_the_last_one_asked(anna):
    anna.configure({"auth-passwd-enable": "yes", "auth-drivers": "flatfile passwd"})
    assert attempt(anna).of("passwd") == ["not asked"]


DOMAINS = [
    ({}, "anna@example.org", 3, ["anna, domain example.org"]),
    ({"strip-domain": "yes"}, "anna%example.org", 0, ["anna, domain example.org", "anna"]),
    ({"lowercase-user": "yes"}, "ANNA", 0, ["anna"]),
    ({"append-domain": "yes"}, "bert", 3, ["bert"]),
    (
        {"append-domain": "yes", "listen-address": "127.0.0.1:1110(b.example)"},
        "bert", 3, ["bert", "bert, domain b.example"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "user", "status", "names"), DOMAINS)
def test_which_names_are_tried(anna, settings, user, status, names):
    anna.configure(settings)
    got = attempt(anna, user)
    assert (got.status, got.of("name")) == (status, names)
    assert len(got.of("flatfile")) == len(names)


def test_of_several_domains_one_is_appended_and_that_is_said(anna):
    addresses = "127.0.0.1:1110(b.example) 127.0.0.2:1110(c.example)"
    anna.configure({"append-domain": "yes", "listen-address": addresses})
    got = attempt(anna, "bert")
    assert got.of("note")[-1] == "append-domain appends what it does at 127.0.0.1"
    assert got.of("name") == ["bert", "bert, domain b.example"]


@pytest.mark.parametrize(("said", "end"), [(b"secret\r\n", "CR LF"), (b"secret\r", "CR LF")])
def test_a_line_of_windows_is_a_line(anna, said, end):
    got = attempt(anna, said=said)
    assert got.status == 0
    assert end in got.of("password")[0]


@pytest.mark.parametrize("said", [b"secret", b"secret\nmore\n", b"secret\n\n"])
def test_the_password_is_the_first_line(anna, said):
    got = attempt(anna, said=said)
    assert (got.status, got.of("password")) == (0, [])


@pytest.mark.parametrize("said", [b"secret \n", b"secret\r\r\n", b" secret\n"])
def test_blanks_are_part_of_a_password(anna, said):
    assert attempt(anna, said=said).status == 3


def test_an_empty_password(anna):
    got = attempt(anna, said=b"\n")
    assert got.status == 3
    assert got.words[-2:] == ["no", "result"]
    assert "driver is asked: empty password" in got.of("no")[0]
    anna.configure({"permit-empty-password": "yes"})
    got = attempt(anna, said=b"\n")
    assert got.of("flatfile")[0].startswith("no: wrong password")


WRONG_USE = [
    ("anna", b"", (), "standard input, and there is none"),
    ("", b"secret\n", (), "a name is needed"),
    ("anna", b"x" * 20000, (), "no client can send a password of that length"),
    ("anna", b"secret\n", ("--from", "example.org"), "is no address"),
]


@pytest.mark.parametrize(("user", "said", "arguments", "why"), WRONG_USE)
def test_wrong_use(anna, user, said, arguments, why):
    got = attempt(anna, user, said, *arguments)
    assert (got.status, got.text) == (2, "")
    assert why in got.stderr
    assert "Traceback" not in got.stderr


@pytest.mark.parametrize("option", [["--from", "192.0.2.7"], ["--json"]])
def test_options_that_go_with_another(option):
    done = tpop3d(*option)
    assert done.returncode == 2
    assert b" goes with --" in done.stderr


def test_a_configuration_with_errors(anna):
    anna.configure({"colour": "red"})
    got = attempt(anna)
    assert (got.status, got.text) == (1, "")
    assert "colour" in got.stderr


def test_a_name_is_shown_as_printable_ascii(anna):
    got = attempt(anna, "an\x1b[31mna\udcff\n")
    assert got.of("name") == ["an\\x1b[31mna\\xff\\x0a"]


def test_clients_that_must_have_tls(anna):
    got = attempt(anna, "anna", b"secret\n", "--from", "192.0.2.7")
    assert got.status == 3
    assert "(plaintext-logins: local), and there is no tls-certificate" in got.of("note")[-1]
    assert got.of("result") == ["the password is good, and is not taken without TLS"]
    assert attempt(anna, "anna", b"secret\n", "--from", "127.0.0.1").status == 0
    anna.configure({"plaintext-logins": "yes"})
    assert attempt(anna, "anna", b"secret\n", "--from", "192.0.2.7").status == 0
    anna.configure({"apop-only": "yes"})
    assert "(apop-only)" in attempt(anna).of("note")[-1]
    anna.configure({"tls-certificate": "/etc/ssl/none.pem"})
    assert attempt(anna).status == 0


@as_root
def test_what_an_ordinary_user_cannot_try_is_said(anna):
    anna.configure({"auth-passwd-enable": "yes"})
    anna.conf.chmod(0o644)
    anna.passwd.chmod(0o644)
    modules = "grp, tpop3d.commands.try_login, tpop3d.auth.isolation"
    command = as_ordinary_user(modules, 2001, "--test-login", "anna", "-f", anna.conf)
    done = subprocess.run(command, input=b"secret\n", env=ENVIRONMENT, cwd="/", capture_output=True)
    got = Outcome(done)
    assert got.status == 6, done
    assert "tried as uid 2001, not as root" in got.of("note")[0]
    assert got.of("passwd")[0].startswith("cannot say: /etc/shadow: Permission denied")
    assert got.of("maildrop") == [f"not tried: not root, so cannot become uid {MAIL_USER.pw_uid}"]
    assert "only root can try" in got.of("result")[0]
    assert not list(anna.state.iterdir())


def test_the_password_from_a_terminal_is_not_shown(anna):
    ours, theirs = pty.openpty()
    command = [*SERVER, "--test-login", "anna", "-f", str(anna.conf)]
    with (
        open(theirs, "wb", buffering=0) as terminal,
        subprocess.Popen(
            command, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, env=ENVIRONMENT
        ) as process,
    ):
        try:
            prompt = b""
            while not prompt.endswith(b"Password of anna: "):
                prompt += os.read(ours, 100)
            os.write(ours, b"secret\n")
            output = process.communicate(timeout=PATIENCE)[0]
        finally:
            process.kill()
    os.set_blocking(ours, False)
    shown = read_line(ours)
    os.close(ours)
    assert process.returncode == 0, output
    assert b"secret" not in shown + output
    assert shown == b"\r\n"


def test_the_server_says_the_same(anna):
    """What is tried here is what a client meets."""
    with doors.inetd(anna) as wire:
        wire.login("anna")
        assert wire.ask("STAT") == b"+OK 2 %d\r\n" % OCTETS
    assert f"2 messages, {OCTETS} octets" in attempt(anna).text
