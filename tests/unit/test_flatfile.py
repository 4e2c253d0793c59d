"""auth-flatfile: files of `user:hash` lines."""

import grp
import hashlib
import os
import re
import tempfile
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import config_of, errors_of, login, text_of
from mailsite import IS_ROOT, MAIL_USER
from tpop3d.auth import flatfile, passwords
from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Login
from tpop3d.auth.switch import Switch
from tpop3d.pop3.authorization import Attempt

PASSWD = rb"""
# a comment: {plaintext}secret
ann:{plaintext}secret
bert:{plaintext}open: sesame
carl : {plaintext}secret
dora:{md5}5ebe2294ecd0e0f08eab7690d2a6ee69:and:further:fields
  eve:{plaintext}secret
fred:
gil:{nosuchscheme}secret
ann:{plaintext}other
herb@example.org:{plaintext}secret
no colon at all
#ida:{plaintext}secret
joe\:{plaintext}secret
ann/etc:{plaintext}secret
.dot:{plaintext}secret
Kim:{plaintext}secret
""" + b"l\xe9o:{plaintext}s\xe9same\n"  # fmt: skip


@pytest.fixture
def driver(tmp_path):
    (tmp_path / "passwd").write_bytes(PASSWD)
    return driver_of(tmp_path / "passwd")


def driver_of(file, **more):
    mailbox = f"bsd:{file.parent}/mail/$(local_part)"
    settings = {"auth-flatfile-passwd-file": file, "auth-flatfile-mailbox": mailbox}
    return config_of(settings, **more).drivers["flatfile"]


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (b"ann", b"secret"),
        (b"dora", b"secret"),
        (b"eve", b"secret"),
        (b"Kim", b"secret"),
        (b"l\xe9o", b"s\xe9same"),
    ],
)
def test_the_right_password_gives_the_account(driver, tmp_path, name, password):
    verdict = driver.authenticate(login(name, password=password))
    assert verdict.answer == YES
    account = verdict.account
    assert account.name == name
    assert (account.uid, account.gid) == (MAIL_USER.pw_uid, MAIL_USER.pw_gid)
    assert account.mailboxes == [f"{tmp_path}/mail/{os.fsdecode(name)}"]


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (b"ann", b"wrong"),
        (b"ann", b""),
        (b"ann", b"secret "),
        (b"ann", b"{plaintext}secret"),
        (b"ann", b"other"),  # the first line with the name is the one
        (b"dora", b"5ebe2294ecd0e0f08eab7690d2a6ee69"),
        (b"bert", b"open: sesame"),  # what follows the colon is a further field
        (b"fred", b"secret"),
        (b"gil", b"secret"),
        (b"nobody there", b"secret"),
        (b"", b""),
        (b"", b"secret"),
        (b"herb", b"secret"),
        (b"# a comment", b"secret"),
        (b"#ida", b"secret"),
        (b"ida", b"secret"),
        (b"no colon at all", b""),
        (b"kim", b"secret"),
        (b"ann/etc", b"secret"),  # a line there is, but no such path
        (b".dot", b"secret"),
        (b"ann:", b"secret"),
        (b"ann\n", b"secret"),
    ],
)
def test_a_wrong_name_or_password_is_refused(driver, name, password):
    assert driver.authenticate(login(name, password=password)).answer == NO


def test_a_password_may_end_with_blanks(tmp_path):
    (tmp_path / "passwd").write_bytes(b"ann:{plaintext} two \nbert:{plaintext}x \r\n")
    driver = driver_of(tmp_path / "passwd")
    assert driver.authenticate(login(b"ann", password=b" two ")).answer == YES
    assert driver.authenticate(login(b"ann", password=b" two")).answer == NO


def test_crlf_files_are_read(tmp_path):
    (tmp_path / "passwd").write_bytes(b"ann:{plaintext}secret\r\nbert:{plaintext}x\r\n")
    driver = driver_of(tmp_path / "passwd")
    assert driver.authenticate(login(b"ann")).answer == YES
    assert driver.authenticate(login(b"bert", password=b"x")).answer == YES


def test_in_a_file_for_all_the_domain_is_part_of_the_name(driver):
    assert driver.authenticate(login(b"herb", b"example.org")).answer == YES
    assert driver.authenticate(login(b"ann", b"example.org")).answer == NO


