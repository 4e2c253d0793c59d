"""`$(variable)` in mailbox paths and file names, and what a name from the network cannot do."""

import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpop3d.auth.driver import Account, Verdict, checked
from tpop3d.config.templates import Mailbox, Template, is_plain

VALUES = {
    "user": b"ann@example.org",
    "local_part": b"ann",
    "domain": b"example.org",
    "home": b"/home/ann",
}
EXPANDED = [
    ("/var/mail/$(user)", "/var/mail/ann@example.org"),
    ("/var/mail/$(domain)/$(local_part)", "/var/mail/example.org/ann"),
    ("$(home)/Mailbox", "/home/ann/Mailbox"),
    ("/m/$(user[0])/$(user)", "/m/a/ann@example.org"),
    ("/m/$(local_part[1])$(local_part[2])", "/m/nn"),
    ("/m/$(user[-1])", "/m/g"),
    ("/m/$(user[-2])", "/m/r"),
    ("/m/$(local_part[-3])", "/m/a"),
    ("/m/$(local_part)$(local_part)", "/m/annann"),
    ("/m/$user", "/m/$user"),
    ("/m/$", "/m/$"),
    ("/m/(user)", "/m/(user)"),
    ("/m/$$(local_part))", "/m/$ann)"),
    ("/m", "/m"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), EXPANDED)
def test_variables_become_their_values(text, expected):
    template = Template(text)
    assert template.expand(VALUES) == expected
    assert str(template) == text


WRONG = [
    "$(", "$(user", "$(nobody)", "$()", "$(USER)", "$( user)", "$(user[0)", "$(user[])",
    "$(user[x])", "$(user[0]x)", "$(user[0][0])", "$(user[1.5])", "/m/$(user)/$(x)",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_template_is_refused(text):
    with pytest.raises(ValueError):
        Template(text)


def test_an_unknown_variable_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"\$\(usr\).*\$\(user\).*\$\(home\)"):
        Template("/m/$(usr)")
    with pytest.raises(ValueError):
        Template("/etc/$(user)", ("domain",))


@pytest.mark.parametrize("index", [3, 4, -4, 99, -99])
def test_a_character_that_is_not_there_makes_no_path(index):
    assert Template(f"/m/$(local_part[{index}])/x").expand(VALUES) is None


@pytest.mark.parametrize(
    "name",
    [b"", b".", b"..", b".x", b"/", b"a/b", b"../x", b"a\0", b"\0", b"a\n", b"a\r", b"x" * 256],
)
@pytest.mark.parametrize("text", ["/m/$(user)", "/m/$(user[0])/x", "/m/x$(user)"])
def test_a_name_that_is_not_plain_makes_no_path(name, text):
    assert Template(text).expand({"user": name}) is None


def test_a_missing_value_makes_no_path():
    assert Template("/m/$(domain)/$(user)").expand({"user": b"ann"}) is None
    assert Template("/m/$(domain)/$(user)").expand({"user": b"ann", "domain": b""}) is None
    assert Template("/m/$(user)").expand({"user": b"ann", "domain": b""}) == "/m/ann"


def test_any_octet_but_these_may_be_in_a_name():
    assert [c for c in range(256) if not is_plain(b"a%c" % c)] == [0, 10, 13, 47]
    assert [c for c in range(256) if not is_plain(b"%ca" % c)] == [0, 10, 13, 46, 47]
    for name in (b"\xff\xfe", b"\xc3\xa9", b"with blank", b"a'b\"c", b"x" * 255):
        expanded = Template("/m/$(user)").expand({"user": name})
        assert os.fsencode(expanded) == b"/m/" + name


# Dots at any place, and variables side by side, as in a directory for each two letters.
names = st.text("a.", min_size=1, max_size=4).map(str.encode) | st.binary(max_size=6)
VARIABLES = ["$(user)", "$(user[0])", "$(user[1])", "$(user[-1])", "$(domain[-1])"]
components = st.lists(st.sampled_from([*VARIABLES, "x", "."]), min_size=1, max_size=3).map("".join)


@given(st.lists(components, min_size=1, max_size=2).map("/".join), names, names)
@example("$(user[1])$(user[2])/$(user)", b"a..", b"x")
@example(".$(user[-1])/$(user)", b"a.", b"x")
def test_no_name_leaves_the_directory_of_the_template(tail, user, domain):
    """What the administrator wrote may step up, what the client gave may not."""
    path = Template("/top/mail/" + tail).expand({"user": user, "domain": domain})
    if path is not None and ".." not in tail.split("/"):
        assert ".." not in path.split("/")
        assert "\0" not in path


