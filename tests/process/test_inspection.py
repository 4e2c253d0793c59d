"""`tpop3d --inspect`: the messages as a session would show them, and what is odd about them."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings

import doors
from authkit import tpop3d
from inspecting import SPOOL, after_a_session, line, seen, text
from mailsite import CHECKOUT, ENVIRONMENT, IS_ROOT, MAIL_USER, as_ordinary_user, poll
from spools import good, mbox, odd_spools
from test_hazard_other_programs import dotlockfile
from test_uidl_styles import golden
from tpop3d.commands.inspection import problems
from tpop3d.commands.inspection.mailbox import Settings, look
from tpop3d.mailspool.scan import BLOCK
from tpop3d.mailspool.uidl_styles import DOVECOT, POPA3D, TPOP3D, X_UIDL

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root sees and becomes others")


@pytest.fixture
def anna(site):
    site.add("anna", SPOOL)
    return site


def told(wire, command):
    """The lines of UIDL or LIST, as pairs."""
    return [tuple(one.decode().split()) for one in wire.ask_long(command)[1].splitlines()]


def check_against_a_session(site):
    """Numbers, sizes and unique-ids are those of a session, before it and beside it."""
    alone = seen(site)
    with doors.inetd(site) as wire:
        wire.login("anna")
        beside = seen(site)
        for found in (alone, beside):
            messages = found["messages"]
            ids = [(str(one["number"]), one["unique_id"]) for one in messages]
            assert ids == told(wire, "UIDL")
            sizes = [(str(one["number"]), str(one["octets"])) for one in messages]
            assert sizes == told(wire, "LIST")
            stat = f"+OK {found['count']} {found['octets']}\r\n"
            assert wire.ask("STAT") == stat.encode()
    octets = site.spool("anna").read_bytes()
    for one in alone["messages"]:
        words = octets[one["offset"] :].partition(b"\n")[0].decode().split()
        assert words == ["From", *one["from_line"].split()]
    return alone, beside


SPOOLS = [
    ("mail.mbox", TPOP3D), ("mail.mbox", POPA3D), ("mail.mbox", X_UIDL), ("c-client.mbox", POPA3D),
    ("c-client-dovecot.mbox", DOVECOT), ("mail-dovecot.mbox", DOVECOT),
]  # fmt: skip


@pytest.mark.parametrize(("name", "style"), SPOOLS)
def test_it_shows_what_a_session_shows(site, name, style):
    site.add("anna", golden(name))
    site.configure({"uidl-style": style})
    found, _ = check_against_a_session(site)
    assert found["uidl_style"] == style
    hidden = [one for one in found["problems"] if one["kind"] == "hidden"]
    assert len(hidden) == name.startswith("c-client")


@settings(deadline=None)
@given(odd_spools)
def test_of_odd_spools_too(octets):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "anna"
        path.write_bytes(octets)
        mailbox = look(str(path), Settings(directory, "tpop3d", True), lambda uid, gid: None)
        spool = good(path, index=False)
        assert mailbox.listing is not None
        assert mailbox.listing.octets == spool.octets
        assert list(mailbox.ids) == list(spool.unique_ids())
        assert len(mailbox.lines) == len(spool)
        spool.close()


def test_the_summary_and_the_table(anna):
    shown = text(anna)
    assert shown.splitlines()[0] == f"{anna.spool('anna')}: 3 messages, 59 octets"
    summary, _, table = shown.partition("\n\n")
    labels = [one[2:16].strip() for one in summary.splitlines()[1:]]
    assert labels == [
        "file", "session lock", "fcntl lock", "flock", "dotlock", "state", "index", "journal",
        "unique-ids", "problems",
    ]  # fmt: skip
    rows = [row.split() for row in table.splitlines()]
    assert rows[0] == ["number", "octets", "offset", "unique-id", "sender,", "subject"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3"]
    assert [row[-1] for row in rows[1:]] == ["one", "two", "three"]
    assert line(anna, "problems") == "none"


def keys(value):
    """All keys in it, wherever they stand."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set()


def test_every_key_is_documented(anna, inetd):
    assert dotlockfile(anna, "-l", "-p", f"{anna.spool('anna')}.lock") == 0
    anna.spool("anna").write_bytes(SPOOL.rstrip(b"\n"))
    found = seen(anna)
    assert dotlockfile(anna, "-u", f"{anna.spool('anna')}.lock") == 0
    inetd.login("anna")
    found = [found, seen(anna)]
    assert {"alive", "kind", "subject", *(["pid", "command"] if IS_ROOT else [])} <= keys(found)
    page = (CHECKOUT / "man/tpop3d.8").read_text()
    section = page.partition(".Ss Inspecting a mailspool")[2].partition("\n.Ss ")[0]
    assert keys(found) - set(re.findall(r"\w+", section)) == set()


