"""A mailspool of millions of messages takes no more memory than session-memory, and ends nobody
else's session."""

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import authkit
import doors
from inspecting import inspect
from mailsite import ENVIRONMENT, IS_ROOT
from spools import good, mbox, opened
from tlskit import secure, stls
from tpop3d.commands.try_login import UNOPENED
from tpop3d.config.directive import LEAST_MEMORY
from tpop3d.mailspool import expunge as expunge_module
from tpop3d.mailspool import index as indexes
from tpop3d.mailspool import journal as journals
from tpop3d.mailspool.scan import Listing
from tpop3d.mailspool.spool import Spool
from tpop3d.system.privileges import RESERVE
from tpop3d.system.refusal import PARTIAL, TEMPORARY, Refusal
from trying import attempt

TINY = b"From \n\n"
COUNT = 500_000
SPOOL = mbox(*[b"Subject: %d\n\n%b\n" % (n, b"x" * 3000) for n in range(4)])
REFUSED = b"-ERR [SYS/PERM] maildrop needs more memory than it gets here\r\n"
WHY = 'reason="needs more memory than session-memory: 24M"'


@pytest.fixture
def large(site, patched, monkeypatch):
    """Half a million messages of 7 octets, and a limit that is too low for them, and for others
    to be set: more would take its time."""
    server = patched("")
    monkeypatch.setattr(authkit, "SERVER", server)
    site.add("anna", TINY * COUNT)
    site.add("bert", SPOOL)
    site.configure({"session-memory": "24M"})
    return site


def limits_of(pid):
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith("Max data size")]
    return [int(one) if one.isdigit() else one for one in line.split()[3:5]]


def log_in(wire, user):
    assert wire.line().startswith(b"+OK")
    assert wire.ask(f"USER {user}").startswith(b"+OK")
    return wire.ask("PASS secret")


def one_line_says_it(logs, user="anna"):
    logs.wait_for(rf"session .*user={user} .*end=error")
    (line,) = [one for one in logs.lines() if "maildrop refused" in one]
    assert re.search(rf"maildrop refused rip=\S+ user={user} ", line)
    assert WHY in line
    assert "internal" not in logs.text()
    assert "attack" not in logs.text()
    assert "ended" not in logs.text()


def test_a_maildrop_that_needs_more_is_refused(large):
    with doors.inetd(large) as wire:
        assert log_in(wire, "anna") == REFUSED
        assert wire.line() == b""
        one_line_says_it(wire.logs)
    assert large.spool("anna").stat().st_size == len(TINY) * COUNT
    assert os.listdir(next(large.state.glob("*anna"))) == ["lock"]


def test_others_are_served_meanwhile(large):
    with doors.standalone(large) as door:
        with closing(door.connect()) as wire:
            assert log_in(wire, "anna") == REFUSED
        with closing(door.connect()) as wire:
            assert log_in(wire, "bert").startswith(b"+OK")
            assert wire.ask("QUIT").startswith(b"+OK")
        one_line_says_it(door.logs)


def test_with_more_it_is_served(large):
    # An index of that many takes its time.
    large.configure({"session-memory": "1G", "mailspool-index": "no"})
    with doors.inetd(large) as wire:
        assert log_in(wire, "anna").startswith(b"+OK maildrop has 500000 messages")
        assert limits_of(wire.process.pid) == [1 << 30, (1 << 30) + RESERVE]
        assert wire.ask("QUIT").startswith(b"+OK")


