"""A driver in a process of its own: its verdict comes through, and nothing else does."""

import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from authkit import CANARY, PERFECT, config_of, login
from mailsite import PATIENCE
from tpop3d.auth import isolation, registry
from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Account, Verdict
from tpop3d.auth.hosts import Hosts
from tpop3d.auth.isolation import MAX_REASON
from tpop3d.auth.switch import Switch
from tpop3d.pop3.authorization import Attempt
from tpop3d.system import logs


class Foreign:
    """A driver that does what it was told to, in whatever process."""

    directives = {}
    checks_apop = False

    def __init__(self, action):
        self.action = action

    def authenticate(self, login):
        return self.action(login)


def ask(action, seconds=PATIENCE):
    return isolation.ask(Foreign(action), login(b"ann", password=CANARY.encode()), seconds)


def decide(action, **settings):
    """The switch's word on a driver that does this."""
    switch = Switch({"vault": Foreign(action)}, config_of(**settings))
    return switch.decide(Attempt("USER", b"ann", password=CANARY.encode()), b"", "192.0.2.1")


def parts(verdict):
    account = verdict.account
    if account is None:
        return verdict.answer, None, verdict.reason
    ids = account.uid, account.gid, account.lock_gid
    who = account.name, ids, list(account.mailboxes), account.required
    return verdict.answer, who, verdict.reason


def descriptors():
    return set(os.listdir("/proc/self/fd"))


def children():
    """Living and dead; a database that all tests share may be among them."""
    with open(f"/proc/self/task/{os.getpid()}/children") as pids:
        return set(pids.read().split())