def test_every_kind_is_documented():
    constants = vars(problems).items()
    kinds = {value for name, value in constants if name.isupper() and isinstance(value, str)}
    assert {"glued", "no-line-end"} <= kinds
    page = (CHECKOUT / "man/tpop3d.8").read_text()
    section = page.partition("\nKinds are\n")[2].partition("\n.It ")[0]
    words = re.findall(r"^\.Li (.*)$", section, re.MULTILINE)
    assert {word for line in words for word in line.replace(",", " ").split()} == kinds


def test_in_the_middle_of_the_pages(anna):
    """Whoever reads no further ends it, and sees no complaint."""
    site = anna
    site.add("anna", SPOOL * 300)
    command = f"{sys.executable} -m tpop3d --inspect {site.spool('anna')} -f {site.conf} | head -1"
    done = subprocess.run(["sh", "-c", command], env=ENVIRONMENT, cwd="/", capture_output=True)
    assert done.stdout.endswith(b": 900 messages, 17700 octets\n")
    assert done.stderr == b""


HOSTILE = mbox(
    b"Subject: \x1b[2J\x07bell \xc3\xbcml\xc3\xa4ut \xff\xe2\x80\xae\n\n1\n",
    b"Subject: =?utf-8?q?Tea_at?=\n =?ISO-8859-1*en?B?IHPpeA==?= now\n\n2\n",
    b"Subject: =?nosuch?q?x?= =?utf-8?b?!?= =?utf-8?q?=0Aa=1B?=\n\n3\n",
    b"X: y\nsubject:   " + b"long " * 300 + b"\n\n4\n",
    b"\nno header\n",
)
SUBJECTS = [
    "\\x1b[2J\\x07bell ümläut \\xff\\u202e",
    "Tea at séx now",
    "=?nosuch?q?x?= a\\x1b",
]


def test_what_mail_says_is_shown_harmlessly(site):
    site.add("anna", HOSTILE.replace(b"From sender", b"From \x1b]0;x\x07" + b"s" * 300, 1))
    shown = text(site)
    assert all(character.isprintable() or character == "\n" for character in shown)
    messages = seen(site)["messages"]
    assert [one["subject"] for one in messages[:2]] == SUBJECTS[:2]
    assert "\\x1b" in messages[2]["subject"]
    assert messages[3]["subject"].startswith("long long")
    assert messages[4]["subject"] == ""
    assert all(len(one["subject"]) <= 200 >= len(one["from_line"]) for one in messages)
    assert max(map(len, shown.splitlines())) < 180


# Problems


MORE = mbox(b"Subject: four\n\n4\n", b"Subject: five\n\n5\n")
ENVELOPE = SPOOL.partition(b"\n")[0]


def at(octets, what, nth=0):
    """The offset at which it begins for the nth time."""
    offset = octets.index(what)
    for _ in range(nth):
        offset = octets.index(what, offset + 1)
    return offset


