"""Secrets that the form of the file makes others of: a warning, and never the secret itself."""

import tempfile

import pytest

from authkit import CANARY, LEAST, foreign_driver, text_of, tpop3d
from mailsite import ENVIRONMENT
from test_check_config import DRIVER
from tpop3d.config.reader import IS_CONTINUED, IS_CUT, IS_QUOTED, IS_SHIFTED, IS_STRIPPED
from tpop3d.configuration import load

KEY = "auth-mysql-password"
ENABLED = {
    "auth-mysql-enable": "yes",
    "auth-mysql-database": "mail",
    "auth-mysql-username": "reader",
}

ODD = {
    f" {CANARY}#x": IS_CUT,
    f" #{CANARY}": IS_CUT,
    f"#{CANARY}": IS_CUT,
    f" x {CANARY}#": IS_CUT,
    f" {CANARY}# a comment, perhaps": IS_CUT,
    f' "{CANARY}#"': IS_CUT,
    f" {CANARY}#x\\": IS_CUT,
    f' "{CANARY}"': IS_QUOTED,
    f"'{CANARY}'": IS_QUOTED,
    f' "{CANARY}" # a comment': IS_QUOTED,
    f' "{CANARY}"  ': IS_QUOTED,
    f"  {CANARY}": IS_SHIFTED,
    f" \t{CANARY}": IS_SHIFTED,
    f" {CANARY} ": IS_STRIPPED,
    f" {CANARY}\t": IS_STRIPPED,
    f" {CANARY} \r": IS_STRIPPED,
    f" {CANARY}\\\nx": IS_CONTINUED,
    f" {CANARY}\\\r\nx": IS_CONTINUED,
}
USUAL = [
    f" {CANARY}",
    f"{CANARY}",
    f"\t{CANARY}",
    f" {CANARY}\r",
    f" {CANARY} # a comment",
    f" {CANARY}\t#x",
    f" two words {CANARY}",
    f" \\\n{CANARY}",
    f' "{CANARY}',
    f" {CANARY}'",
    f" it's {CANARY}",
    f' x" or "x" is \'{CANARY}',
    " # none",
    "  #",
    "",
    ' "',
]


@pytest.fixture
def warned(tmp_path):
    """What there is to say of a configuration with this behind the key, the last of its lines."""
    pytest.importorskip("MySQLdb")
    file = tmp_path / "tpop3d.conf"
    file.touch(mode=0o600)

    def write(value, before=""):
        content = f"{before}{text_of(LEAST | ENABLED)}{KEY}:{value}\n"
        file.write_bytes(content.encode())
        config = load(str(file))
        place = f"{file}:{content.partition(KEY)[0].count(chr(10)) + 1}: {KEY}: "
        assert all(one.startswith(place) for one in config.warnings)
        return [one.removeprefix(place) for one in config.warnings]

    return write


@pytest.mark.parametrize("value", ODD)
def test_what_may_be_meant_otherwise_is_warned_of(warned, value):
    assert warned(value) == [f"{ODD[value]}; {KEY}-file takes any"]


@pytest.mark.parametrize("value", USUAL)
def test_what_is_usual_is_not(warned, value):
    assert warned(value) == []


def test_where_all_values_stand_in_a_column_blanks_before_one_are_usual(warned):
    column = "max-children:          7\n"
    assert warned(f"   {CANARY}", column) == []
    assert warned(f"   {CANARY} ", column) == [f"{IS_STRIPPED}; {KEY}-file takes any"]
    assert warned(f"   {CANARY}", "listen-address:   # none\n") != []


def test_a_value_that_is_no_secret_is_warned_of_where_it_is_cut():
    """Quotes and blanks around it are seen, and matter to nobody."""
    file = "auth-flatfile-passwd-file: /dev/null"
    text = text_of(LEAST).replace(file, "auth-flatfile-passwd-file: /etc/mail#1/passwd")
    for line in (
        "max-children:  7  ",
        "log-level: info # x",
        "auth-drivers: #x",
        "listen-address:#",
    ):
        text += f"{line}\n"
    with tempfile.NamedTemporaryFile("w") as conf:
        conf.write(text)
        conf.flush()
        place = f"{conf.name}:{list(LEAST).index('auth-flatfile-passwd-file') + 1}"
        warnings = load(conf.name).warnings
    assert warnings == [f"{place}: auth-flatfile-passwd-file: {IS_CUT}"]


@pytest.mark.parametrize("option", ["--check-config", "--inetd"])
def test_nothing_of_it_is_shown(tmp_path, option):
    """Of a driver that knows no such file, too: then none is named."""
    env = ENVIRONMENT | foreign_driver(tmp_path, "vault", DRIVER)
    file = tmp_path / "tpop3d.conf"
    file.touch(mode=0o600)
    least = LEAST | {"auth-vault-enable": "yes", "state-directory": tmp_path / "state"}
    file.write_text(
        text_of(least | {"log-stderr": "yes"}) + f"auth-vault-secret: {CANARY}#{CANARY}\n"
    )
    done = tpop3d(option, "-f", file, env=env)
    assert done.returncode == 0, done
    line = f"{file}:{len(least) + 2}: auth-vault-secret: {IS_CUT}\n"
    assert line in done.stderr.decode()
    assert CANARY.encode() not in done.stdout + done.stderr


def test_it_is_told_beside_errors(tmp_path):
    pytest.importorskip("MySQLdb")
    file = tmp_path / "tpop3d.conf"
    file.touch(mode=0o600)
    file.write_text(text_of(LEAST | ENABLED) + f'{KEY}: "{CANARY}"\ncolour: red\n')
    done = tpop3d("--check-config", "-f", file)
    assert done.returncode == 2
    error, warning, *_ = done.stderr.decode().splitlines()
    assert error.endswith(": colour: unknown directive")
    assert warning.startswith(f"warning: {file}:{len(LEAST | ENABLED) + 1}: {KEY}: {IS_QUOTED}; ")
    assert CANARY not in warning