@pytest.fixture
def log(monkeypatch):
    """The lines of the log, all levels."""
    lines = []
    monkeypatch.setattr(logs, "write", lambda level, line: lines.append(line))
    return lines


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No process, no zombie and no descriptor, whatever the driver did."""
    before = descriptors(), children()
    yield
    assert (descriptors(), children()) == before


@contextmanager
def at_most(seconds):
    """Fail instead of waiting for ever."""

    def fail(number, frame):
        raise AssertionError(f"it did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Verdicts

VERDICTS = {
    "yes": Verdict.yes(PERFECT),
    "no": Verdict.no("wrong password"),
    "no without a reason": Verdict.no(""),
    "cannot say": Verdict.cannot_say("no answer from the database: \N{SNOWMAN}"),
    "two mailboxes, and more": Verdict.yes(
        Account(b"x", 1, 2, ["/m\udcff/$x/y", "/b/c"], required=["/m\udcff", ""], lock_gid=3)
    ),
    "two mailboxes": Verdict.yes(Account(b"a\xffn", 1, 2**32 - 2, ["/m\udcff/$x y", "/b"])),
}


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
def test_a_verdict_comes_through_as_it_was_given(verdict):
    assert parts(ask(lambda login: verdict)) == parts(verdict)


octets = st.binary(min_size=1, max_size=40)
ids = st.integers(0, 2**32 - 1)
paths = st.binary(max_size=40).map(lambda octets: "/" + os.fsdecode(octets.replace(b"\0", b"")))


@st.composite
def accounts(draw):
    mailboxes = draw(st.lists(paths, min_size=1, max_size=255))
    further = {}
    if draw(st.booleans()):
        ends = [draw(st.sampled_from([0, 1, path.rindex("/")])) for path in mailboxes]
        further["required"] = [path[:end] for path, end in zip(mailboxes, ends, strict=True)]
    if draw(st.booleans()):
        further["lock_gid"] = draw(st.integers(1, 2**32 - 1))
    return Account(draw(octets), draw(ids), draw(ids), mailboxes, **further)


reasons = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_REASON // 4)
verdicts = (
    st.builds(Verdict.yes, accounts())
    | st.builds(Verdict.no, reasons)
    | st.builds(Verdict.cannot_say, reasons)
)


@given(verdicts)
def test_every_verdict_survives_the_way(verdict):
    assert parts(isolation._decode(isolation._encode(verdict))) == parts(verdict)


@given(st.text(), st.sampled_from([NO, CANNOT_SAY]))
@example("x" * 5000, NO)
@example("\udcff" * 5000, CANNOT_SAY)
@example("\N{SNOWMAN}" * 5000, NO)
def test_of_any_reason_as_much_as_there_is_room_for_survives(reason, answer):
    verdict = isolation._decode(isolation._encode(Verdict(answer, reason=reason)))
    assert verdict.answer == answer
    assert len(verdict.reason) <= MAX_REASON


@pytest.mark.parametrize(
    "account",
    [
        Account(b"n" * 65535, 1, 1, ["/x"]),
        Account(b"ann", 1, 1, ["/x"] * 255),
        Account(b"ann", 1, 1, ["/" + "x" * 65534] * 2),  # more than a pipe holds
        Account(b"n" * 65536, 1, 1, ["/x"]),
        Account(b"ann", 1, 1, ["/x"] * 256),
        Account(b"ann", 1, 1, ["/" + "x" * 65535]),
        Account(b"ann", 1, 1, ["/" + "x" * 4096] * 200),
    ],
    ids=lambda account: f"{len(account.name)}-{len(account.mailboxes)}",
)
def test_an_account_comes_whole_or_not_at_all(account):
    verdict = ask(lambda login: Verdict.yes(account))
    assert verdict.answer in (YES, CANNOT_SAY)
    if verdict.answer == YES:
        assert parts(verdict) == parts(Verdict.yes(account))


answers = st.binary(max_size=200) | st.builds(
    lambda head, tail: head + tail,
    st.builds(
        isolation._HEADER.pack,
        st.sampled_from([b"y", b"n", b"?", b"x"]),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 20),
        st.integers(0, 20),
        st.integers(0, 3),
    ),
    st.binary(max_size=60),
)


@given(answers)
@example(b"")
@example(b"y")
@example(isolation._HEADER.pack(b"y", 0, 0, 0, 0, 0, 0))
@example(isolation._HEADER.pack(b"y", 1, 1, 0, 0, 1, 0) + b"a")
@example(isolation._HEADER.pack(b"y", 1, 1, 0, 0, 0, 1) + b"\0\1\0\0/")
@example(isolation._HEADER.pack(b"n", 1, 1, 0, 0, 1, 1) + b"a\0\1\0\0/")
@example(isolation._HEADER.pack(b"?", 1, 1, 0, 1, 0, 0) + b"\xff")
@example(isolation._HEADER.pack(b"y", 1, 1, 0, 0, 1, 1) + b"a\xff\xff\0\0/")
@example(isolation._HEADER.pack(b"y", 1, 1, 0, 0, 1, 1) + b"a\0\1\xff\xff/")
def test_any_octets_are_a_verdict_and_no_yes_without_an_account(octets):
    verdict = isolation._decode(octets)
    assert isinstance(verdict, Verdict)
    assert verdict.answer in (YES, NO, CANNOT_SAY)
    assert isinstance(verdict.account, Account) == (verdict.answer == YES)


@given(verdicts, st.data())
def test_half_an_answer_is_none(verdict, data):
    whole = isolation._encode(verdict)
    half = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert isolation._decode(half).answer == CANNOT_SAY
    assert isolation._decode(whole + b"x").answer == CANNOT_SAY


# The process


def test_it_is_another_process_and_its_memory_goes_with_it():
    seen = []

    def remember(login):
        seen.append(login.password)
        return Verdict.no(f"{os.getpid()}")

    verdict = ask(remember)
    assert int(verdict.reason) != os.getpid()
    assert not os.path.exists(f"/proc/{verdict.reason}")
    assert seen == []


def test_whoever_says_nothing_else_is_asked_in_a_process_of_its_own():
    def process(driver):
        switch = Switch({"x": driver}, config_of())
        attempt = Attempt("USER", b"ann", password=b"x")
        return int(switch.decide(attempt, b"", "").reason)

    driver = Foreign(lambda login: Verdict.no(f"{os.getpid()}"))
    assert process(driver) != os.getpid()
    driver.own_process = True
    assert process(driver) != os.getpid()
    driver.own_process = False
    assert process(driver) == os.getpid()


def test_of_our_own_only_one_is_asked_where_the_session_will_be():
    """The others read everybody's passwords, hold a password, or run foreign code."""
    spared = {
        name for name in registry.BUILT_IN if not getattr(registry.find(name), "own_process", True)
    }
    assert spared == {"flatfile"}


def test_no_core_of_a_driver_is_left():
    verdict = ask(lambda login: Verdict.no(str(resource.getrlimit(resource.RLIMIT_CORE))))
    assert verdict.reason == "(0, 0)"


def test_a_driver_has_no_descriptor_but_the_one_for_its_answer_and_the_log():
    """The connection least of all: what it starts may live on, and would keep it open."""
    ours = socket.socketpair()
    with ours[0], ours[1]:
        verdict = ask(lambda login: Verdict.no(" ".join(os.listdir("/proc/self/fd"))))
    found = set(map(int, verdict.reason.split())) - set(logs._outlet.descriptors())
    *standard, _answer, _listing = sorted(found)
    assert standard == [0, 1, 2]


