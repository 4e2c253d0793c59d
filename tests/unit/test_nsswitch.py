"""Which services of nsswitch.conf(5) have to answer, and what is done where one does not."""

import subprocess
import sys

import pytest

from mailsite import CHECKOUT
from tpop3d.config import nsswitch

STRICT = f"[{nsswitch.STRICT}]"


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """The lines of an nsswitch.conf, as the second question has them."""

    def strict(text, database="passwd"):
        (tmp_path / "nsswitch.conf").write_text(text)
        monkeypatch.setattr(nsswitch, "CONFIGURATION", str(tmp_path / "nsswitch.conf"))
        return nsswitch._strict(nsswitch._services(database))

    monkeypatch.setitem(nsswitch.UNUSED_WITHOUT, "sss", (str(tmp_path / "sssd.conf"),))
    return strict


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("files ldap", f"files {STRICT} ldap {STRICT}"),
        ("\tfiles\tldap # files", f"files {STRICT} ldap {STRICT}"),
        ("files [NOTFOUND=return] ldap",
         f"files [{nsswitch.STRICT} NOTFOUND=return] ldap {STRICT}"),
        ("files[!SUCCESS=continue]ldap[ UNAVAIL=continue ]files",
         f"files [{nsswitch.STRICT} !SUCCESS=continue] ldap [{nsswitch.STRICT} UNAVAIL=continue]"
         f" files {STRICT}"),
        ("files systemd", f"files {STRICT}"),
        ("db files systemd [SUCCESS=return] ldap mymachines",
         f"files {STRICT} ldap {STRICT}"),
        ("files sss", f"files {STRICT}"),
        ("sss [NOTFOUND=return] files systemd", f"files {STRICT}"),
        ("", ""),
        ("[NOTFOUND=return] files", f"files {STRICT}"),
        ("files [NOTFOUND=return", f"files [{nsswitch.STRICT} NOTFOUND=return]"),
    ],
)  # fmt: skip
def test_a_line(lines, line, expected):
    assert lines(f"group: compat\npasswd:{line}\n") == expected


def test_the_line_of_the_database(lines):
    text = "# passwd: x\npasswd_compat: nis\n passwd : files ldap\ngroup: files\npasswd\n"
    assert lines(text) == f"files {STRICT} ldap {STRICT}"
    assert lines(text, "group") == f"files {STRICT}"
    assert lines("group: files\n") == ""


def test_sssd_has_to_answer_where_it_is_set_up(lines, tmp_path):
    place = tmp_path / "sssd.conf"
    place.mkdir()  # as /etc/sssd/conf.d is there
    assert lines("passwd: files sss") == f"files {STRICT}"
    (place / "sssd.conf").touch()
    assert lines("passwd: files sss") == f"files {STRICT} sss {STRICT}"


def test_those_that_are_not_of_this_machine(tmp_path, monkeypatch):
    """With what the administrator has said of them."""
    (tmp_path / "nsswitch.conf").write_text(
        "passwd: files [NOTFOUND=continue] ldap [UNAVAIL=continue] compat winbind\n"
    )
    monkeypatch.setattr(nsswitch, "CONFIGURATION", str(tmp_path / "nsswitch.conf"))
    monkeypatch.setenv("SSS_NSS_USE_MEMCACHE", "YES")  # so that it is as before, afterwards
    asked = []
    monkeypatch.setattr(nsswitch, "is_absent", lambda *what: asked.append(what))
    nsswitch.require_directories("anna")
    assert asked == [("passwd", "anna", ["ldap", "[UNAVAIL=continue]", "winbind"])]
    (tmp_path / "nsswitch.conf").write_text("passwd: files systemd\n")
    nsswitch.require_directories("anna")
    assert len(asked) == 1


ASK = """
import ctypes, pwd, resource, sys
sys.path.insert(0, {checkout!r})
from tpop3d.config import nsswitch
from tpop3d.auth import system_users as system
from tpop3d.config import Unanswered
from tpop3d.config.directive import group_id, user_id
assert system.find(b"root").pw_uid == 0 and system.find(b"no-such-name-here") is None
pwd.getpwuid(0)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
for ask in (lambda: system.find(b"root"), lambda: user_id("root"), lambda: user_id("0"),
            lambda: group_id("mail")):
    try:
        print("found", ask())
    except Unanswered as error:
        print(error)
"""


def test_a_process_that_cannot_ask():
    """It has no descriptor left for /etc/passwd: no wrong password, and no missing user."""
    code = ASK.format(checkout=str(CHECKOUT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == 4
    assert all("does not answer: Too many open files; see " in answer for answer in answers)
    assert [answer.partition(" cannot be")[0] for answer in answers[1:]] == [
        "user 'root'", "user '0'", "group 'mail'"
    ]  # fmt: skip
