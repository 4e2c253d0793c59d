"""The log in systemd's journal: with its fields, from every process, and whatever becomes of it."""

import json
import os
import re
import signal
import time
from base64 import b64encode

import pytest

from mailsite import poll
from samples import MESSAGES, on_the_wire, spool_of
from systemdsite import USERS
from test_systemd import EACH, LISTENER

MAIL, LOCAL3 = "2", "19"  # syslog's facilities
NOTICE, INFO = "5", "6"
JOURNAL = "systemd-journald.service"
SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket")
NAMES = {  # that a client can give; others are refused before there is an attempt
    "another word": b'x rip=192.0.2.9 method=USER reason="all is well"',
    "another line": b"x\\n_PID=1\\nPOP3_USER=root",
    "no UTF-8": b"\xff\xfe\x80",
    "line separator": "a\u2028b".encode(),
    "long": b"n" * 200,
}
VALUES = {  # that gatekeepers in the hands of others, drivers and databases could
    "another field": b"x\n_PID=1\nPOP3_USER=root\nPRIORITY=0",
    "another entry": b"x\n\nMESSAGE=login user=root\nPOP3_EVENT=login",
    "of a length": b"x\nPOP3_USER\n\x04\0\0\0\0\0\0\0root\n",
    "NUL": b"x\0POP3_USER=root",
    "escape sequence": b"\x1b[2J\x07\r\x85",
}
LOG = """
import sys
sys.path[:0] = ["/opt/tpop3d/checkout", "/opt/tpop3d/site-packages"]
from tpop3d.system import logs
logs.open_log("mail", "info", to_stderr=False)
value = bytes.fromhex(sys.argv[1])
text = value.decode("utf-8", "surrogateescape")
logs.notice(logs.event("test", user=value, reason=text, method=text.replace("x", "x y")))
logs.notice(text)
"""


def wait_for(box, count, *matches):
    """So many entries with these matches."""

    def found():
        entries = box.entries(*matches)
        return entries if len(entries) >= count else None

    return poll(found, f"{count} of {matches}")


def ours(entry):
    return {key: value for key, value in entry.items() if key.startswith("POP3_")}


def one_session(box, user="ann"):
    wire = box.wire()
    wire.login(user)
    assert wire.ask("QUIT").startswith(b"+OK")
    assert wire.line() == b""


@pytest.fixture(params=[EACH, LISTENER])
def style(request, box):
    """The box with one of the units started, and mail for ann."""
    box.add("ann", spool_of(MESSAGES))
    box.systemctl("start", request.param)
    return request.param


@pytest.fixture
def each(box):
    """One process for each connection, and mail for ann."""
    box.add("ann", spool_of(MESSAGES))
    box.systemctl("start", EACH)
    return box


def test_a_session_is_found_by_its_user(box, style):
    wire = box.wire()
    wire.login("ann")
    octets = 0
    for n in (1, 2):
        octets += len(on_the_wire(MESSAGES[n - 1]))
        assert wire.ask_long(f"RETR {n}")[0].startswith(b"+OK")
    top = len(wire.ask_long("TOP 3 0")[1])
    wire.ask("DELE 1")
    assert wire.ask("QUIT").startswith(b"+OK")
    login, session = wait_for(box, 2, "POP3_USER=ann")
    whose = {"POP3_USER": "ann", "POP3_REMOTE": "127.0.0.1"}
    how = {"POP3_METHOD": "USER", "POP3_DRIVER": "passwd"}
    assert ours(login) == {
        "POP3_EVENT": "login", **whose, **how, "POP3_MESSAGES": str(len(MESSAGES)),
    }  # fmt: skip
    assert login["MESSAGE"] == (
        f"login rip=127.0.0.1 user=ann method=USER driver=passwd messages={len(MESSAGES)}"
    )
    fields = ours(session)
    assert re.fullmatch(r"\d+\.\d{3}", fields.pop("POP3_SECONDS"))
    assert int(fields.pop("POP3_OCTETS_OUT")) > octets > 0 < int(fields.pop("POP3_OCTETS_IN"))
    assert fields == {
        "POP3_EVENT": "session", **whose, **how,
        "POP3_RETRIEVED": "2", "POP3_RETRIEVED_OCTETS": str(octets),
        "POP3_TOP": "1", "POP3_TOP_OCTETS": str(top),
        "POP3_DELETED": "1", "POP3_LEFT": str(len(MESSAGES) - 1), "POP3_END": "quit",
    }  # fmt: skip
    assert session["MESSAGE"].startswith(
        f"session rip=127.0.0.1 user=ann method=USER driver=passwd retr=2/{octets} top=1/{top} "
    )
    for entry, priority in ((login, INFO), (session, NOTICE)):
        assert entry["PRIORITY"] == priority
        assert (entry["SYSLOG_IDENTIFIER"], entry["SYSLOG_FACILITY"]) == ("tpop3d", MAIL)
        assert entry["_TRANSPORT"] == "journal"
        # It has become the user by now, who may read nothing of the program's.
        assert entry["_UID"] == str(USERS["ann"])