def test_a_signal_that_ends_sessions_ends_a_driver():
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        verdict = ask(lambda login: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(100)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert parts(verdict) == (CANNOT_SAY, None, "driver was ended by signal 15")


def test_what_a_driver_prints_is_not_its_answer():
    def prints(login):
        print("y", flush=True, file=sys.__stdout__)  # what pytest has in its place is closed
        sys.__stderr__.write("y")
        sys.__stdout__.write("left in the buffer")
        return Verdict.no("really")

    assert parts(ask(prints)) == (NO, None, "really")


def crash(number):
    def die(login):
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)

    return die


def raising(error):
    def fail(login):
        raise error

    return fail


FAILURES = {
    "returns nothing": (lambda login: None, "what it returned is no verdict"),
    "prints, and returns a number": (lambda login: os.write(1, b"y"), "returned is no verdict"),
    "returns a text": (lambda login: YES, "what it returned is no verdict"),
    "gives an answer that is none": (lambda login: Verdict("perhaps"), "is no verdict"),
    "raises": (raising(ValueError(CANARY)), "driver failed: ValueError at test_isolation.py"),
    "raises what the system says": (raising(OSError(5, "broken", CANARY)), "OSError (broken) at"),
    "exits": (lambda login: sys.exit(CANARY), "driver failed: SystemExit"),
    "is interrupted": (raising(KeyboardInterrupt(CANARY)), "driver failed: KeyboardInterrupt"),
    "exits at once": (lambda login: os._exit(0), "it ended without an answer"),
    "exits at once with a status": (lambda login: os._exit(3), "it ended without an answer"),
    "crashes": (crash(signal.SIGSEGV), "driver was ended by signal 11"),
    "aborts": (crash(signal.SIGABRT), "driver was ended by signal 6"),
    "is killed": (crash(signal.SIGKILL), "driver was ended by signal 9"),
    "has a user that is no number": (
        lambda login: Verdict.yes(Account(b"x", "nobody", "nobody", ["/x"])),
        "driver failed: error at",
    ),
    "has a negative user": (
        lambda login: Verdict.yes(Account(b"x", -1, -1, ["/x"])),
        "driver failed: error at",
    ),
    "has a name that is a text": (
        lambda login: Verdict.yes(Account("x", 1, 1, ["/x"])),
        "driver failed: TypeError at",
    ),
    "has a reason that is none": (
        lambda login: Verdict(NO, reason=17),
        "driver failed: AttributeError at",
    ),
    "says yes without an account": (lambda login: Verdict(YES), "driver failed: "),
    "says yes without a mailbox": (
        lambda login: Verdict.yes(Account(b"x", 1, 1, [])),
        "driver failed: ",
    ),
    "says yes without a name": (
        lambda login: Verdict.yes(Account(b"", 1, 1, ["/x"])),
        "driver failed: ",
    ),
    "requires what its mailbox is not in": (
        lambda login: Verdict.yes(Account(b"x", 1, 1, ["/a/b"], required=["/c"])),
        "driver failed: a required directory is not above its mailbox",
    ),
    "requires more than it has mailboxes": (
        lambda login: Verdict.yes(Account(b"x", 1, 1, ["/a/b"], required=["/a", "/a"])),
        "driver failed: a required directory is not above its mailbox",
    ),
    "says no with an account": (lambda login: Verdict(NO, PERFECT), "driver failed: "),
    "says neither with an account": (lambda login: Verdict(CANNOT_SAY, PERFECT), "driver failed: "),
}


