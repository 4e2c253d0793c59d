"""`tpop3d --check-config`: what is in effect, as a configuration file, or all that is wrong."""

import _socket
import datetime
import os
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tlskit
from authkit import CANARY, LEAST, NO_TLS, foreign_driver, text_of, tpop3d
from doors import free_port
from mailsite import ENVIRONMENT, IS_ROOT
from tpop3d.commands import check_config
from tpop3d.config.reader import MASK
from tpop3d.configuration import WrongConfiguration, read
from tpop3d.settings import DIRECTIVES

DRIVER = """
from tpop3d.auth.driver import Verdict
from tpop3d.config.directive import Directive

class Driver:
    directives = {"secret": Directive(str, secret=True), "open": Directive(str)}
    checks_apop = False

    def __init__(self, settings):
        pass

    def authenticate(self, login):
        return Verdict.no("x")
"""


LOUD = LEAST | {"log-stderr": "yes"}  # there may be no /dev/log here


def conf(directory, content):
    file = directory / "tpop3d.conf"
    file.touch(mode=0o600)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def directives(output):
    lines = [line.partition("#")[0].strip() for line in output.decode().splitlines()]
    pairs = [line.partition(":") for line in lines if line]
    return {key: value.strip() for key, _, value in pairs}


def test_a_right_configuration_is_printed_with_status_0(tmp_path):
    done = tpop3d("--check-config", "-f", conf(tmp_path, text_of(LOUD) + "max-children: 7\n"))
    assert (done.returncode, done.stderr.decode()) == (0, NO_TLS)
    shown = directives(done.stdout)
    assert shown["max-children"] == "7"
    assert shown["timeout-seconds"] == "600"
    assert {key: shown[key] for key in LEAST} == LEAST
    assert set(DIRECTIVES) <= set(shown)


def test_what_is_a_default_is_said(tmp_path):
    done = tpop3d("--check-config", "-f", conf(tmp_path, text_of(LEAST) + "log-level: info\n"))
    lines = done.stdout.decode().splitlines()
    assert [line for line in lines if line.startswith("log-level")] == ["log-level: info"]
    defaults = [line for line in lines if "# default" in line]
    given = {"log-level", *LEAST} & set(DIRECTIVES)
    assert len(defaults) == len(DIRECTIVES) - len(given)


def test_errors_are_printed_with_status_2_and_no_configuration(tmp_path):
    file = conf(tmp_path, "colour: red\nmax-children: none\n" + text_of(LEAST))
    done = tpop3d("--check-config", "-f", file)
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == [f"{file}:1", f"{file}:2"]
    assert all(line.startswith("warning: ") for line in lines[2:])


def test_a_missing_file_is_an_error(tmp_path):
    done = tpop3d("--check-config", "-f", tmp_path / "missing")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"{tmp_path}/missing: No such file or directory\n"


WRONG_GATEKEEPERS = {
    "no-such-user": "gatekeeper-user: there is no user 'no-such-user' on this system; make it with",
    "root": "gatekeeper-user: root must not be root, or in its group",
    "0": "gatekeeper-user: 0 must not be root, or in its group",
}


@pytest.mark.skipif(not IS_ROOT, reason="without root there is no gatekeeper's user")
@pytest.mark.parametrize(("user", "why"), WRONG_GATEKEEPERS.items())
def test_as_root_the_gatekeepers_user_must_exist_and_must_not_be_root(tmp_path, user, why):
    file = conf(tmp_path, text_of(LEAST | {"gatekeeper-user": user}))
    done = tpop3d("--check-config", "-f", file)
    assert (done.returncode, done.stdout) == (2, b"")
    (error,) = [line for line in done.stderr.decode().splitlines() if "warning: " not in line]
    assert error.startswith(f"{file}:1: {why}")


@pytest.mark.skipif(os.geteuid() != 0, reason="without root it is whoever's it is")
@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o711), (0, 0o777), (0, 0o1777), (0, 0o775)])
@pytest.mark.parametrize("how", ["--check-config", "--inetd", "a listener"])
def test_as_root_the_state_directory_must_be_roots_alone(site, owner, mode, how):
    os.chown(site.state, owner, 0)
    site.state.chmod(mode)
    site.configure({"listen-address": f"127.0.0.1:{free_port()}"})
    words = [] if how == "a listener" else [how]
    done = tpop3d(*words, "-f", site.conf, env=ENVIRONMENT)
    assert done.returncode == (2 if how == "--check-config" else 1)
    why = f"state-directory: {site.state}: must belong to root, and nobody else may write to it"
    assert why in done.stderr.decode()
    if how == "--inetd":
        assert done.stdout.startswith(b"-ERR [SYS/PERM]")
    assert not (site.state / "empty").exists()


