"""auth-mysql's directives: what is refused, what is taken with a warning."""

import sys

import pytest

import doors
from authkit import NO_TLS, but_for_syslogd, errors_in, text_of, tpop3d
from databases import DATABASE, PASSWORD, USERNAME, decide
from tpop3d.auth.driver import YES
from tpop3d.auth.mysql import VMAIL_SQL
from tpop3d.config.reader import MASK, content_without_secrets
from tpop3d.configuration import _secrecy, load

NEEDED = {
    "gatekeeper-user": "nobody",
    "auth-mysql-enable": "yes",
    "auth-mysql-database": DATABASE,
    "auth-mysql-username": USERNAME,
    "auth-mysql-password": PASSWORD,
}


@pytest.fixture
def conf(tmp_path):
    """Write a configuration file; returns its path."""
    pytest.importorskip("MySQLdb")
    file = tmp_path / "tpop3d.conf"
    file.touch(mode=0o640)

    def write(**more):
        more = {f"auth-mysql-{key.replace('_', '-')}": value for key, value in more.items()}
        file.write_text(text_of(NEEDED | more))
        return file

    return write


def test_without_mysqlclient_its_extra_is_named(conf, monkeypatch):
    class WithoutIt:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name == "MySQLdb" else self.finder.find_spec(name, path, target)

    monkeypatch.setattr("sys.meta_path", [WithoutIt(finder) for finder in sys.meta_path])
    (error,) = errors_in(conf())
    assert error.endswith("auth-mysql-enable: needs the package mysqlclient: pip install "
                          "'tpop3d[mysql]'")  # fmt: skip


def test_a_certificate_that_is_not_there_is_told(conf, tmp_path):
    names = {"ssl-ca": "ca.pem", "ssl-cert": "own.pem", "ssl-key": "own.key"}
    file = conf(**{key: f"{tmp_path}/{name}" for key, name in names.items()})
    told = [f"auth-mysql-{key}: there is no {tmp_path}/{name}" for key, name in names.items()]
    for warning, expected in zip(load(str(file)).warnings, told, strict=True):
        assert warning.endswith(expected)


# Some of these hide what follows from one who looks for a key; none hides it from both.
BLANKS = ["\xa0", "\u3000", "\f", "\x1c", "\v", "\u2028"]


@pytest.mark.parametrize("blank", BLANKS)
def test_only_a_blank_is_one(tmp_path, blank):
    """As pasted from a web page: the line is an error, and the password is in no text."""
    file = tmp_path / "tpop3d.conf"
    file.touch(mode=0o600)
    file.write_text(f"{blank}auth-mysql-password: {PASSWORD}\n{text_of(NEEDED)}")
    errors = errors_in(file)
    assert any("1: must be 'key: value'" in error for error in errors), errors
    content, *_ = content_without_secrets(str(file), _secrecy)
    assert PASSWORD not in content


SWALLOWED = {
    "a stray backslash": f"auth-mysql-hostname: localhost \\\nauth-mysql-password: {PASSWORD}",
    "a misspelled key": f"auth-mysql-pasword: {PASSWORD}",
    "a misspelled driver": f"auth-mysq-password: {PASSWORD}",
    "no colon": f"auth-mysql-password {PASSWORD}",
    "another sign": f"auth-mysql-password= {PASSWORD}",
    "something before it": f"= auth-mysql-password: {PASSWORD}",
    "in a comment": f"# auth-mysql-password: {PASSWORD}",
}


@pytest.mark.parametrize("how", SWALLOWED)
def test_a_mistake_shows_no_password(tmp_path, how):
    file = tmp_path / "tpop3d.conf"
    file.touch(mode=0o600)
    file.write_text(text_of(NEEDED | {"auth-mysql-password": None}) + SWALLOWED[how] + "\n")
    content, *_ = content_without_secrets(str(file), _secrecy)
    assert PASSWORD not in content
    shown = tpop3d("--check-config", "-f", file)
    assert PASSWORD.encode() not in shown.stdout + shown.stderr
    assert shown.returncode == (0 if "comment" in how else 2)


