"""What the log says of a session, and what no client can make it say."""

import os
import re
from base64 import b64encode

import pytest

from mailsite import PATIENCE, poll
from protocol import run_server
from samples import spool_of
from tpop3d.system import logs

MESSAGES = [b"Subject: one\n\nfirst\n", b"Subject: two\n\nsecond\n", b"Subject: three\n\nthird\n"]
LOGIN = b"USER ann\r\nPASS secret\r\n"
LINE = re.compile(r"tpop3d\[\d+\]: ([a-z ]+?)((?: [a-z_]+=(?:\"[^\"]*\"|[^ \"]+))*)")


@pytest.fixture
def ann(site):
    site.configure({"auth-failure-delay-seconds": 0})
    site.add("ann", spool_of(MESSAGES))
    return site


def events(log):
    """Each line of a log as (what happened, {field: value})."""
    found = []
    for line in log.decode("ascii").splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        pairs = re.findall(r" ([a-z_]+)=(\"[^\"]*\"|[^ \"]+)", match[2])
        fields = dict(pairs)
        assert len(fields) == len(pairs), line
        found.append((match[1], fields))
    return found


def session(site, script):
    """The fields of the one line about a session."""
    lines = [fields for what, fields in events(run_server(site, [script])[1]) if what == "session"]
    assert len(lines) == 1
    return lines[0]


def test_one_line_says_all_about_a_session(ann):
    script = LOGIN + b"RETR 1\r\nRETR 2\r\nTOP 3 0\r\nDELE 1\r\nQUIT\r\n"
    output, log = run_server(ann, [script])
    (first, login), (second, fields) = events(log)
    assert (first, second) == ("login", "session")
    assert login == {
        "user": "ann", "rip": "pipe", "method": "USER", "driver": "flatfile", "messages": "3",
    }  # fmt: skip
    assert re.fullmatch(r"\d+\.\d{3}", fields.pop("seconds"))
    assert list(fields.items()) == [
        ("rip", "pipe"), ("user", "ann"), ("method", "USER"), ("driver", "flatfile"),
        ("retr", "2/47"), ("top", "1/18"), ("dele", "1"), ("left", "2"),
        ("octets_in", str(len(script))), ("octets_out", str(len(output))), ("end", "quit"),
    ]  # fmt: skip


ENDS = {
    "quit before login": (b"QUIT\r\n", "quit", "-", "0", "0"),
    "eof before login": (b"USER ann\r\n", "eof", "-", "0", "0"),
    "failed logins": (b"USER ann\r\nPASS no\r\n" * 3, "error", "-", "0", "0"),
    "bad commands": (b"XYZZY\r\n" * 20, "error", "-", "0", "0"),
    "quit": (LOGIN + b"QUIT\r\n", "quit", "ann", "0", "3"),
    "eof": (LOGIN + b"DELE 1\r\n", "eof", "ann", "0", "3"),
    "all deleted": (LOGIN + b"DELE 1\r\nDELE 2\r\nDELE 3\r\nQUIT\r\n", "quit", "ann", "3", "0"),
}


@pytest.mark.parametrize(("script", "end", "user", "dele", "left"), ENDS.values(), ids=ENDS)
def test_every_end_is_logged(ann, script, end, user, dele, left):
    fields = session(ann, script)
    assert [fields[key] for key in ("end", "user", "dele", "left")] == [end, user, dele, left]


def test_a_message_counts_when_it_was_sent_to_the_end(ann, inetd):
    inetd.login("ann")
    ann.spool("ann").write_bytes(b"")
    inetd.send(b"RETR 1\r\n")
    assert inetd.line().startswith(b"-ERR [SYS/TEMP]")
    assert inetd.line() == b""
    line = inetd.logs.wait_for(": session ")
    assert " retr=0/0 " in line
    assert line.endswith(" end=error")
    assert ann.spool("ann").read_bytes() == b""


@pytest.mark.parametrize(
    ("login", "reason"),
    [(b"USER ann\r\nPASS wrong\r\n", "wrong password"), (b"USER zoe\r\nPASS x\r\n", "unknown user"),
     (b"AUTH PLAIN " + b64encode(b"\0ann\0wrong") + b"\r\n", "wrong password")],
)  # fmt: skip
def test_a_failed_login_is_logged_with_its_reason(ann, login, reason):
    what, fields = events(run_server(ann, [login])[1])[0]
    assert what == "login failed"
    assert fields["reason"] == f'"{reason}"'
    assert fields["rip"] == "pipe"


LONG = "name of more than 255 octets"


@pytest.mark.parametrize(
    ("name", "reason"),
    [(b"n" * 255, "unknown user"), (b"n" * 256, LONG), (b"\xff" * 9000, LONG),
     (b"ann@" + b"d" * 252, LONG), (b"ann" + b" " * 253, LONG)],
)  # fmt: skip
def test_of_a_long_name_the_beginning_is_logged_and_nobody_is_asked(ann, name, reason):
    """USER and APOP have no room for more (RFC 2449 section 4). The client is named before the
    name: a log daemon that cuts long lines leaves what fail2ban's filter needs."""
    script = b"AUTH PLAIN\r\n" + b64encode(b"\0" + name + b"\0wrong") + b"\r\nQUIT\r\n"
    out, log = run_server(ann, [script])
    assert b"-ERR [AUTH] wrong name or password\r\n" in out
    (failed, fields), (session, _) = events(log)
    assert (failed, session) == ("login failed", "session")
    assert fields["reason"] == f'"{reason}"'
    assert fields["driver"] == ("flatfile" if reason != LONG else "-")
    assert fields["user"] == logs.escape(name[:255])
    assert next(iter(fields)) == "rip"