def test_without_root_the_gatekeepers_user_need_not_exist(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    file = conf(tmp_path, text_of(LEAST | {"gatekeeper-user": "no-such-user"}))
    assert check_config.check_config(str(file)) == 0
    assert "gatekeeper-user: no-such-user\n" in capfd.readouterr().out


AS_IT_IS = [
    b"mailbox: /m\xe4il/$(user) /b/$(user)\n",
    b"listen-address: [::1]:110(example.org) 127.0.0.1\n",
    b"domain-separators: :\nlisten-address:\n",
    b"state-directory: /a b/\n",
    b"auth-passwd-enable: no\nauth-passwd-mail-group: 12\nauth-flatfile-mailbox: $(home)/m\n",
    b"mailbox: /a \\\n /b\n",
    b"log-stderr: TRUE\n",
    b"mailbox: /ends-with-a-backslash\\ # and a comment\nlog-level: debug\n",
]


@pytest.mark.parametrize("lines", AS_IT_IS)
def test_the_output_is_the_same_configuration(tmp_path, lines):
    first = tpop3d("--check-config", "-f", conf(tmp_path, text_of(LEAST).encode() + lines))
    assert first.returncode == 0, first.stderr
    again = tpop3d("--check-config", "-f", conf(tmp_path, first.stdout))
    assert again.returncode == 0, again.stderr
    assert directives_of(again.stdout) == directives_of(first.stdout)


def directives_of(output):
    """Octets as they are; nothing is a default when it has been written down."""
    lines = [line.partition(b"#")[0].strip() for line in output.splitlines()]
    return [line for line in lines if line]


keys = st.sampled_from(["mailbox", "state-directory", "auth-flatfile-mailbox"])


@given(keys, st.text(st.sampled_from(' \\#:$()/ab\t\r"'), max_size=12))
def test_whatever_the_value_the_output_is_the_same_configuration(key, value):
    try:
        config = read(text_of(LEAST) + f"{key}: /{value}\n", "test.conf")
    except WrongConfiguration:
        return
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_config, "load", lambda file: config)
        patch.setattr(check_config, "_print", lambda line, fd: printed.append((fd, line + "\n")))
        assert check_config.check_config("test.conf") == 0
    lines = [line for fd, line in printed if fd == sys.stdout.fileno()]
    again = read("".join(lines), "test.conf")
    assert [one[:2] for one in again.effective] == [one[:2] for one in config.effective]


def test_a_secret_is_masked(tmp_path):
    env = ENVIRONMENT | foreign_driver(tmp_path, "vault", DRIVER)
    content = f"auth-vault-enable: yes\nauth-vault-secret: {CANARY}\nauth-vault-open: door\n"
    content += "gatekeeper-user: nobody\n"
    done = tpop3d("--check-config", "-f", conf(tmp_path, content), env=env)
    assert done.returncode == 0, done.stderr
    shown = directives(done.stdout)
    assert shown["auth-vault-secret"] == MASK
    assert shown["auth-vault-open"] == "door"
    assert CANARY.encode() not in done.stdout + done.stderr
    again = tpop3d("--check-config", "-f", conf(tmp_path, done.stdout), env=env)
    assert again.returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        f"auth-vault-secret: {CANARY}\nauth-vault-secret: {CANARY}",
        f"auth-vault-secrets: {CANARY}",
        f"auth-vault-secret {CANARY}",
        f"auth-vault-secret\t{CANARY}",
        f"auth-vault-secret={CANARY}",
        f"auth-vault-secret = {CANARY}",
        f"auth-vault-secret={CANARY}: x",
        f"auth-vault-secret\t{CANARY}: x",
        f"auth-vault-secret: {CANARY}\\",
        f"auth-vault-secret={CANARY}\\",
        # Alone on its line, where it seems to belong to the one before.
        f"auth-vault-secret: \\ \n{CANARY}",
        f"auth-vault-secret: \\\t\n{CANARY}: x",
        f"auth-vault-secret: {CANARY}\\ \n{CANARY}: x",
        f"auth-vault-secret: \\\n# the password\n{CANARY}",
        f"auth-vault-secret: \\ # the password\n{CANARY}",
        f"auth-vault-secret: \\\n\n{CANARY}",
        f"auth-vault-secret:\n\n# the password\n{CANARY}: x",
        f"auth-vault-secret: \\ \n  {CANARY} \\ \n  {CANARY}:x\n{CANARY}:x",
        f"auth-vault-secret:\n{CANARY}: \n{CANARY}: x",
        f"auth-vault-secret:\nauth-{CANARY}-x: x",
        f"auth-vault-secret:\nauth-{CANARY}: x",
        f"auth-vault-secret\n{CANARY}: x",
        f"auth-vault-secrets:\n{CANARY}: x",
    ],
)
def test_a_secret_on_a_wrong_line_is_not_quoted(tmp_path, line):
    env = ENVIRONMENT | foreign_driver(tmp_path, "vault", DRIVER)
    file = conf(tmp_path, "auth-vault-enable: yes\n" + line)
    done = tpop3d("--check-config", "-f", file, env=env)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"{file}:".encode())
    assert CANARY.encode() not in done.stderr