PATCHED = """
import sys
from tpop3d.mailspool import spool
from tpop3d.privsep import gatekeeper; from tpop3d.tls import relay
from tpop3d.config import directive as directives
directives.LEAST_MEMORY = 1
def fails(*arguments, **named):
    raise MemoryError
def fails_later(*arguments):
    yield b"first line\\n" * 10_000
    raise MemoryError
{}
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def patched(monkeypatch):
    def patch(line):
        server = [sys.executable, "-c", PATCHED.format(line)]
        monkeypatch.setattr(doors, "SERVER", server)
        return server

    return patch


NO_MORE = """
import resource
real = spool.Spool.unique_ids
def unique_ids(self):
    resource.setrlimit(resource.RLIMIT_DATA, (4096, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    return real(self)
spool.Spool.unique_ids = unique_ids
"""


def test_one_that_is_open_and_needs_more(site, patched):
    """Nothing that is marked is removed."""
    patched(NO_MORE)
    site.add("anna", mbox(*[b"%d\n" % n for n in range(100_000)]))
    site.configure({"session-memory": "24M"})
    before = site.spool("anna").read_bytes()
    with doors.inetd(site) as wire:
        assert log_in(wire, "anna").startswith(b"+OK")
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("UIDL") == REFUSED
        assert wire.line() == b""
        one_line_says_it(wire.logs)
    assert site.spool("anna").read_bytes() == before


def test_in_the_middle_of_a_message_the_client_is_told_nothing(site, patched):
    """It would take that for a part of it."""
    patched("spool.Spool.blocks = fails_later")
    site.add("anna", SPOOL)
    site.configure({"session-memory": "24M"})
    with doors.inetd(site) as wire:
        assert log_in(wire, "anna").startswith(b"+OK")
        wire.send(b"RETR 1\r\n")
        came = wire.reader.read()
        assert came.startswith(b"+OK")
        assert b"ERR" not in came
        assert not came.endswith(b"\r\n.\r\n")
        one_line_says_it(wire.logs)


def test_a_gatekeeper_that_needs_more(site, patched):
    patched("gatekeeper.authorize = fails")
    with doors.standalone(site) as door:
        with closing(door.connect()) as wire:
            assert wire.line() == b"-ERR [SYS/TEMP] internal error\r\n"
            assert wire.line() == b""
        door.logs.wait_for("gatekeeper: needs more memory than session-memory")
        assert "internal" not in door.logs.text()
        assert "attack" not in door.logs.text()


def test_a_relay_that_needs_more(site, patched):
    patched("relay._serve = fails")
    secure(site)
    with doors.standalone_tls(site, "immediate") as door:
        with closing(door.connect()) as wire:
            assert wire.line() == b""
        door.logs.wait_for('tls trouble .*reason="needs more memory than session-memory"')
        for word in ("internal", "attack", "ended"):
            assert word not in door.logs.text()


def test_processes_before_login_have_the_limit_too(site):
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        pid = wire.process.pid
        (gatekeeper,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert limits_of(gatekeeper) == [512 << 20, (512 << 20) + RESERVE]
        assert limits_of(pid) == ["unlimited", "unlimited"]


def test_recover(site, patched):
    server = patched(
        "from tpop3d.session import recover_all as recover; recover.recover_spool = fails"
    )
    uid, gid = (2001, 2001) if IS_ROOT else (os.geteuid(), os.getegid())
    place = site.state / f"{uid}.x"
    place.mkdir(mode=0o700)
    (place / "journal").touch()
    os.chown(place, uid, gid)
    site.configure({"session-memory": "24M"})
    command = [*server, "--recover", "-f", str(site.conf)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True)
    assert done.returncode == 1
    assert f"maildrop not recovered directory={place} {WHY}" in done.stderr
    assert "internal" not in done.stderr


def test_test_login(large):
    outcome = attempt(large)
    assert outcome.of("maildrop") == ["refused: needs more memory than session-memory: 24M"]
    assert outcome.status == UNOPENED
    assert outcome.stderr == ""


def test_inspect(large):
    done = inspect(large)
    path = large.spool("anna")
    assert done.stderr == f"tpop3d: {path}: needs more memory than session-memory: 24M\n"
    assert (done.returncode, done.stdout) == (1, "")


LIMITED = """
import resource, sys
from tpop3d.system.privileges import limit_memory, use_reserve
resource.setrlimit(resource.RLIMIT_DATA, eval(sys.argv[1]))
limit_memory(128 << 20)
print(resource.getrlimit(resource.RLIMIT_DATA))
try:
    bytes(128 << 20)
except MemoryError:
    print("no")
use_reserve()
print(resource.getrlimit(resource.RLIMIT_DATA))
"""
M = 1 << 20


@pytest.mark.parametrize(
    ("before", "during", "after"),
    [
        ((-1, -1), (128 * M, 132 * M), 132 * M),
        ((500 * M, 600 * M), (128 * M, 132 * M), 132 * M),
        ((100 * M, -1), (100 * M, 132 * M), 132 * M),
        ((100 * M, 100 * M), (96 * M, 100 * M), 100 * M),
        ((120 * M, 130 * M), (120 * M, 130 * M), 130 * M),
    ],
)
def test_a_lower_limit_that_there_is_stays(before, during, after):
    command = [sys.executable, "-c", LIMITED, repr(before)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(during), "no", str((after, after))]


def test_the_least_that_can_be_set_is_enough(site):
    site.add("anna", SPOOL)
    site.configure({"session-memory": LEAST_MEMORY})
    secure(site)
    with doors.standalone(site) as door, closing(door.connect()) as wire:
        assert wire.line().startswith(b"+OK")
        tls = stls(wire)
        assert tls.ask("USER anna").startswith(b"+OK")
        assert tls.ask("PASS secret").startswith(b"+OK maildrop has 4")
        assert tls.ask("QUIT").startswith(b"+OK")


# The engine: whatever needs more, no mail is lost, and what is said is true


def fails(*arguments, **named):
    raise MemoryError


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "WORTH", 0)
    (tmp_path / "spool").write_bytes(SPOOL)
    return tmp_path / "spool"


def test_a_journal_that_needs_more_is_not_begun(path, monkeypatch):
    spool = good(path)
    monkeypatch.setattr(journals, "digests", fails)
    refused = spool.expunge(bytearray([1, 0, 0, 0]))
    spool.close()
    assert refused.kind == TEMPORARY
    assert path.read_bytes() == SPOOL
    assert not list(path.parent.glob("spool.state/journal*"))


def test_a_journal_that_is_begun_is_finished_by_the_next(path, monkeypatch):
    spool = good(path)
    with monkeypatch.context() as patch:
        patch.setattr(expunge_module, "carry_out", fails)
        refused = spool.expunge(bytearray([1, 0, 0, 0]))
        spool.close()
    assert refused.kind == PARTIAL
    spool = good(path)
    assert len(spool) == 3
    spool.close()


def test_what_is_removed_is_removed_whatever_is_remembered(path, monkeypatch):
    spool = good(path)
    with monkeypatch.context() as patch:
        patch.setattr(Listing, "remove", fails)
        assert spool.expunge(bytearray([1, 0, 0, 0])) is None
        spool.close()
    assert not list(path.parent.glob("spool.state/index*"))
    spool = good(path)
    assert len(spool) == 3
    spool.close()


@pytest.mark.parametrize("name", ["save", "samples"])
def test_an_index_that_needs_more_is_not_written(path, monkeypatch, name):
    spool = good(path)
    spool.unique_ids()
    with monkeypatch.context() as patch:
        patch.setattr(indexes, name, fails)
        spool.close()
    assert not list(path.parent.glob("spool.state/index*"))
    good(path).close()


def test_one_that_cannot_be_opened_is_let_go_of(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "_scan", fails)
        with pytest.raises(MemoryError):
            opened(path)
    assert not isinstance(opened(path), Refusal)


def test_an_index_is_no_reason_to_be_refused(path, monkeypatch):
    good(path).close()
    monkeypatch.setattr(indexes, "_known", fails)
    spool = good(path)
    assert len(spool) == 4
    spool.close()
