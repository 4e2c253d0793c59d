"""The log: what cannot be forged, where it goes, and what is never in it."""

import errno
import os
import re
import socket
import syslog
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import CANARY
from mailsite import PATIENCE
from tpop3d.system import logs, outlets


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(logs, "_outlet", outlets.Stderr())
    monkeypatch.setattr(logs, "_threshold", syslog.LOG_INFO)
    monkeypatch.setattr(logs, "_to_journal", False)
    monkeypatch.setattr(logs, "_journal", None)
    yield
    logs._outlet.close()


def is_word(text):
    """One word of printable ASCII without quotes; a backslash only begins \\xHH."""
    return re.fullmatch(r"(?:[!#-&(-\[\]-~]|\\x[0-9a-f]{2})+", text) is not None


@given(st.binary(max_size=60))
def test_octets_become_one_word(value):
    escaped = logs.escape(value)
    assert is_word(escaped)
    back = re.sub(r"\\x(..)", lambda found: chr(int(found[1], 16)), escaped)
    assert back.encode("latin-1") == (value or b"-")


@given(st.binary(max_size=60))
def test_a_command_stays_one_line_and_can_be_read_back(line):
    shown = logs.printable(line)
    assert shown.isascii()
    assert shown.isprintable() or not shown
    back = re.sub(r"\\x(..)", lambda found: chr(int(found[1], 16)), shown)
    assert back.encode("latin-1") == line


ESCAPED = [
    (b"", "-"),
    (b"ann", "ann"),
    (b"ann@example.org", "ann@example.org"),
    (b"a b", r"a\x20b"),
    (b"a\nb\r\t\0", r"a\x0ab\x0d\x09\x00"),
    (b"a\\b", r"a\x5cb"),
    (b"\"'`", r"\x22\x27`"),
    (b"\xff\x7f\x1b", r"\xff\x7f\x1b"),
    (b"=%,;", "=%,;"),
]


@pytest.mark.parametrize(("value", "shown"), ESCAPED)
def test_how_octets_look(value, shown):
    assert logs.escape(value) == shown


def fields(line):
    """A line of the log as a reader of it takes it apart: words, some in double quotes."""
    return dict(re.findall(r' (\w+)=("[^"]*"|\S+)', " " + line))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.binary(max_size=30), texts, st.binary(max_size=30))
def test_an_event_cannot_be_forged(user, reason, last):
    line = logs.event("login failed", user=user, reason=reason, method=last)
    assert line.isascii()
    assert line.isprintable()
    found = fields(line)
    assert list(found) == ["user", "reason", "method"]
    assert found["user"] == logs.escape(user)
    assert found["method"] == logs.escape(last)


@pytest.mark.parametrize(
    "value", [b"x reason=ok", b'x" user="root', b"x\nsession user=root", b"x\xc2\xa0user=root"]
)
def test_attempts_to_forge_an_event(value):
    for given_as in (value, value.decode("utf-8", "surrogateescape")):
        line = logs.event("session", user=given_as, end="quit")
        assert list(fields(line)) == ["user", "end"]
        assert fields(line)["end"] == "quit"


def test_how_an_event_looks():
    line = logs.event("login failed", rip="", user=b"ann", n=3, reason="wrong password", x=b"")
    assert line == 'login failed rip=- user=ann n=3 reason="wrong password" x=-'
    assert logs.event("x", a="\udcff b") == r'x a="\xff b"'


def test_of_octets_the_beginning_is_enough():
    """Nobody has so long a name; texts are ours."""
    line = logs.event("x", user=b"\xff" * 9000, reason="y" * 300)
    assert line == f"x user={chr(92)}xff" + r"\xff" * 254 + f" reason={'y' * 300}"


def test_an_event_knows_its_fields():
    line = logs.event("login failed", user=b"a b", rip="", n=3, reason="wrong  password", x=b"")
    assert line.what == "login failed"
    assert line.fields == {
        "user": r"a\x20b", "rip": "", "n": "3", "reason": "wrong  password", "x": "",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["\ud800", "a \udfff b"])
def test_a_text_that_is_none_stops_nobody(text):
    """A driver's reason is foreign text."""
    assert logs.event("x", reason=text).isascii()


WRITERS = {
    logs.error: "err", logs.warning: "warning", logs.notice: "notice", logs.info: "info",
    logs.debug: "debug",
}  # fmt: skip