def test_with_plaintext_logins_nobody_is_warned(tmp_path):
    text = text_of(LOUD) + "plaintext-logins: yes\n"
    done = tpop3d("--check-config", "-f", conf(tmp_path, text))
    assert (done.returncode, done.stderr) == (0, b"")


def test_certificates_are_tried(site):
    tlskit.secure(site)
    done = tpop3d("--check-config", "-f", site.conf, env=tlskit.trusting_system(site))
    assert (done.returncode, done.stderr) == (0, b"")
    other, _ = tlskit.certify(site, file="other")
    site.configure({"listen-address": f"0.0.0.0;tls=stls,{other},{site.path}/server.key"})
    done = tpop3d("--check-config", "-f", site.conf, env=tlskit.trusting_system(site))
    assert done.returncode == 2
    assert done.stdout == b""
    number = 1 + list(site.settings).index("listen-address")
    wrong = f"{site.path}/server.key: is not the private key of {other}\n"
    assert done.stderr.decode() == f"{site.conf}:{number}: listen-address: {wrong}"


def test_an_expired_certificate_is_a_warning(site):
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    tlskit.secure(site)
    tlskit.certify(site, not_before=past, not_after=past + datetime.timedelta(days=1))
    done = tpop3d("--check-config", "-f", site.conf)
    assert done.returncode == 0
    number = 1 + list(site.settings).index("tls-certificate")
    where = f"{site.conf}:{number}: tls-certificate"
    told = f"warning: {where}: {site.path}/server.pem: has expired on Jan  2"
    assert told in done.stderr.decode()


def test_a_key_that_only_systemd_provides_is_a_warning(site):
    tlskit.secure(site, **{"tls-private-key": "$CREDENTIALS_DIRECTORY/server.key"})
    done = tpop3d("--check-config", "-f", site.conf)
    assert done.returncode == 0
    assert "see LoadCredential=; it cannot be checked here" in done.stderr.decode()
    given = tlskit.trusting_system(site) | {"CREDENTIALS_DIRECTORY": str(site.path)}
    done = tpop3d("--check-config", "-f", site.conf, env=given)
    assert (done.returncode, done.stderr) == (0, b"")
    (site.path / "server.key").write_bytes(b"")
    done = tpop3d("--check-config", "-f", site.conf, env=given)
    number = 1 + list(site.settings).index("tls-private-key")
    why = f"{site.conf}:{number}: tls-private-key: {site.path}/server.key: is empty\n"
    assert done.stderr.decode() == why


# Directories that tell whether a file system is mounted

MISSING = "No such file or directory; is the file system mounted?"


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        ("mailbox: {0}/no/$(user) {0}/$(user)", ["2: mailbox: {0}/no/$(user): {0}/no: " + MISSING]),
        ("mailbox: {0}/$(user)", []),
        ("mailbox: {0}/$(domain)/$(user) $(home)/m /$(user)", []),
        ("mailbox: {0}/file/$(user)", ["2: mailbox: {0}/file/$(user): {0}/file: not a directory"]),
        (
            "mailbox: {0}/loop/$(user)",
            ["2: mailbox: {0}/loop/$(user): {0}/loop: Too many levels of symbolic links"],
        ),
        (
            "auth-flatfile-mailbox: {0}/no/$(user)",
            ["2: auth-flatfile-mailbox: {0}/no/$(user): {0}/no: " + MISSING],
        ),
        (
            "auth-passwd-mailspool-dir: {0}/no/",
            ["2: auth-passwd-mailspool-dir: {0}/no/$(user): {0}/no: " + MISSING],
        ),
        (
            "auth-passwd-mailspool-dir: {0}\nmailbox: {0}/no/$(user)",
            ["3: mailbox: {0}/no/$(user): {0}/no: " + MISSING],
        ),
    ],
)
def test_a_directory_that_is_not_there_is_warned_of(tmp_path, lines, warned):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    driver = "passwd" if "auth-passwd" in lines else "flatfile"
    least = LEAST if driver == "flatfile" else {"gatekeeper-user": "nobody"}
    least = {key: value for key, value in least.items() if key != "auth-flatfile-enable"}
    text = (
        f"auth-{driver}-enable: yes\n"
        + lines.format(tmp_path)
        + "\nlog-stderr: yes\n"
        + text_of(least)
    )
    file = conf(tmp_path, text)
    done = tpop3d("--check-config", "-f", file)
    assert done.returncode == 0
    told = [line for line in done.stderr.decode().splitlines() if "tls-certificate" not in line]
    assert told == [f"warning: {file}:{one.format(tmp_path)}" for one in warned]


