"""The sample configuration: what it says and what it suggests, line by line.

That it is accepted as it stands, on a system that has what it names: test_install.
"""

import re

import pytest

from mailsite import CHECKOUT, MAIL_USER
from tpop3d.configuration import read

pytest.importorskip("pam", reason="python-pam is not installed in this Python")

SAMPLE = (CHECKOUT / "tpop3d/samples/tpop3d.conf").read_text()
LINE = re.compile(r"(#?)([a-z][a-z-]*): (\S.*)")


def suggestions():
    """What could be put into its place by removing `#`: runs of such lines, as dicts."""
    found, run = [], {}
    for line in [*SAMPLE.splitlines(), ""]:
        match = LINE.fullmatch(line)
        if match and match[1]:
            run[match[2]] = match[3].replace("vmail", MAIL_USER.pw_name)
        elif run:
            found.append(run)
            run = {}
    return found


def settings():
    return {match[2]: match[3] for match in map(LINE.fullmatch, SAMPLE.splitlines())
            if match and not match[1]}  # fmt: skip


def config_of(lines):
    return read("".join(f"{key}: {value}\n" for key, value in lines.items()), "sample")


def test_every_line_is_a_setting_or_a_comment_or_an_example():
    for line in SAMPLE.splitlines():
        assert not line or line.startswith(("# ", "#")) or LINE.fullmatch(line), line
        # What looks like an example is one: a space behind `#` is for text.
        assert not line.startswith("#") or line[1:2] in (" ", "") or LINE.fullmatch(line), line
    assert len(suggestions()) >= 8


def test_it_is_safe():
    config = read(SAMPLE, "sample")
    assert list(config.drivers) == ["pam"]
    assert config.tls.pairs
    assert not config.takes_plaintext("192.0.2.1")
    assert (config.permit_empty_password, config.gatekeeper_user) == (False, "tpop3d")


@pytest.mark.parametrize("suggested", suggestions(), ids=lambda run: next(iter(run)))
def test_every_suggestion_can_be_taken(suggested):
    if "auth-mysql-enable" in suggested:
        pytest.importorskip("MySQLdb", reason="mysqlclient is not installed in this Python")
    config_of(settings() | suggested)


def test_what_is_called_the_default_is_it():
    """Limits and the log, which are there to be changed; and where mail is."""
    effective = {key: value for key, value, is_default in config_of(settings()).effective}
    for key in ("timeout-seconds", "max-children", "log-facility", "log-level", "mailbox"):
        assert any(run.get(key) == effective[key] for run in suggestions())