MAILBOXES = [
    ("/var/mail/$(user)", ["/var/mail/ann@example.org"]),
    ("bsd:/var/mail/$(local_part)", ["/var/mail/ann"]),
    ("bsd:$(home)/mbox", ["/home/ann/mbox"]),
    ("$(home)/mbox", ["/home/ann/mbox"]),
    ("bsd:/a/$(user) /b/$(local_part)", ["/a/ann@example.org", "/b/ann"]),
    ("/a/$(local_part[9]) /b/$(local_part)", ["/b/ann"]),
    ("/a/$(local_part[9])", []),
    ("/mail:box/$(local_part)", ["/mail:box/ann"]),
]


@pytest.mark.parametrize(("text", "paths"), MAILBOXES)
def test_mailboxes_are_tried_in_order(text, paths):
    mailbox = Mailbox(text)
    assert mailbox.paths(VALUES) == paths
    assert str(mailbox) == text


@pytest.mark.parametrize(
    "text",
    ["", "  ", "bsd:", "bsd:mail/x", "mail/x", "maildir:/x", ":/x", "BSD:/x", "$(user)",
     "bsd:$(user)", "/a $(x)", "/a relative", "~/mbox"],
)  # fmt: skip
def test_what_is_no_mailbox_is_refused(text):
    with pytest.raises(ValueError):
        Mailbox(text)


REQUIRED = [
    ("/var/mail/$(user)", "/var/mail"),
    ("/var/mail/x$(user)", "/var/mail"),
    ("/srv/mail/$(domain)/$(user)", "/srv/mail"),
    ("/srv/mail/$(user[0])/mbox", "/srv/mail"),
    ("/srv/mail/shared", "/srv/mail"),
    ("/$(user)", "/"),
    ("/m", "/"),
    ("$(home)/Mailbox", "/home/ann"),
    ("$(home)/mail/$(user)", "/home/ann"),
    ("$(home)", "/home"),
    ("$(home).mbox", "/home"),
    ("/export$(home)/Mailbox", "/export"),
    ("/export/x$(home[-1])/Mailbox", "/export"),
]


@pytest.mark.parametrize(("text", "directory"), REQUIRED)
def test_which_directory_is_there_before_any_mail(text, directory):
    paths, required = Mailbox(f"/a/$(local_part[9]) {text} /b/c/$(user)").places(VALUES)
    assert required == [directory, "/b/c"]
    assert len(paths) == 2
    assert paths[0].startswith(directory)


@pytest.mark.parametrize(
    ("home", "directory"),
    [
        (b"/home/ann/", "/home/ann"),
        (b"/", "/"),
        (b"", "/"),
        (b"/nonexistent", ""),
        (b"/nonexistent/", ""),
        (b"/dev/null", ""),
        (b"/nonexistent2", "/nonexistent2"),
    ],
)
def test_a_home_is_there_unless_it_says_that_there_is_none(home, directory):
    assert Mailbox("$(home)/Mailbox").places({"home": home})[1] == [directory]


@given(st.lists(st.sampled_from(["/", "a", "$(user)", "$(home)", "$(home[1])", "."]), max_size=6))
def test_it_is_one_that_the_mailbox_is_in(parts):
    """Or a verdict with it would be none."""
    for start in ("/", "$(home)"):
        mailbox = Mailbox(start + "".join(parts))
        for home in (b"/home/ann", b"/", b"/home//ann//"):
            paths, required = mailbox.places(VALUES | {"home": home})
            verdict = Verdict.yes(Account(b"ann", 1, 1, paths or ["/x"], required=required or [""]))
            assert checked(verdict) is verdict, (paths, required)


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("/var/mail/%u", "$(user)"), ("/var/vmail/%d/%n", "$(local_part)"), ("%h/mail", "$(home)"),
        ("/var/mail/%{user}", "$(user)"), ("/var/mail/${user}", "$(user)"),
    ],
)  # fmt: skip
def test_other_programs_variables_are_told_as_ours(text, ours):
    with pytest.raises(ValueError, match=re.escape(f"is not known here; write {ours}")):
        Template(text)


def test_a_home_directory_as_shells_write_it_is_told_as_ours():
    with pytest.raises(ValueError, match=re.escape("write $(home) for ~")):
        Mailbox("~/mbox")