@pytest.mark.parametrize(("action", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_driver_that_fails_cannot_say_and_the_log_has_one_line(log, action, reason):
    with at_most(PATIENCE):
        verdict = decide(action)
    assert (verdict.answer, verdict.account, verdict.driver) == (CANNOT_SAY, None, "vault")
    assert reason in verdict.reason
    assert len(log) == 1
    assert log[0].startswith("driver undecided driver=vault reason=")
    assert CANARY not in log[0]


# Time


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def hang(login):
    time.sleep(1000)


def hang_deaf(login):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)


def hang_stopped(login):
    os.kill(os.getpid(), signal.SIGSTOP)


def hang_without_descriptors(login):
    """What a library does that makes a daemon of itself."""
    os.closerange(3, 1024)
    time.sleep(1000)


@pytest.mark.parametrize("action", [hang, hang_deaf, hang_stopped, hang_without_descriptors])
def test_a_driver_that_hangs_is_cut_off(tmp_path, action):
    pidfile = tmp_path / "pid"

    def told(login):
        pidfile.write_text(f"{os.getpid()}")
        action(login)

    started = time.monotonic()
    try:
        with at_most(PATIENCE):
            verdict = ask(told, 0.3)
        assert time.monotonic() - started < PATIENCE / 2
        assert gone(int(pidfile.read_text()))
    finally:
        if not gone(int(pidfile.read_text())):
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
            os.waitpid(int(pidfile.read_text()), 0)
    assert (verdict.answer, verdict.account) == (CANNOT_SAY, None)
    if action is not hang_without_descriptors:
        assert verdict.reason == "driver gave no answer in 0.3 seconds"
        assert time.monotonic() - started >= 0.3


def test_a_driver_does_not_outlive_whoever_is_told_to_end_right_behind_the_fork(monkeypatch):
    class Told(BaseException):
        pass

    def tell(*_):
        raise Told

    pids, real = [], os.fork

    def fork():
        if pid := real():
            pids.append(pid)
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # others mask nothing
        return pid

    before = signal.signal(signal.SIGTERM, tell)
    monkeypatch.setattr(os, "fork", fork)
    try:
        with at_most(PATIENCE), pytest.raises(Told):
            ask(hang, 3600)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert gone(pids[0])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_the_time_is_that_of_the_configuration(log):
    started = time.monotonic()
    assert decide(hang, auth_timeout_seconds=1).answer == CANNOT_SAY
    assert 1 <= time.monotonic() - started < PATIENCE
    assert log == ['driver undecided driver=vault reason="driver gave no answer in 1 seconds"']


def into_the_pipe(write):
    """An action that writes to where the answer goes, which any code in the process can."""
    known = descriptors()

    def action(login):
        new = [int(fd) for fd in descriptors() - known if os.path.exists(f"/proc/self/fd/{fd}")]
        write(new[0])
        return Verdict.no("really")

    return action


def flood(fd):
    while True:
        os.write(fd, b"y" * 65536)


def trickle(fd):
    while True:
        os.write(fd, b"y")
        time.sleep(0.05)


@pytest.mark.parametrize("write", [flood, trickle])
def test_a_driver_that_never_stops_talking_is_cut_off(write):
    action = into_the_pipe(write)
    with at_most(PATIENCE):
        verdict = ask(action, 0.5)
    assert (verdict.answer, verdict.account) == (CANNOT_SAY, None)


def test_an_answer_with_something_before_it_is_none():
    action = into_the_pipe(lambda fd: os.write(fd, b"y"))
    assert ask(action).answer == CANNOT_SAY


def test_many_logins_leave_nothing_behind():
    for _ in range(20):
        assert ask(lambda login: Verdict.no("x")).answer == NO
        assert ask(hang, 0.01).answer == CANNOT_SAY


# What it waits for


def test_a_driver_that_is_cut_off_has_said_what_it_waited_for():
    def action(login):
        isolation.note("db1.example.org")
        isolation.note("db2.example.org")
        time.sleep(600)

    verdict = ask(action, 0.3)
    assert verdict.answer == CANNOT_SAY
    assert verdict.reason == "driver gave no answer in 0.3 seconds: it waited for db2.example.org"


def test_whoever_answers_may_have_waited():
    def action(login):
        for number in range(100):
            isolation.note(f"a long name \udc80 {number} " * 30)
        return Verdict.yes(PERFECT)

    assert parts(ask(action)) == parts(Verdict.yes(PERFECT))


def test_a_driver_knows_how_long_it_is_waited_for():
    def action(login):
        return Verdict.no(f"{isolation.seconds_left() < 600} {isolation.seconds_left() > 0}")

    assert ask(action, 600).reason == "True True"
    assert isolation.seconds_left() == float("inf")
    isolation.note("nobody is told")


@given(st.binary(max_size=400))
@example(b"#")
@example(b"#\0\5abcd")
@example(b"#\xff\xff" + b"x" * 400)
@example(b"#\0\0n")
@example(b"#\0\1ax" * 3)
def test_notes_that_are_none_are_no_answer_either(octets):
    note, answer = isolation._noted(octets)
    assert octets.endswith(answer)
    assert len(note.encode()) <= 3 * isolation.MAX_NOTE
    assert answer == octets or octets[:1] == b"#"


def test_it_has_the_descriptors_that_its_hosts_need_and_no_others():
    read_end, write_end = os.pipe()
    foreign = Foreign(lambda login: os.write(write_end, b"here"))
    foreign.hosts = Hosts(["db1"])
    foreign.hosts.report_to(write_end, 0)
    isolation.ask(foreign, login(b"ann"), PATIENCE)
    assert os.read(read_end, 10) == b"here"
    foreign.hosts.report_to(-1, 0)
    isolation.ask(foreign, login(b"ann"), PATIENCE)
    os.close(write_end)
    assert os.read(read_end, 10) == b""
    os.close(read_end)