@pytest.mark.parametrize("setting", [{"lowercase-user": "yes"}, {"auth-drivers": "flatfile"}])
def test_a_name_over_255_octets_is_refused_though_it_has_an_entry(ann, setting):
    passwd = ann.path / "long"
    passwd.write_text("".join(f"{'n' * octets}:{{plaintext}}secret\n" for octets in (255, 256)))
    ann.configure({"auth-flatfile-passwd-file": passwd, "mailbox": f"{ann.spools}/ann"} | setting)
    for octets, reply in ((255, b"+OK maildrop"), (256, b"-ERR [AUTH]")):
        script = b64encode(b"\0" + b"n" * octets + b"\0secret")
        assert reply in run_server(ann, [b"AUTH PLAIN\r\n" + script + b"\r\nQUIT\r\n"])[0]


# Forged names

NAMES = {
    "fields": b"x rip=10.0.0.1 driver=pam end=quit",
    "a quote": b'x" reason="all is well',
    "another line": b"x\\ntpop3d[1]: login user=root",
    "escape sequence": b"\x1b[2J\x1b]0;title\x07",
    "bell and backspace": b"\x07\x08\x08\x7f",
    "tab": b"a\tb",
    "high controls": b"\x85\x9b2J",
    "no UTF-8": b"\xff\xfe",
    "line separator": "a\u2028tpop3d[1]: login user=root".encode(),
    "right to left": "\u202etoor".encode(),
    "long": b"n" * 240,
    "percent": b"%s%n%p",
}


def attempts(name):
    yield b"USER " + name + b"\r\nPASS wrong\r\n"
    yield b"AUTH PLAIN\r\n" + b64encode(b"\0" + name + b"\0wrong") + b"\r\n"
    yield b"APOP " + name[:200] + b" " + b"0" * 32 + b"\r\n"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_forged_name_forges_no_log_line(ann, name):
    log = run_server(ann, [b"".join(attempts(name))])[1]
    found = events(log)
    assert [what for what, _ in found] == ["login failed"] * 3 + ["session"]
    for _, fields in found[:3]:
        assert list(fields) == ["rip", "user", "method", "driver", "reason"]
        assert re.fullmatch(r"(?:[!#-&(-\[\]-~]|\\x[0-9a-f]{2})+", fields["user"])
        assert fields["rip"] == "pipe"
    assert found[3][1]["user"] == "-"


@pytest.mark.parametrize("domain", NAMES.values(), ids=NAMES)
def test_a_forged_domain_forges_no_log_line(ann, domain):
    # The domain chooses the password file here, so it stands in errors about that file.
    ann.configure({"auth-flatfile-passwd-file": f"{ann.path}/$(domain)/passwd", "apop": "yes"})
    for name in {domain, domain[:196]}:
        (ann.path / os.fsdecode(name) / "passwd").mkdir(parents=True)
    script = b"".join(attempts(b"ann@" + domain))
    log = run_server(ann, [script])[1]
    assert log.count(b"Is a directory") == 6  # the driver's, and the login's
    assert [line for line in log.splitlines() if not re.fullmatch(rb"[ -~]+", line)] == []
    assert b" rip=10.0.0.1" not in re.sub(rb'"[^"]*"', b"", log)


@pytest.mark.parametrize(
    "line",
    [b"\x1b[2J", b"USER \x1b[2J", b"\xff\xff", b"LIST \x85\\", b"USER a\rS: +OK", b"\x07 \x08"],
)
def test_the_command_log_is_printable_whatever_the_client_sends(ann, line):
    log = run_server(ann, [line + b"\r\nUSER ann\r\nPASS s3cr3t\r\nQUIT\r\n"], "-v")[1]
    assert b"C: USER ann" in log
    assert b"s3cr3t" not in log
    assert [
        one for one in log.splitlines() if not re.fullmatch(rb"tpop3d\[\d+\]: [ -~]+", one)
    ] == []


def test_without_v_no_command_is_in_the_log(ann):
    log = run_server(ann, [LOGIN + b"QUIT\r\n"])[1]
    assert b"C: " not in log
    assert b"S: " not in log


def test_the_log_never_reaches_the_client(ann, inetd):
    inetd.login("ann")
    inetd.send(b"QUIT\r\n")
    assert inetd.reader.read() == b"+OK goodbye\r\n"
    poll(lambda: "end=quit" in inetd.logs.text(), "the session's line", PATIENCE)


def test_a_log_that_cannot_be_written_stops_nobody(ann):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    import subprocess

    from doors import SERVER
    from mailsite import ENVIRONMENT

    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*SERVER, "--inetd", "-f", str(ann.conf)], input=LOGIN + b"QUIT\r\n", env=ENVIRONMENT,
            stdout=subprocess.PIPE, stderr=full, timeout=PATIENCE, check=True, cwd="/",
        )  # fmt: skip
    assert done.stdout.endswith(b"+OK goodbye\r\n")