@pytest.mark.parametrize("level", logs.LEVELS)
def test_a_level_lets_through_what_is_as_grave(capfd, level):
    logs.open_log("mail", level, to_stderr=True)
    for writer, name in WRITERS.items():
        writer(name)
    written = [line.split(": ")[1] for line in capfd.readouterr().err.splitlines()]
    order = list(logs.LEVELS)
    assert written == [one for one in WRITERS.values() if order.index(one) <= order.index(level)]
    assert logs.is_verbose() == (level == "debug")


def test_the_levels_and_facilities_are_syslogs():
    assert list(logs.LEVELS.values()) == list(range(8))
    for name, number in logs.FACILITIES.items():
        assert number == getattr(syslog, f"LOG_{name.upper()}")


@pytest.fixture
def syslogd(tmp_path, monkeypatch):
    """A datagram socket where syslogd's is expected."""
    monkeypatch.setattr("tpop3d.system.outlets.SOCKET", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.settimeout(0)
        yield receiver


@pytest.mark.parametrize("facility", logs.FACILITIES)
def test_syslog_gets_the_line_and_stderr_does_not(syslogd, capfd, facility):
    logs.open_log(facility, "notice", to_stderr=False)
    logs.info("not this")
    logs.notice("this")
    form = rb"<(\d+)>[A-Z][a-z][a-z] [ \d]\d \d\d:\d\d:\d\d tpop3d\[(\d+)\]: this"
    priority, pid = re.fullmatch(form, syslogd.recv(1000)).groups()
    assert int(priority) == logs.FACILITIES[facility] | syslog.LOG_NOTICE
    assert int(pid) == os.getpid()
    with pytest.raises(BlockingIOError):
        syslogd.recv(1000)
    assert capfd.readouterr().err == ""


def test_syslog_is_connected_at_once(syslogd, tmp_path):
    """A session may not be able to later, when it is another user in another place."""
    logs.open_log("mail", "info", to_stderr=False)
    (tmp_path / "log").unlink()
    logs.notice("this")
    assert syslogd.recv(1000).endswith(b": this")


def test_a_syslogd_that_is_started_again_is_found(syslogd, tmp_path):
    logs.open_log("mail", "info", to_stderr=False)
    syslogd.close()
    (tmp_path / "log").unlink()
    logs.notice("lost")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "log"))
        again.settimeout(0)
        logs.notice("this")
        assert again.recv(1000).endswith(b": this")
        assert again.recv(1000).endswith(b": 1 line was lost: the log was not read")