def test_the_domain_may_choose_the_file(tmp_path):
    (tmp_path / "example.org").write_bytes(b"ann:{plaintext}secret\nb@example.org:{plaintext}x\n")
    (tmp_path / "example.net").write_bytes(b"carl:{plaintext}secret\n")
    driver = driver_of(tmp_path / "$(domain)")
    assert driver.authenticate(login(b"ann", b"example.org")).answer == YES
    assert driver.authenticate(login(b"b", b"example.org", b"x")).answer == YES
    assert driver.authenticate(login(b"carl", b"example.net")).answer == YES
    assert driver.authenticate(login(b"ann", b"example.net")).answer == NO
    assert driver.authenticate(login(b"ann")).answer == NO  # no domain, no file
    assert driver.authenticate(login(b"ann", b"missing.example")).answer == NO


LINES = {
    "the address": b"ann@example.org:{plaintext}address\n",
    "the local part": b"ann:{plaintext}local part\n",
    "again": b"ann:{plaintext}again\n",
}


@pytest.mark.parametrize("lines", list(permutations(LINES)), ids=", ".join)
def test_of_several_lines_for_a_name_the_first_counts(tmp_path, lines):
    """Whichever of the two ways to write a name in a domain's own file it has."""
    (tmp_path / "example.org").write_bytes(b"bert:{plaintext}x\n" + b"".join(map(LINES.get, lines)))
    driver = driver_of(tmp_path / "$(domain)")
    for line in lines:
        password = LINES[line].strip().rpartition(b"}")[2]
        verdict = driver.authenticate(login(b"ann", b"example.org", password))
        assert verdict.answer == (YES if line == lines[0] else NO)


@pytest.mark.parametrize("name", ["$(domain)", "$(domain)/passwd", "x-$(domain[0])/$(domain).flat"])
def test_a_domain_without_a_file_is_a_no_and_no_trouble(tmp_path, name):
    """Whoever guesses domains is refused, and fail2ban's filter counts that."""
    file = tmp_path / name.replace("$(domain)", "example.org").replace("$(domain[0])", "e")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"ann:{plaintext}secret\n")
    driver = driver_of(tmp_path / name)
    assert driver.authenticate(login(b"ann", b"example.org")).answer == YES
    for domain in (b"example.net", b"x" * 250, b"x" * 255):
        verdict = driver.authenticate(login(b"ann", domain))
        assert (verdict.answer, verdict.reason) == (NO, "no password file for this domain")
    if "/" in name:  # a file where others have a directory
        file.unlink()
        file.parent.rmdir()
        file.parent.touch()
        assert driver.authenticate(login(b"ann", b"example.org")).answer == NO


def test_domains_that_have_all_gone_are_trouble(tmp_path):
    """A file system that is not mounted: its mount point is empty, or is missing with what is
    above it."""
    place = tmp_path / "above" / "domains"
    driver = driver_of(place / "$(domain)" / "passwd")
    verdict = driver.authenticate(login(b"ann", b"example.org"))
    why = f"{place}: No such file or directory"
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, why)
    place.mkdir(parents=True)
    verdict = driver.authenticate(login(b"ann", b"example.org"))
    why = f"{place}: is empty; is the file system mounted?"
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, why)
    (place / "example.net").mkdir()
    assert driver.authenticate(login(b"ann", b"example.org")).answer == NO


@pytest.mark.parametrize("link", ["example.org", "example.org/passwd"])
def test_a_domain_whose_file_is_a_link_to_nothing_is_trouble(tmp_path, link):
    (tmp_path / "example.net").mkdir()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "not mounted" / "x")
    verdict = driver_of(tmp_path / "$(domain)" / "passwd").authenticate(
        login(b"ann", b"example.org")
    )
    why = f"{tmp_path}/{link}: is a link to what is not there"
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, why)


def test_a_file_of_a_domain_that_cannot_be_read_is_trouble(tmp_path):
    driver = driver_of(tmp_path / "$(domain)")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    domains = [b"directory", b"loop"]
    if not IS_ROOT:
        (tmp_path / "secret").touch(mode=0)
        domains.append(b"secret")
    for domain in domains:
        assert driver.authenticate(login(b"ann", domain)).answer == CANNOT_SAY