def test_a_refused_login(box, style):
    wire = box.wire(source="127.0.0.5")
    wire.line()
    wire.ask("USER zoe")
    assert wire.ask("PASS s3cr3t").startswith(b"-ERR")
    (entry,) = wait_for(box, 1, "POP3_EVENT=login failed")
    assert ours(entry) == {
        "POP3_EVENT": "login failed", "POP3_USER": "zoe", "POP3_REMOTE": "127.0.0.5",
        "POP3_METHOD": "USER", "POP3_DRIVER": "passwd", "POP3_REASON": "unknown user",
    }  # fmt: skip
    assert (entry["PRIORITY"], entry["_UID"]) == (NOTICE, "0")
    assert "s3cr3t" not in json.dumps(box.entries())


def test_from_a_session_that_can_read_nothing_of_the_program(box, style):
    """Its first line is its only one; and its program is somewhere below /root, say."""
    box.spool("ann").write_bytes(b"garbage")
    box.configure({"log-level": "err"})
    box.systemctl("restart", style)
    places = [box.directory / "opt/tpop3d" / name for name in ("checkout", "site-packages")]
    try:
        for place in places:
            place.chmod(0o700)
        wire = box.wire()
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER ann").startswith(b"+OK")
        assert wire.ask("PASS secret").startswith(b"-ERR")
        (entry,) = wait_for(box, 1, "POP3_USER=ann")
    finally:
        for place in places:
            place.chmod(0o755)
    assert (entry["POP3_EVENT"], entry["_UID"]) == ("maildrop refused", str(USERS["ann"]))


def test_the_readable_line_is_there_as_ever(each):
    one_session(each)
    each.wait_for_journal(": session rip=127.0.0.1 user=ann method=USER driver=passwd retr=0/0 ")
    for line in each.entries("SYSLOG_IDENTIFIER=tpop3d"):
        assert f"tpop3d[{line['_PID']}]: {line['MESSAGE']}\n" in each.journal()


def test_other_lines_have_no_fields(box):
    """A command may look like an event; it is none."""
    box.adapt("tpop3d@.service", Service_ExecStart="/usr/local/bin/tpop3d --inetd -v")
    box.systemctl("start", EACH)
    wire = box.wire()
    wire.line()
    wire.ask("NOOP login rip=192.0.2.9 user=root")
    wire.ask("QUIT")
    wait_for(box, 1, "POP3_EVENT=session")
    found = [one for one in box.entries() if "login rip=192.0.2.9 user=root" in one["MESSAGE"]]
    assert found
    for entry in found:
        assert entry["_TRANSPORT"] == "journal"
        assert set(ours(entry)) == {"POP3_EVENT", "POP3_REMOTE", "POP3_SAYS"}
        assert entry["POP3_EVENT"] == "gatekeeper"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_forged_name_forges_no_field(each, name):
    wire = each.wire()
    wire.line()
    wire.ask("AUTH PLAIN")
    wire.send(b64encode(b"\0" + name + b"\0wrong") + b"\r\n")
    assert wire.line().startswith(b"-ERR")
    wire.ask("QUIT")
    wait_for(each, 1, "POP3_EVENT=session")
    found = each.entries("SYSLOG_IDENTIFIER=tpop3d")
    assert [one["POP3_EVENT"] for one in found] == ["login failed", "session"]
    failed = found[0]
    assert set(ours(failed)) == {
        "POP3_EVENT", "POP3_USER", "POP3_REMOTE", "POP3_METHOD", "POP3_DRIVER", "POP3_REASON",
    }  # fmt: skip
    assert re.fullmatch(r"[!-~]+", failed["POP3_USER"])
    assert failed["POP3_USER"] == re.search(r" user=(\S+) method=", failed["MESSAGE"])[1]
    assert (failed["POP3_REMOTE"], failed["PRIORITY"]) == ("127.0.0.1", NOTICE)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_no_value_forges_a_field(box, value):
    python = box.path("/usr/local/bin/tpop3d").read_text().split()[0].removeprefix("#!")
    box.do(
        "systemd-run", "--quiet", "--collect", "--property=StandardError=journal",
        python, "-I", "-c", LOG, value.hex(),
    )  # fmt: skip
    event, plain = wait_for(box, 2, "SYSLOG_IDENTIFIER=tpop3d")
    assert event["_TRANSPORT"] == plain["_TRANSPORT"] == "journal"
    assert set(ours(event)) == {"POP3_EVENT", "POP3_USER", "POP3_REASON", "POP3_METHOD"}
    assert ours(plain) == {}
    for entry in (event, plain):
        assert entry["PRIORITY"] == NOTICE
        assert entry["_PID"] != "1"
    for text in (*ours(event).values(), event["MESSAGE"], plain["MESSAGE"]):
        assert re.fullmatch(r"[ -~]+", text)