def test_a_syslogd_that_wants_a_stream_gets_one(tmp_path, monkeypatch):
    """As old ones do, and so does syslog(3): each message ends with a NUL."""
    monkeypatch.setattr("tpop3d.system.outlets.SOCKET", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.listen()
        logs.open_log("mail", "info", to_stderr=False)
        connected, _ = listening.accept()
        with connected:
            connected.settimeout(PATIENCE)
            logs.notice("one")
            logs.notice("two")
            records = connected.recv(1000).split(b"\0")
    assert [record.partition(b"]: ")[2] for record in records] == [b"one", b"two", b""]


def fill(write):
    """Write lines until one waits; returns the most seconds that one took."""
    longest = 0.0
    for number in range(20_000):
        began = time.monotonic()
        write(f"line {number} {'x' * 200}")
        longest = max(longest, time.monotonic() - began)
        if longest > 0.5:
            return longest
    raise AssertionError("there was always room")


def test_no_line_waits_long_for_a_syslogd_that_does_not_read(syslogd):
    """Also those that other processes write, who do not live on: all are counted."""
    logs.open_log("mail", "info", to_stderr=False)
    assert fill(logs.notice) < PATIENCE
    began = time.monotonic()
    for _ in range(100):
        logs.notice("lost")
    assert time.monotonic() - began < 50 * outlets.PATIENCE  # so not all of them have waited
    if not (pid := os.fork()):
        try:
            logs.notice("lost, too")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    with suppress(BlockingIOError):
        while syslogd.recv(1000):
            pass
    logs.notice("this")
    assert syslogd.recv(1000).endswith(b": this")
    assert b"]: 102 lines were lost: " in syslogd.recv(1000)


@pytest.mark.parametrize("kind", ["pipe", "socket", "another's pipe"])
def test_no_line_waits_long_for_a_stderr_that_nobody_reads(kind, monkeypatch):
    """It must not become non-blocking: it is others', too."""
    if kind == "socket":
        ends = [one.detach() for one in socket.socketpair()]
    else:
        ends = list(os.pipe())
    if kind == "another's pipe":
        real = os.open
        refuse = PermissionError(errno.EACCES, "Permission denied")

        def opened(path, *arguments):
            if path == "/proc/self/fd/2":
                raise refuse
            return real(path, *arguments)

        monkeypatch.setattr(os, "open", opened)
    before = os.dup(2)
    os.dup2(ends[1], 2)
    try:
        logs.open_log("mail", "info", to_stderr=True)
        longest = fill(logs.notice)
        is_blocking = os.get_blocking(2)
        octets = b""
        os.set_blocking(ends[0], False)
        with suppress(BlockingIOError):
            while got := os.read(ends[0], 1 << 20):
                octets += got
        logs.notice("this")
        after = os.read(ends[0], 10_000)
    finally:
        os.dup2(before, 2)
        for fd in (before, *ends):
            os.close(fd)
    assert longest < PATIENCE
    assert is_blocking
    assert octets.count(b"\n") > 10
    this, lost, end = after.split(b"\n")
    assert this.endswith(b": this")
    assert lost.endswith(b": 1 line was lost: the log was not read")
    assert end == b""


def test_a_slow_outlet_does_not_have_us_wait_most_of_the_time(syslogd, monkeypatch):
    """rsyslogd takes a line in two seconds when its own queue is full."""
    logs.open_log("mail", "info", to_stderr=False)
    fill(logs.notice)
    waits = []
    real = outlets._is_ready
    monkeypatch.setattr(
        outlets, "_is_ready", lambda *how: waits.append(how[2:]) if how[2:] else real(*how)
    )
    for _ in range(3):
        syslogd.recv(1000)  # room for one
        logs.notice("this")
        logs.notice("lost")
    assert waits == []
    with suppress(BlockingIOError):
        while octets := syslogd.recv(1000):
            last = octets
    assert last.endswith(b": this")


@pytest.mark.parametrize("line", ["a\0b", "a\udcff", "\ud800b", "é", "a%s%n", ""])
@pytest.mark.parametrize("to_stderr", [True, False])
def test_a_line_that_cannot_be_written_as_it_is_stops_nobody(capfd, line, to_stderr):
    logs.open_log("mail", "info", to_stderr)
    logs.error(line)


@pytest.mark.parametrize("line", ["one\ntwo", "one\x1b[2Jtwo", "one\rtwo", "one\x85two\x9b"])
def test_a_line_stays_one_line(capfd, line):
    """Whoever calls: a driver's text goes to the log, too."""
    logs.error(line)
    written = capfd.readouterr().err
    assert written.count("\n") == 1
    assert written.removesuffix("\n").isprintable()


def test_a_closed_stderr_stops_nobody(monkeypatch):
    def closed(fd, octets):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("os.write", closed)
    logs.error("x")


@pytest.mark.parametrize("stream", ["other", "", "1:2:3", None])
def test_what_is_no_journal_is_none(monkeypatch, stream):
    """The variable alone says nothing: it is inherited by those whose stderr is elsewhere."""
    status = os.fstat(2)
    if stream == "other":
        stream = f"{status.st_dev}:{status.st_ino + 1}"
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert not logs._stderr_is_journal()
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert logs._stderr_is_journal()


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY), KeyError(CANARY), OSError(CANARY), OSError(5, "x", CANARY),
        UnicodeDecodeError("ascii", CANARY.encode(), 0, 1, CANARY), FileNotFoundError(CANARY),
        ExceptionGroup(CANARY, [ValueError(CANARY)]), SystemExit(CANARY),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_exception_is_described_without_its_text(error):
    error.add_note(CANARY)
    described = logs.describe(raised(error))
    assert CANARY not in described
    assert described.startswith(type(error).__name__)
    assert "test_logs.py" in described
    assert "raised" in described


def test_the_systems_own_text_is_told():
    with pytest.raises(OSError) as caught:
        os.open("/nonexistent", os.O_RDONLY)
    assert "No such file or directory" in logs.describe(caught.value)
    assert "/nonexistent" not in logs.describe(caught.value)


def test_an_exception_without_a_trace_is_described():
    assert logs.describe(ValueError(CANARY)).startswith("ValueError")