def test_a_general_mailbox_is_looked_at_where_a_driver_uses_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(DIRECTIVES["mailbox"], "default", f"bsd:{tmp_path}/no/$(user)")
    assert check_config.check_config(str(conf(tmp_path, text_of(LEAST)))) == 0
    assert f": mailbox: {tmp_path}/no/$(user): {tmp_path}/no: {MISSING}" in capfd.readouterr().err
    own = LEAST | {"auth-flatfile-mailbox": f"{tmp_path}/$(user)"}
    assert check_config.check_config(str(conf(tmp_path, text_of(own)))) == 0
    assert MISSING not in capfd.readouterr().err


# Names


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        (
            "append-domain: yes\nlisten-address: 127.0.0.1",
            "append-domain: is yes, and listen-address has no domain that could be",
        ),
        ("append-domain: yes\nlisten-address: 127.0.0.1 127.0.0.2(a.example)", ""),
        ("append-domain: no\nlisten-address: 127.0.0.1", ""),
        ("\nlisten-address: localhost [::1] 0.0.0.0:995", ""),
    ],
)
def test_a_domain_to_append_is_missed(tmp_path, lines, warned):
    done = tpop3d("--check-config", "-f", conf(tmp_path, lines + "\n" + text_of(LOUD)))
    assert done.returncode == 0
    expected = f"warning: {tmp_path}/tpop3d.conf:1: {warned}\n" if warned else ""
    assert done.stderr.decode() == expected + NO_TLS


@pytest.mark.parametrize("errno", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_a_host_of_which_nothing_is_known_is_warned_of(tmp_path, monkeypatch, capfd, errno):
    def fail(host, *_, **__):
        raise socket.gaierror(errno, "the reason")

    monkeypatch.setattr(_socket, "getaddrinfo", fail)
    file = conf(tmp_path, "listen-address: eth99:110\n" + text_of(LOUD))
    assert check_config.check_config(str(file)) == 0
    why = "the reason" if errno == socket.EAI_AGAIN else "no address is known for this host"
    assert f"warning: {file}:1: listen-address: eth99: {why}\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("tls-certificate", "/etc/none.pem"),
        ("tls-private-key", "/etc/none.key"),
        ("listen-address", "127.0.0.1;tls=stls,/etc/none.pem"),
        ("auth-mysql-ssl-ca", "/etc/none.pem"),
        ("auth-mysql-password-file", "/etc/none.pem"),
        ("auth-mysql-mail-directory", "/etc/none.pem"),
        ("auth-flatfile-passwd-file", "/etc/none.pem"),
        ("auth-flatfile-passwd-file", "/etc/none.pem/$(domain)"),
        ("auth-flatfile-mailbox", "/etc/none.pem/$(user)"),
        ("mailbox", "/etc/none.pem/$(user)"),
    ],
)
def test_a_file_that_is_missing_is_told_with_line_and_directive(site, key, file):
    tlskit.secure(site)
    if key.startswith("auth-mysql"):
        pytest.importorskip("MySQLdb")
        needed = {"enable": "yes", "database": "mail", "username": "x"}
        site.configure({f"auth-mysql-{one}": value for one, value in needed.items()})
    if key == "mailbox":
        site.configure({"auth-flatfile-mailbox": None})
    site.configure({key: file})
    done = tpop3d("--check-config", "-f", site.conf)
    keys = [one for one, value in site.settings.items() if value is not None]
    place = f"{site.conf}:{keys.index(key) + 1}: {key}: "
    (line,) = [line for line in done.stderr.decode().splitlines() if "/etc/none" in line]
    assert line.removeprefix("warning: ").startswith(place)
    assert done.returncode == (0 if line.startswith("warning: ") else 2)
    assert (done.returncode == 2) == (key in MUST_BE_THERE)