PROBLEMS = {
    "garbage": (b"garbage\n\n" + SPOOL, 1, [("garbage", 0, None)]),
    "blank lines, garbage": (b"\n\r\nx", 1, [("garbage", 3, None)]),
    "no line end": (SPOOL.rstrip(b"\n"), 0, [("no-line-end", len(SPOOL) - 2, 3)]),
    "no empty line": (SPOOL[:-1], 0, [("no-empty-line", len(SPOOL) - 1, 3)]),
    "CRLF": (SPOOL.replace(b"\n", b"\r\n"), 0, [("crlf", 0, 1)]),
    "empty": (b"", 0, []),
    "glued": (SPOOL[:-1] + MORE, 0, [("glued", len(SPOOL) - 1, 3)]),
    "glued to an open line": (
        SPOOL[:-2] + b"\r\n" + MORE.replace(b"\n", b"\r\n"),
        0,
        [("crlf", len(SPOOL) + 72, 4), ("glued", len(SPOOL), 3)],
    ),
    "glued, the first at the start": (
        ENVELOPE + b"\n" + SPOOL,
        0,
        [("doubtful", 0, 1), ("glued", len(ENVELOPE) + 1, 1)],
    ),
    "quoted": (SPOOL.replace(b"1\n", b">" + ENVELOPE + b"\nand so on\n", 1), 0, []),
    "text like a From_ line": (SPOOL.replace(b"1\n", b"1\nFrom here to there: 10:00\n"), 0, []),
    "a From_ line in text": (SPOOL.replace(b"1\n", b"1\n" + ENVELOPE + b"\nwas it.\n"), 0, []),
    "no time": (SPOOL + b"From here on\nA: b\n\n\n", 0, [("doubtful", len(SPOOL), 4)]),
    "no header": (SPOOL + ENVELOPE + b"\nand so on\n\n", 0, [("doubtful", len(SPOOL), 4)]),
    "nothing behind": (SPOOL + ENVELOPE + b"\n\n", 0, []),
    "an empty header": (SPOOL + ENVELOPE + b"\n\ntext\n\n", 0, []),
    "CR alone": (
        SPOOL + ENVELOPE + b"\rSubject: x\r\rhidden\n\n",
        0,
        [("from-line", len(SPOOL), 4)],
    ),
    "a long From_ line": (
        SPOOL + ENVELOPE + b"x" * 500 + b"\n\n",
        0,
        [
            ("from-line", len(SPOOL), 4),
        ],
    ),
    "a NUL": (SPOOL.replace(b"2\n", b"\0\n"), 0, [("nul", at(SPOOL, b"\n2\n") + 1, 2)]),
    "NULs": (SPOOL + bytes(5000) + b"\n\n", 0, [("nul", len(SPOOL), 3)]),
    "NULs from the start": (bytes(5000) + SPOOL, 1, [("garbage", 0, None)]),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems(site, name):
    octets, status, expected = PROBLEMS[name]
    site.add("anna", octets)
    found = seen(site, status)
    problems = [(one["kind"], one["offset"], one["message"]) for one in found["problems"]]
    assert problems == expected
    assert all(one["text"] in text(site, status) for one in found["problems"])
    output = doors_answer(site)
    assert output.startswith(b"+OK" if status == 0 else b"-ERR [SYS/PERM]")


def test_what_stands_where_a_message_should_is_shown(site):
    site.add("anna", b"\n\x1b]0;x\x07 or other\nmore\n\n" + SPOOL)
    (problem,) = seen(site, 1)["problems"]
    assert "stands at offset 1 (\\x1b]0;x\\x07 or other), and" in problem["text"]


@pytest.mark.parametrize("name", ["mail.mbox", "mail-dovecot.mbox", "c-client.mbox"])
def test_what_real_programs_have_made_is_not_odd(site, name):
    site.add("anna", golden(name))
    kinds = {one["kind"] for one in seen(site)["problems"]}
    assert kinds <= {"hidden", "duplicate", "crlf", "no-empty-line", "no-line-end"}


@pytest.mark.parametrize("shift", range(-10, 11))
def test_what_a_block_ends_in_is_found(tmp_path, shift):
    """A glued message and a NUL, wherever they are cut in two."""
    path = tmp_path / "anna"
    filled = SPOOL[:-2] + b"\n" + b"x" * (BLOCK - len(SPOOL) + shift) + b"\n"
    path.write_bytes(filled + MORE + b"\0\n\n")
    mailbox = look(str(path), Settings(str(tmp_path), "tpop3d", False), lambda uid, gid: None)
    problems = [(one.kind, one.offset, one.message) for one in mailbox.problems]
    assert problems == [("glued", len(filled), 3), ("nul", len(filled + MORE), 4)]


def test_of_very_many_problems_the_number_is_said(site):
    glued = SPOOL.replace(b"\n\nFrom ", b"\nFrom ")
    site.add("anna", glued[:-1] * 1000 + b"\n")
    problems = [one for one in seen(site)["problems"] if one["kind"] == "glued"]
    assert len(problems) == 1001
    assert problems[-1]["text"].startswith("there are 1999 further problems")
    assert problems[-1]["offset"] is None
    shown = text(site)
    assert shown.count("a message is glued to message 1:") == 5
    assert "... and 2994 more of this kind: glued\n" in shown


@settings(deadline=None)
@given(odd_spools)
def test_a_line_is_glued_where_no_message_begins(octets):
    """Of any spool: the plain way, line by line."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "anna"
        octets = octets.replace(b"From ", ENVELOPE + b"\nA: b\n")
        path.write_bytes(octets)
        mailbox = look(str(path), Settings(directory, "tpop3d", False), lambda uid, gid: None)
    begins = [one.start() for one in re.finditer(rb"^From ", octets, re.MULTILINE)]
    assert mailbox.listing is not None
    glued = [one.offset for one in mailbox.problems if one.kind == "glued"]
    assert glued == sorted(set(begins) - set(mailbox.listing.starts))


def doors_answer(site):
    with doors.inetd(site) as wire:
        wire.line()
        wire.ask("USER anna")
        return wire.ask("PASS secret")


def test_where_the_first_message_is_behind_garbage(site):
    for blocks in (b"", b"x" * (1 << 18), b"y" * ((1 << 18) - 11)):
        site.add("anna", b"garbage" + blocks + b"\n\n" + SPOOL)
        (problem,) = seen(site, 1)["problems"]
        assert problem["text"].endswith(f"the first message begins at {9 + len(blocks)}")


def test_duplicates(site):
    twin = mbox(b"Subject: twin\n\n" + b"x" * 600 + b"\n")
    site.add("anna", twin + SPOOL + twin * 20)
    found = seen(site)
    problems = [one for one in found["problems"] if one["kind"] == "duplicate"]
    assert [one["message"] for one in problems] == list(range(5, 25))
    assert all("the unique-id of message 1, and a suffix" in one["text"] for one in problems)
    for one in problems:
        assert "-" in found["messages"][one["message"] - 1]["unique_id"]
        assert found["messages"][one["message"] - 1]["offset"] == one["offset"]
    assert "... and 15 more of this kind: duplicate\n" in text(site)


# Who, and by which configuration


def as_user(site, uid, *arguments):
    site.conf.chmod(0o644)
    site.passwd.chmod(0o644)
    modules = "encodings.ascii, tpop3d.commands.inspection.command"
    options = ["--inspect", site.spool("anna"), "-f", site.conf, *arguments]
    command = as_ordinary_user(modules, uid, *options)
    return subprocess.run(command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True)


@as_root
def test_an_ordinary_user_sees_his_own(anna):
    after_a_session(anna)
    done = as_user(anna, MAIL_USER.pw_uid)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 messages, 59 octets" in done.stdout
    assert "session lock  free" in done.stdout


@as_root
def test_an_ordinary_user_sees_no_others(anna):
    after_a_session(anna)
    done = as_user(anna, 2001)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{anna.spool('anna')}: Permission denied\n")
    assert "session lock  unknown: Permission denied" in done.stdout
    assert "one" not in done.stdout.splitlines()[-1].split(", ")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (os.mkdir, "a directory, not a file"),
        (os.mkfifo, "a FIFO, not a regular file"),
        (lambda path: os.symlink("/dev/zero", path), "a symbolic link, which is not followed"),
        (lambda path: os.symlink("nowhere", path), "a symbolic link, which is not followed"),
    ],
)
def test_what_is_no_mailspool(site, make, name):
    make(site.spool("anna"))
    found = seen(site, 1)
    assert found["reason"] == name


def test_a_path_from_where_one_is(anna, monkeypatch):
    done = tpop3d("--inspect", f"..{anna.spool('anna')}", "-f", anna.conf)
    assert done.returncode == 0
    assert done.stdout.startswith(os.fsencode(anna.spool("anna")))


def test_without_a_configuration_there_are_the_defaults(anna):
    done = tpop3d("--inspect", anna.spool("anna"))
    assert done.returncode == 0, done.stderr
    assert b"in the style of tpop3d" in done.stdout


def test_a_configuration_with_errors(anna):
    for conf in (anna.path / "none", anna.spool("anna")):
        done = tpop3d("--inspect", anna.spool("anna"), "-f", conf)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr


def test_a_listener_that_serves_does_not_mind(anna):
    with doors.standalone(anna) as door:
        client = door.poplib()
        client.user("anna")
        client.pass_("secret")
        assert seen(anna)["locks"]["session"]["state"] == "held"
        client.dele(1)
        client.quit()
        poll(lambda: seen(anna)["locks"]["session"]["state"] == "free", "the session's end")
        assert seen(anna)["count"] == 2


def test_who_reads_while_others_write_is_told(tmp_path):
    path = tmp_path / "anna"
    path.write_bytes(SPOOL * 5000)  # reading it takes longer than it takes to deliver
    is_over = threading.Event()

    def deliver():
        with path.open("ab", buffering=0) as file:
            while not is_over.wait(0.001):
                file.write(SPOOL)

    deliverer = threading.Thread(target=deliver)
    deliverer.start()
    try:
        mailbox = look(str(path), Settings(str(tmp_path), "tpop3d", True), lambda uid, gid: None)
    finally:
        is_over.set()
        deliverer.join()
    assert mailbox.listing is not None
    assert len(mailbox.listing) >= 15_000
    assert mailbox.problems[-1].kind == "changed"


def test_it_leaves_no_descriptor_open(tmp_path):
    path = tmp_path / "anna"
    path.write_bytes(SPOOL)
    before = os.listdir("/proc/self/fd")
    mailbox = look(str(path), Settings(str(tmp_path), "tpop3d", True), lambda uid, gid: None)
    assert mailbox.listing is not None
    assert os.listdir("/proc/self/fd") == before


def test_where_the_directory_is_missing_no_session_finds_an_empty_maildrop(site):
    assert "an empty maildrop" in seen(site, 1)["reason"]
    site.spools.rmdir()
    reason = "its directory is missing, too; is the file system mounted?"
    assert seen(site, 1)["reason"] == reason
