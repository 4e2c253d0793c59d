"""The man pages: well-formed, complete, and right about defaults."""

import ast
import re
import subprocess

import pytest

from authkit import text_of
from mailsite import CHECKOUT, ENVIRONMENT, MAIL_USER, need
from tpop3d import cli
from tpop3d.auth import registry
from tpop3d.auth.mysql import VMAIL_SQL
from tpop3d.config.directive import Directive, boolean, user_id
from tpop3d.configuration import WrongConfiguration, read
from tpop3d.settings import DIRECTIVES
from tpop3d.system import logs
from tpop3d.system.journald import fields_of

PAGES = sorted((CHECKOUT / "man").iterdir())
CONF = (CHECKOUT / "man/tpop3d.conf.5").read_text()
ENABLE = Directive(boolean, "no")  # of every driver
# What mandoc says of a machine and not of a page.
ABOUT_MACHINES = ("referenced manual not found", "mandoc.db")
# A default that the page has in words.
IN_WORDS = {VMAIL_SQL: ("the query for vmail-sql", "as for\n.Ic auth-mysql-pass-query")}


def directives():
    """Every directive that the code knows."""
    known = dict(DIRECTIVES)
    for name in registry.BUILT_IN:
        found = registry.find(name)
        assert found is not None
        known[f"auth-{name}-enable"] = ENABLE
        known |= {f"auth-{name}-{key}": value for key, value in found.directives.items()}
    return known


def entry(key):
    """What the page says of a directive."""
    return re.split(r"^\.It Ic |^\.S[hs] ", CONF.partition(f"\n.It Ic {key}\n")[2], flags=re.M)[0]


def example(key):
    found = re.findall(r"^Example:\n\.Li (.*)$", entry(key), re.MULTILINE)
    assert len(found) == 1, key
    return found[0].replace("\\&", "")


def test_every_directive_is_documented_and_no_other():
    documented = re.findall(r"^\.It Ic (\S+)$", CONF, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == set(directives())


@pytest.mark.parametrize("key", directives())
def test_the_default_is_documented(key):
    default = directives()[key].default
    text = entry(key)
    if default is None:
        # There is none; what is done then, or that there must be a value, is said in words.
        assert re.search(r"^(Default:\s+(?!\.Li|\.Pa)|Required\.$)", text, re.MULTILINE)
        return
    written = "|".join(map(re.escape, IN_WORDS.get(default, (default or "none",))))
    assert re.search(rf"^Default:\s+(\.Li |\.Pa )?({written})(\\&)?[.,]?(\s|$)", text, re.MULTILINE)


@pytest.mark.parametrize("key", directives())
def test_the_example_is_a_value_and_not_the_default(key):
    directive, text = directives()[key], example(key)
    assert text != directive.default
    if directive.parse is user_id:
        assert re.fullmatch("[a-z]+", text)  # whom this machine need not have
    else:
        directive.parse(text)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_what_is_required_is_documented(name):
    """One after the other is given, until the driver asks for no more."""
    pytest.importorskip({"mysql": "MySQLdb", "pam": "pam"}.get(name, "os"))
    settings, required = {f"auth-{name}-enable": "yes"}, set()
    while True:
        try:
            read(text_of(settings), "test.conf")
        except WrongConfiguration as wrong:
            found = re.search(r"(auth-\S+) must be given", str(wrong.problems))
            if not found:
                raise
        else:
            break
        required.add(found[1])
        is_user = directives()[found[1]].parse is user_id
        settings[found[1]] = MAIL_USER.pw_name if is_user else example(found[1])
    documented = {key for key in directives() if "\nRequired.\n" in entry(key)}
    assert required == {key for key in documented if key.startswith(f"auth-{name}-")}


def test_every_option_is_documented_and_no_other(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    options = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
    page = (CHECKOUT / "man/tpop3d.8").read_text()
    synopsis, description = page.partition(".Sh DESCRIPTION")[::2]
    items = "\n".join(re.findall(r"^\.It (Fl .*)$", description, re.MULTILINE))
    for text in (synopsis, items):
        documented = {f"-{flag}" for flag in re.findall(r"(?:Fl|,) (-?[a-zA-Z][\w-]*)", text)}
        # On one line, -dv is -d and -v; and -h stands for both of its names.
        documented = {one for flag in documented for one in single(flag)} | {"--help"}
        assert documented == options


def single(flag):
    return [flag] if flag.startswith("--") else [f"-{letter}" for letter in flag[1:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_well_formed(page):
    done = subprocess.run([need("mandoc"), "-Tlint", page], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not any(one in line for one in ABOUT_MACHINES)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_shows_pages_without_a_warning(page):
    done = subprocess.run(
        [need("man"), "--warnings", "--local-file", page],
        capture_output=True, text=True, env=ENVIRONMENT | {"MANWIDTH": "80"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "SEE ALSO" in done.stdout


def events_fields():
    """The words that events of ours have: the keywords of all calls that make one."""
    words = {"tls", "cipher", "gatekeeper", "relay"}  # in dictionaries
    for source in (CHECKOUT / "tpop3d").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in ("event", "line"):
                words |= {one.arg for one in node.keywords if one.arg}
    return words


def test_every_field_of_the_journal_is_documented_and_no_other():
    words = dict.fromkeys(events_fields(), "1/1")
    assert {"user", "limit", "seconds", "says"} <= set(words)
    named = {one.partition("=")[0] for one in fields_of(logs.event("x", **words))}
    page = (CHECKOUT / "man/tpop3d.8").read_text().partition(".Ss The journal\n")[2]
    assert set(re.findall(r"(POP3_\w+)=", page.partition(".Ss ")[0])) == named