def test_whatever_else_is_wrong_is_told_beside_errors(site):
    """Nobody has to mend a configuration error by error."""
    tlskit.secure(site, **{"tls-certificate": "/etc/none.pem", "append-domain": "yes"})
    site.configure(
        {"auth-flatfile-passwd-file": "/etc/none", "tcp-send-buffer": 7, "colour": "red"}
    )
    told = tpop3d("--check-config", "-f", site.conf).stderr.decode().splitlines()
    keys = list(site.settings)
    expected = {
        "colour": "unknown directive",
        "tls-certificate": "/etc/none.pem: No such file or directory",
        "tcp-send-buffer": "is ignored: ",
        "append-domain": "is yes, and listen-address has no domain",
        "auth-flatfile-passwd-file": "/etc/none: No such file or directory",
    }
    starts = [f"{site.conf}:{keys.index(key) + 1}: {key}: {why}" for key, why in expected.items()]
    lines = [line.removeprefix("warning: ") for line in told]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert [line.startswith("warning: ") for line in told] == [False, False, True, True, True]


ANY_TEXT = ("tls-ciphers", "gatekeeper-user", "auth-drivers")  # what is wrong with it is seen later


@pytest.mark.parametrize(
    "wrong",
    [f"{key}: \ufffd:" for key in DIRECTIVES if key not in ANY_TEXT]
    + ["auth-passwd-mail-group: no-such", "auth-flatfile-mail-user: no-such", "no colon"],
)
def test_no_error_keeps_the_rest_from_being_looked_at(tmp_path, capfd, wrong):
    rest = "auth-passwd-enable: yes\nauth-passwd-mailbox: /srv/none/$(user)\n"
    file = conf(tmp_path, f"{wrong}\n{text_of(LOUD)}{rest}")
    assert check_config.check_config(str(file)) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"{file}:1: ")
    is_looked_at = wrong.partition(":")[0] not in ("mailbox", "auth-passwd-mail-group")
    assert ("/srv/none: " in told) == is_looked_at


MUST_BE_THERE = {
    "tls-certificate", "tls-private-key", "listen-address", "auth-mysql-password-file",
    "auth-mysql-ssl-ca",
}  # fmt: skip


def test_files_of_domains_of_which_there_is_one_are_enough(site):
    (site.path / "a.example").touch()
    site.configure({"auth-flatfile-passwd-file": f"{site.path}/$(domain)"})
    done = tpop3d("--check-config", "-f", site.conf)
    assert b"passwd-file" not in done.stderr


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("/var/mail/user", "has no variable such as $(user): all users would have this one"),
        ("/var/mail/$USER", "has no variable such as $(user): all users would have this one"),
        ("/var/$(domain)/mail", "does not tell users apart: there is neither $(user) nor"),
        ("/var/mail/$(user[0])", "does not tell users apart: there is neither $(user) nor"),
        ("/var/mail/$(user)", ""),
        ("/var/$(user[0])/$(local_part)", ""),
        ("$(home)/Mailbox", ""),
    ],
)
def test_a_mailbox_for_several_users_is_warned_of(site, template, why):
    site.configure({"auth-flatfile-mailbox": f"{site.spools}/$(user) {template}"})
    done = tpop3d("--check-config", "-f", site.conf)
    assert done.returncode == 0
    key = "auth-flatfile-mailbox"
    place = f"warning: {site.conf}:{1 + list(site.settings).index(key)}: {key}: {template}: "
    told = [line for line in done.stderr.decode().splitlines() if "mailbox" in line]
    assert [line.startswith(place + why) for line in told if MISSING not in line] == [True] * bool(
        why
    )


@pytest.mark.parametrize("kind", ["pass", "apop"])
def test_a_query_that_is_the_same_for_all_is_warned_of(tmp_path, kind):
    """As written for another program, whose variables are no variables here."""
    pytest.importorskip("MySQLdb")
    key = f"auth-mysql-{kind}-query"
    query = "SELECT path, hash, 'vmail', 'bsd' FROM users WHERE name = '%u'"
    needed = {"auth-mysql-enable": "yes", "auth-mysql-database": "mail", "auth-mysql-username": "x"}
    file = conf(tmp_path, text_of({key: query} | LOUD | needed))
    done = tpop3d("--check-config", "-f", file)
    why = f"warning: {file}:1: {key}: has no variable such as $(user): it gives the same to all"
    assert why in done.stderr.decode().splitlines()
