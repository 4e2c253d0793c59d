"""The man pages: well-formed, and complete."""

import ast
import re
import subprocess

import pytest

from mailsite import CHECKOUT, need
from tpop3d import cli, logs
from tpop3d.auth import drivers
from tpop3d.config import DIRECTIVES
from tpop3d.journald import fields_of

PAGES = sorted((CHECKOUT / "man").iterdir())


def directives():
    known = set(DIRECTIVES)
    for name in drivers.BUILT_IN:
        found = drivers.find(name)
        assert found is not None
        known |= {f"auth-{name}-{directive}" for directive in ("enable", *found.directives)}
    return known


def test_every_directive_is_documented_and_no_other():
    page = (CHECKOUT / "man/tpop3d.conf.5").read_text()
    documented = re.findall(r"^\.It Ic (\S+)$", page, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == directives()


def test_every_default_is_documented():
    page = (CHECKOUT / "man/tpop3d.conf.5").read_text()
    for key, directive in DIRECTIVES.items():
        entry = page.partition(f"\n.It Ic {key}\n")[2].partition("\n.It Ic ")[0]
        wanted = directive.default or "none"
        assert re.search(rf"Default:\s+(\.Li |\.Pa )?{re.escape(wanted)}(\\&)?\.?(\n|$)", entry), (
            key
        )


def test_every_option_is_documented(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    options = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
    page = (CHECKOUT / "man/tpop3d.8").read_text()
    documented = {f"-{flag}" for flag in re.findall(r"(?:Fl|,) (-?[a-zA-Z][\w-]*)", page)}
    assert len(options) >= 8
    assert options - documented == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_well_formed(page):
    done = subprocess.run(
        [need("mandoc"), "-Tlint", "-Wwarning", page], capture_output=True, text=True
    )
    assert done.stdout == ""
    assert done.returncode == 0


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