@pytest.mark.parametrize("domain", [b"../example.org", b".", b"..", b"a/b", b"\0", b".x"])
def test_a_domain_reaches_no_other_directory(tmp_path, domain):
    (tmp_path / "example.org").write_bytes(b"ann:{plaintext}secret\n")
    (tmp_path / "sub").mkdir()
    driver = driver_of(tmp_path / "sub" / "$(domain)")
    assert driver.authenticate(login(b"ann", domain)).answer == NO


@pytest.mark.parametrize("domain", [b"x\x1b[2J", b"x user=root end", b'x"y', b"\xff\x85"])
def test_a_domain_forges_no_log_line(tmp_path, capfd, domain):
    """The reason names the file, and the client names the domain."""
    (tmp_path / os.fsdecode(domain)).mkdir()  # which cannot be read
    config = config_of(auth_flatfile_passwd_file=tmp_path / "$(domain)")
    attempt = Attempt("USER", b"ann@" + domain, password=b"secret")
    assert Switch(config.drivers, config).decide(attempt, b"", "").answer == CANNOT_SAY
    lines = capfd.readouterr().err
    assert lines.count("\n") == 1
    assert lines.replace("\n", "").isprintable()
    assert lines.isascii()
    assert " user=" not in re.sub('"[^"]*"', "", lines)
    assert 'x"y' not in lines


def test_a_file_that_cannot_be_read_is_cannot_say(tmp_path):
    assert driver_of(tmp_path / "missing").authenticate(login(b"ann")).answer == CANNOT_SAY
    assert driver_of(tmp_path).authenticate(login(b"ann")).answer == CANNOT_SAY
    (tmp_path / "file").touch()
    verdict = driver_of(tmp_path / "file" / "below").authenticate(login(b"ann"))
    assert verdict.answer == CANNOT_SAY
    if not IS_ROOT:
        (tmp_path / "file").chmod(0)
        assert driver_of(tmp_path / "file").authenticate(login(b"ann")).answer == CANNOT_SAY


def test_an_empty_file_lets_nobody_in(tmp_path):
    (tmp_path / "passwd").touch()
    for password in (b"", b"secret"):
        verdict = driver_of(tmp_path / "passwd").authenticate(login(b"ann", password=password))
        assert verdict.answer == NO


def test_the_file_is_read_anew_for_each_login(tmp_path, driver):
    (tmp_path / "passwd").write_bytes(b"ann:{plaintext}new\n")
    assert driver.authenticate(login(b"ann")).answer == NO
    assert driver.authenticate(login(b"ann", password=b"new")).answer == YES


def test_apop_needs_a_plaintext_line(driver):
    timestamp = b"<1896.697170952@dbc.mtview.ca.us>"
    digest = hashlib.md5(timestamp + b"secret", usedforsecurity=False).hexdigest().encode()
    for name, answer in ((b"ann", YES), (b"dora", NO), (b"fred", NO), (b"nobody there", NO)):
        verdict = driver.authenticate(Login(name, timestamp=timestamp, digest=digest))
        assert verdict.answer == answer
    wrong = Login(b"ann", timestamp=timestamp, digest=b"0" * 32)
    assert driver.authenticate(wrong).answer == NO


def test_an_unknown_name_costs_as_much_as_a_wrong_password(tmp_path, monkeypatch):
    (tmp_path / "passwd").write_bytes(b"# none\nann:$6$saltstring$x\nbert:$6$othersalt$x\n")
    driver = driver_of(tmp_path / "passwd")
    spent = []
    monkeypatch.setitem(passwords.SCHEMES, "crypt", lambda *args: spent.append(args))
    driver.authenticate(login(b"ann", password=b"wrong"))
    driver.authenticate(login(b"unknown", password=b"wrong"))
    assert [(word, setting[:3]) for word, setting in spent] == [(b"wrong", b"$6$")] * 2


def test_the_group_is_the_users_unless_it_is_given(tmp_path):
    (tmp_path / "passwd").write_bytes(b"ann:{plaintext}secret\n")
    driver = driver_of(tmp_path / "passwd", auth_flatfile_mail_group="12345")
    account = driver.authenticate(login(b"ann")).account
    assert (account.gid, account.lock_gid) == (MAIL_USER.pw_gid, 12345)
    driver = driver_of(tmp_path / "passwd", auth_flatfile_mail_group="mail")
    account = driver.authenticate(login(b"ann")).account
    assert account.lock_gid == grp.getgrnam("mail").gr_gid
    driver = driver_of(tmp_path / "passwd")
    account = driver.authenticate(login(b"ann")).account
    assert (account.gid, account.lock_gid) == (MAIL_USER.pw_gid, None)