def test_another_facility_and_level(each):
    each.configure({"log-facility": "local3", "log-level": "notice"})
    one_session(each)
    (entry,) = wait_for(each, 1, "SYSLOG_IDENTIFIER=tpop3d")
    assert (entry["POP3_EVENT"], entry["SYSLOG_FACILITY"]) == ("session", LOCAL3)


class TestElsewhere:
    """Where the log goes where it went before, without fields."""

    def test_log_stderr(self, each):
        each.configure({"log-stderr": "yes"})
        one_session(each)
        each.wait_for_journal("session rip=127.0.0.1 user=ann")
        found = [
            one for one in each.entries() if "session rip=127.0.0.1 user=ann" in one["MESSAGE"]
        ]
        assert [(one["_TRANSPORT"], ours(one)) for one in found] == [("stdout", {})]

    def test_without_the_package(self, each):
        (extension,) = (each.directory / "opt/tpop3d/site-packages/systemd").glob("_journal.*")
        hidden = extension.rename(extension.with_name("hidden"))
        try:
            one_session(each)
            each.wait_for_journal("session rip=127.0.0.1 user=ann")
        finally:
            hidden.rename(extension)
        found = each.entries("SYSLOG_IDENTIFIER=tpop3d")
        assert [one["MESSAGE"].split()[0] for one in found] == ["login", "session"]
        assert [(one["_TRANSPORT"], ours(one)) for one in found] == [("syslog", {})] * 2

    def test_where_stderr_is_elsewhere(self, box):
        """The unit inherits the variable of a program whose stderr was the journal, as xinetd's
        servers do."""
        box.add("ann", spool_of(MESSAGES))
        command = "/bin/sh -c 'exec /usr/local/bin/tpop3d --inetd 2>/dev/null'"
        box.adapt("tpop3d@.service", Service_ExecStart=command)
        box.systemctl("start", EACH)
        one_session(box)
        box.wait_for_journal("session rip=127.0.0.1 user=ann")
        found = box.entries("SYSLOG_IDENTIFIER=tpop3d")
        assert [(one["_TRANSPORT"], ours(one)) for one in found] == [("syslog", {})] * 2


class TestTrouble:
    """A journal that is not there when it is needed is nobody's trouble but its readers'."""

    @pytest.fixture
    def journal(self, box):
        """What stops the journal, and what has it back."""
        yield
        pid = box.main_pid(JOURNAL)
        if pid:
            os.kill(pid, signal.SIGCONT)
        box.systemctl("start", *SOCKETS, JOURNAL)

    @pytest.mark.usefixtures("journal")
    def test_restarted(self, box, style):
        wire = box.wire()
        wire.login("ann")
        wait_for(box, 1, "POP3_EVENT=login")
        box.systemctl("restart", JOURNAL)
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
        (entry,) = wait_for(box, 1, "POP3_EVENT=session")
        assert ours(entry)["POP3_DELETED"] == "1"

    @pytest.mark.usefixtures("journal")
    def test_away(self, box, style):
        wire = box.wire()
        wire.login("ann")
        box.systemctl("stop", *SOCKETS, JOURNAL)
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
        assert box.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
        one_session(box)
        box.systemctl("start", *SOCKETS, JOURNAL)
        one_session(box)
        wait_for(box, 1, "POP3_EVENT=session")

    @pytest.mark.usefixtures("journal")
    def test_hanging(self, box, style):
        """It takes nothing, until nothing more fits into its socket."""
        box.configure({"log-level": "notice"})
        box.systemctl("restart", style)
        wire = box.wire()
        wire.login("ann")
        queue = int(box.do("cat", "/proc/sys/net/unix/max_dgram_qlen"))
        assert queue < 100  # as in every new network namespace (unix(7))
        os.kill(box.main_pid(JOURNAL), signal.SIGSTOP)
        for _ in range(queue + 5):
            begun = time.monotonic()
            other = box.wire()
            assert other.line().startswith(b"+OK")
            assert other.ask("QUIT").startswith(b"+OK")
            assert other.line() == b""
            if time.monotonic() - begun > 0.9:
                break  # systemd itself has something to say, too
        else:
            raise AssertionError("the journal's socket does not fill up")
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
        assert wire.line() == b""
        assert box.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
        os.kill(box.main_pid(JOURNAL), signal.SIGCONT)
        one_session(box)
        wait_for(box, 1, "POP3_USER=ann")

    @pytest.mark.usefixtures("journal")
    def test_full(self, each):
        """Where it keeps its files, nothing more fits."""
        journals = each.do("sh", "-c", "echo /run/log/journal/*").strip()
        filled = 4096 * int(each.do("sh", "-c", "df -P -B4096 /run | awk 'END { print $3 }'"))
        each.do("mount", "-o", f"remount,size={filled}", "/run")
        try:
            assert each.run("sh", "-c", f"echo x >{journals}/test").returncode != 0
            for _ in range(5):
                one_session(each)
        finally:
            each.do("mount", "-o", "remount,size=50%", "/run")
            each.do("rm", "-f", f"{journals}/test")
        one_session(each)
