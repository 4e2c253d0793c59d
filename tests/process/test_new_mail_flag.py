"""Shells and mail programs say "new mail" where a spool's mtime is later than its atime: a session
leaves that as it found it."""

import os
import pty
import shutil
import subprocess
import time

import pytest

from clients import Client
from mailsite import IS_ROOT, MAIL_USER, PATIENCE, need, poll
from protocol import run_server
from spools import good, mbox, messages_of
from tpop3d.mailspool import expunge as expunge_module
from tpop3d.system.refusal import PARTIAL, Refusal

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n", b"Subject: three\n\n3\n")
NEW = mbox(b"Subject: new\n\nnew\n")
LOGIN = b"USER anna\r\nPASS secret\r\n"
LOOK = b"STAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nRETR 2\r\nTOP 3 0\r\nQUIT\r\n"
AGO = 100  # seconds; how long ago the earlier of both times was
FLAGS = {"set": True, "clear": False}
in_both_cases = pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
# What is removed; messages move, the end is cut, nothing is left.
MARKS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)]


def set_flag(path, flag, seconds=10):
    """Have both times in the past, `seconds` from each other."""
    early = int(time.time()) - AGO
    late = early + seconds
    os.utime(path, (early, late) if flag else (late, early))


def has_flag(path):
    """In whole seconds, as shells see it; the programs that do not round must say the same."""
    status = path.stat()
    exact = status.st_mtime_ns > status.st_atime_ns
    assert exact == (status.st_mtime_ns // 10**9 > status.st_atime_ns // 10**9)
    return exact


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "spool"
    made.write_bytes(SPOOL)
    return made


@pytest.fixture
def moving(path):
    """The same, where reading moves an atime."""
    set_flag(path, True)
    path.read_bytes()
    if has_flag(path):
        pytest.skip("atimes are not kept here")
    return path


@in_both_cases
def test_looking_moves_no_time(moving, flag):
    set_flag(moving, flag)
    before = moving.stat()
    spool = good(moving)
    assert [b"".join(spool.blocks(n)) for n in range(3)]
    assert len(spool.unique_ids()) == 3
    assert spool.expunge(bytearray(3)) is None
    spool.close()
    assert moving.stat()[7:] == before[7:]
    assert moving.stat().st_atime_ns == before.st_atime_ns


@in_both_cases
@pytest.mark.parametrize("marks", MARKS)
def test_removing_leaves_it_as_it_was(path, flag, marks):
    set_flag(path, flag)
    started = time.time()
    spool = good(path)
    assert spool.expunge(bytearray(marks)) is None
    assert spool.changed() is None
    spool.close()
    left = not all(marks)
    assert has_flag(path) == (flag and left)  # an empty spool has no new mail
    # Who copies what has changed, finds it changed.
    assert path.stat().st_mtime > started - 3


def test_times_that_a_program_has_made_one_are_no_new_mail_and_stay_so(path):
    moment = int(time.time()) - AGO
    os.utime(path, (moment, moment))
    spool = good(path)
    assert spool.expunge(bytearray((1, 0, 0))) is None
    spool.close()
    assert not has_flag(path)


@pytest.mark.parametrize("marks", [(0, 1, 0), (1, 1, 1)])
def test_mail_of_the_same_second_is_new(path, marks):
    """It comes before anybody can tell its time from that of the removal."""
    for _ in range(20):
        path.write_bytes(SPOOL)
        set_flag(path, False)
        spool = good(path)
        assert spool.expunge(bytearray(marks)) is None
        assert not has_flag(path)
        with path.open("ab") as file:
            file.write(NEW)
        assert has_flag(path)
        spool.close()


def test_mail_that_came_during_the_session_is_new_after_it(path):
    set_flag(path, False)
    spool = good(path)
    with path.open("ab") as file:
        file.write(NEW)
    assert spool.expunge(bytearray((1, 1, 1))) is None
    spool.close()
    assert has_flag(path)
    assert path.read_bytes() == NEW


@in_both_cases
def test_where_the_journal_cannot_be_written_nothing_changes(path, flag):
    """A write has been tried by then, on an octet of the spool."""
    set_flag(path, flag)
    spool = good(path)
    shutil.rmtree(path.with_name("spool.state"))
    assert isinstance(spool.expunge(bytearray((1, 0, 0))), Refusal)
    spool.close()
    assert has_flag(path) == flag
    assert path.read_bytes() == SPOOL


@in_both_cases
def test_a_removal_that_another_session_finishes_leaves_it_too(path, flag, monkeypatch):
    set_flag(path, flag)

    def half(journal, spool, *_):
        os.pwrite(spool, journal.read(journal.plan.first, journal.plan.first + 10), 0)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(expunge_module, "carry_out", half)
        spool = good(path)
        assert spool.expunge(bytearray((1, 0, 0))).kind == PARTIAL
        spool.close()
    assert has_flag(path) == flag
    spool = good(path)
    assert spool.found is not None
    spool.close()
    assert has_flag(path) == flag
    assert path.read_bytes() == b"".join(messages_of(SPOOL)[1:])


def test_where_the_atime_cannot_be_spared_reading_counts(moving, monkeypatch):
    """As by one who is no owner in the eyes of the kernel (open(2), O_NOATIME: EPERM)."""
    set_flag(moving, True)
    real = os.open
    refused = []

    def refuse(path, flags, *more, **named):
        if flags & os.O_NOATIME:
            refused.append(path)
            raise PermissionError(1, "Operation not permitted")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    spool = good(moving)
    monkeypatch.undo()
    assert refused == [str(moving)]
    assert moving.stat().st_atime > time.time() - AGO // 2
    assert spool.expunge(bytearray((1, 0, 0))) is None
    spool.close()
    assert not has_flag(moving)
    assert moving.read_bytes() == b"".join(messages_of(SPOOL)[1:])


# Programs


@pytest.fixture
def anna(site):
    site.add("anna", SPOOL)
    return site.spool("anna")


@in_both_cases
@pytest.mark.parametrize("commands", [LOOK, b"DELE 2\r\nQUIT\r\n"], ids=["look", "delete"])
def test_mutt_says_after_a_session_what_it_said_before(site, anna, flag, commands):
    client = Client(site, None)
    client.write(
        client.home / "muttrc", f"mailboxes {anna}\nset folder={client.mail} sleep_time=0\n"
    )

    def says_new():
        times = anna.stat().st_atime_ns, anna.stat().st_mtime_ns
        drawn = client.run_on_terminal("mutt", "-n", "-R", "-F", "muttrc", "-Z", typed=b"x")
        os.utime(anna, ns=times)  # as if it had not looked
        assert (b"No mailbox with new mail." in drawn) != (b"Msgs:" in drawn)
        return b"Msgs:" in drawn

    set_flag(anna, flag)
    assert says_new() == flag
    output, _ = run_server(site, [LOGIN + commands])
    assert output.splitlines()[-1].startswith(b"+OK")
    assert says_new() == flag


class Bash:
    """A shell at its prompt, which looks for mail before each."""

    PROMPT = b"@prompt@"

    def __init__(self, spool):
        self.keyboard, terminal = pty.openpty()
        environment = {"PATH": os.defpath, "MAIL": str(spool), "MAILCHECK": "0", "TERM": "dumb"}
        how = {"user": MAIL_USER.pw_uid, "group": MAIL_USER.pw_gid} if IS_ROOT else {}
        self.process = subprocess.Popen(
            [need("bash"), "--norc", "--noprofile", "--noediting", "-i"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            cwd="/",
            env=environment | {"PS1": self.PROMPT.decode()},
            **how,
        )
        os.close(terminal)
        os.set_blocking(self.keyboard, False)
        self.drawn = b""
        self.wait_for_prompt()

    def wait_for_prompt(self):
        def is_there():
            try:
                self.drawn += os.read(self.keyboard, 4096)
            except BlockingIOError:
                pass
            return self.PROMPT in self.drawn

        poll(is_there, "bash's prompt", PATIENCE)
        said, _, self.drawn = self.drawn.partition(self.PROMPT)
        return said

    def next_prompt(self):
        """What it says of mail before its next prompt."""
        os.write(self.keyboard, b":\n")
        said = self.wait_for_prompt()
        return [line for line in said.decode().splitlines() if "mail" in line]

    def close(self):
        os.write(self.keyboard, b"exit\n")
        self.process.wait(PATIENCE)
        os.close(self.keyboard)


@pytest.fixture
def bash(site, anna):
    set_flag(anna, False)
    shell = Bash(anna)
    # What comes in the second of its start it does not see. The file system's clock is a little
    # behind the other one.
    started = int(time.time())
    clock = site.path / "clock"

    def is_later():
        clock.write_bytes(b"now")
        return int(clock.stat().st_mtime) > started

    poll(is_later, "the next second")
    yield shell
    shell.close()


def deliver(path):
    with path.open("ab") as file:
        file.write(NEW)


def test_bash_announces_new_mail_although_a_session_has_looked(site, anna, bash):
    assert bash.next_prompt() == []
    deliver(anna)
    run_server(site, [LOGIN + LOOK])
    assert bash.next_prompt() == [f"You have new mail in {anna}"]


def test_bash_announces_nothing_where_mail_was_only_removed(site, anna, bash):
    run_server(site, [LOGIN + b"DELE 2\r\nQUIT\r\n"])
    assert anna.read_bytes() != SPOOL
    assert bash.next_prompt() == []


def test_bash_announces_what_comes_right_after_a_removal(site, anna, bash):
    run_server(site, [LOGIN + b"DELE 2\r\nQUIT\r\n"])
    assert bash.next_prompt() == []
    deliver(anna)
    deliver(anna)
    assert bash.next_prompt() == [f"You have new mail in {anna}"]