def test_a_database_and_two_secrets_are_enough(conf):
    file = conf()
    driver = load(str(file)).drivers["mysql"]
    assert driver.checks_apop
    assert driver.on_login is None
    shown = tpop3d("--check-config", "-f", file)
    assert (shown.returncode, but_for_syslogd(shown.stderr.decode())) == (0, NO_TLS)
    lines = shown.stdout.decode().splitlines()
    assert f"auth-mysql-pass-query: {VMAIL_SQL}    # default" in lines
    assert f"auth-mysql-apop-query: {VMAIL_SQL}    # default" in lines
    assert "auth-mysql-onlogin-query: none    # default" in lines
    assert "auth-mysql-hostname: localhost    # default" in lines
    assert f"auth-mysql-username: {MASK}" in lines
    assert f"auth-mysql-password: {MASK}" in lines


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("database", None),
        ("database", ""),
        ("username", None),
        ("username", ""),  # or it would be that of the system's user
        ("hostname", ""),
        ("ssl", "maybe"),
        ("ssl-ca", "ca.pem"),
        ("ssl-cert", "cert.pem"),
        ("ssl-key", "/etc/ssl/private/key.pem"),  # and no certificate
        ("mail-group", "no-such-group-here"),
        ("mail-group", "0"),
        ("pass-query", ""),
        ("pass-query", "SELECT '$(password)'"),
        ("apop-query", "SELECT '$(user)"),
        ("onlogin-query", "INSERT INTO `$(user)` VALUES (1)"),
        ("colour", "red"),
    ],
)
def test_wrong_settings_are_errors(conf, key, value):
    errors = errors_in(conf(**{key: value}))
    assert f"auth-mysql-{key}" in errors[0]


@pytest.mark.parametrize("key", ["ssl-ca", "ssl-cert"])
def test_no_tls_and_its_files_do_not_go_together(conf, key):
    errors = errors_in(conf(**{"ssl": "no", key: "/etc/ssl/some.pem"}))
    assert errors[0].endswith(f"auth-mysql-ssl is no, and auth-mysql-{key} is given")


def test_more_hosts_than_anybody_has(conf):
    assert load(str(conf(hostname=" ".join(f"db{n}" for n in range(255))))).drivers
    (error,) = errors_in(conf(hostname=" ".join(f"db{n}" for n in range(256))))
    assert "auth-mysql-hostname: must be at most 255 hosts" in error


def test_somebody_must_be_able_to_log_in(conf):
    errors = errors_in(conf(pass_query="none", apop_query="none"))
    assert (
        "auth-mysql-enable: auth-mysql-pass-query and auth-mysql-apop-query are none" in errors[0]
    )


def test_the_spelling_of_the_first_readme_is_taken_with_a_warning(vmail, tmp_path, conf):
    ours = {"hostname": vmail.socket, "database": None, "databse": DATABASE}
    file = conf(**ours)
    config = load(str(file))
    assert decide(config, "ann@example.org").answer == YES
    warning = f"{file}:6: auth-mysql-databse: is taken for auth-mysql-database"
    assert config.warnings == [warning]
    done = tpop3d("--check-config", "-f", file)
    assert done.returncode == 0
    assert but_for_syslogd(done.stderr.decode()) == f"warning: {warning}\n{NO_TLS}"
    assert f"auth-mysql-database: {DATABASE}\n" in done.stdout.decode()


def test_both_spellings_are_an_error(conf):
    file = conf(databse=DATABASE)
    errors = errors_in(file)
    assert errors == [f"{file}:6: auth-mysql-databse: is auth-mysql-database, given as well"]
    assert tpop3d("--check-config", "-f", file).returncode == 2


def test_that_warning_is_in_the_log(mail_site):
    mail_site.configure({"auth-mysql-database": None, "auth-mysql-databse": DATABASE})
    with doors.inetd(mail_site) as wire:
        wire.login("ann@example.org")
        assert wire.logs.wait_for("auth-mysql-databse: is taken for auth-mysql-database")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440])
def test_a_file_of_few_may_hold_the_password(conf, mode):
    file = conf()
    file.chmod(mode)
    assert load(str(file)).drivers
    assert tpop3d("--check-config", "-f", file).returncode == 0


def test_the_directory_of_all_mailboxes_is_looked_at(conf, tmp_path):
    file = conf(mail_directory=f"{tmp_path}/vmail")
    done = tpop3d("--check-config", "-f", file)
    assert done.returncode == 0
    what = f"auth-mysql-mail-directory: {tmp_path}/vmail: there is no such directory"
    told = f"warning: {file}:{len(NEEDED) + 1}: {what}; is the file system mounted?\n"
    assert told in done.stderr.decode()
    (tmp_path / "vmail").mkdir()
    assert what not in tpop3d("--check-config", "-f", file).stderr.decode()


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666])
def test_a_file_of_all_may_not(conf, mode):
    file = conf()
    file.chmod(mode)
    what = "holds a user name or password of the server's own, and every user can read it"
    why = f"{file}: {what}: chmod o-rwx {file}"
    assert errors_in(file) == [why]
    done = tpop3d("--check-config", "-f", file)
    assert (done.returncode, done.stderr.decode().splitlines()[0]) == (2, why)


def test_a_file_of_all_may_have_a_database_without_secrets(conf):
    """One line less: the error is that the user name is missing, and not the file's mode."""
    file = conf(username=None, password=None)
    file.chmod(0o644)
    assert errors_in(file) == [f"{file}:2: auth-mysql-enable: auth-mysql-username must be given"]