def test_without_a_mailbox_of_its_own_the_general_one_serves(tmp_path):
    (tmp_path / "passwd").write_bytes(b"ann:{plaintext}secret\n")
    config = config_of(auth_flatfile_passwd_file=tmp_path / "passwd", mailbox="/all/$(user)")
    account = config.drivers["flatfile"].authenticate(login(b"ann")).account
    assert account.mailboxes == ["/all/ann"]


NEEDED = {
    "auth-flatfile-enable": "yes",
    "auth-flatfile-passwd-file": "/etc/tpop3d.passwd",
    "auth-flatfile-mail-user": "nobody",
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auth-flatfile-passwd-file", None),
        ("auth-flatfile-mail-user", None),
        ("auth-flatfile-mail-user", "root"),
        ("auth-flatfile-mail-user", "0"),
        ("auth-flatfile-mail-user", "no-such-user-here"),
        ("auth-flatfile-mail-user", ""),
        ("auth-flatfile-mail-group", "no-such-group-here"),
        ("auth-flatfile-mail-group", ""),
        ("auth-flatfile-mail-group", "4294967295"),  # (gid_t) -1 means "leave it"
        ("auth-flatfile-mail-group", "4294967296"),
        ("auth-flatfile-mail-group", "root"),  # a session never runs with it
        ("auth-flatfile-mail-group", "0"),
        ("auth-flatfile-passwd-file", ""),
        ("auth-flatfile-passwd-file", "passwd"),  # relative to what?
        ("auth-flatfile-passwd-file", "/etc/$(user)"),
        ("auth-flatfile-passwd-file", "/etc/$(domain"),
        ("auth-flatfile-mailbox", "maildir:/x"),
        ("auth-flatfile-mailbox", ""),
        ("auth-flatfile-enable", "maybe"),
        ("auth-flatfile-colour", "red"),
    ],
)
def test_wrong_settings_are_errors(key, value):
    settings = NEEDED | {key: value}
    errors = errors_of(
        text_of({key: value for key, value in settings.items() if value is not None})
    )
    assert any(key in error for error in errors)


lines = st.lists(
    st.text("ab:#\r\t ", max_size=6).map(str.encode) | st.sampled_from([b"ann:x", b" ann:y:z"]),
    max_size=6,
)


@given(lines, st.sampled_from([b"ann", b"a", b"b", b"ab", b"#a", b" a", b"a:", b""]))
def test_a_line_is_found_as_by_reading_all_of_them(lines, name):
    """The file is searched in a buffer, without a copy of anybody's line."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(lines))
        file.flush()
        found = flatfile._look_up(file.name, [name], [])
        other = flatfile._look_up(file.name, [], [[b"nobody", name]])
    hashes, decoys = {}, []
    for line in lines:
        key, colon, rest = line.lstrip().rstrip(b"\r").partition(b":")
        if colon and not key.startswith(b"#"):
            hashes.setdefault(key or None, rest.partition(b":")[0])
            decoys.append(rest.partition(b":")[0])
    assert found.stored == hashes.get(name)
    if found.stored is None:
        assert found.decoy == next(filter(None, decoys), b"")
    # ReceivedLogin whether it is there only, the file gives no hash.
    assert (other.known, other.stored, other.decoy) == ([name in hashes], None, b"")


@pytest.mark.parametrize("name", [b"ann", b"nobody"])
def test_what_was_read_of_others_is_wiped(tmp_path, monkeypatch, name):
    """The session is in this process, and is to know nothing of them."""
    made = []

    def kept(size):
        made.append(bytearray(size))
        return made[-1]

    monkeypatch.setattr(flatfile, "bytearray", kept, raising=False)
    file = tmp_path / "passwd"
    file.write_bytes(b"bert:one\nann:two\n")
    found = flatfile._look_up(str(file), [name], [[b"bert"], [b"zoe"]])
    if name == b"ann":
        assert (found.stored, found.decoy, found.known) == (b"two", b"", [])
    else:
        assert (found.stored, found.decoy, found.known) == (None, b"one", [True, False])
    assert made == [bytearray(len(b"bert:one\nann:two\n"))]
