"""A child begins in one place, ends there, and its death is told in one way."""

import os
import signal
import sys
import threading

import pytest

from tpop3d.system import logs, processes


def status_of(work, **options):
    return os.waitstatus_to_exitcode(os.waitpid(processes.spawn(work, **options), 0)[1])


def fail():
    raise LookupError("a bug")


def leave():
    raise SystemExit(0)


def interrupt():
    raise KeyboardInterrupt


def be_told_to_end():
    raise processes.Interrupted


@pytest.fixture(autouse=True)
def signals_as_before():
    caught = (*processes.ENDING, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in caught}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (7, 7)])
def test_the_status_is_what_the_work_returns(returned, status):
    assert status_of(lambda: returned) == status


@pytest.mark.parametrize("work", [fail, leave, interrupt, be_told_to_end])
@pytest.mark.parametrize("failed", [1, 9])
def test_no_child_returns_into_its_parents_code(work, failed):
    """Whatever it raises, also what the parent would have caught, it ends with the failure."""
    parent = os.getpid()
    try:
        assert status_of(work, failed=failed) == failed
    finally:
        if os.getpid() != parent:
            os._exit(99)


def test_a_bug_is_logged_without_what_may_be_secret(capfd):
    logs.open_log("mail", "info", to_stderr=True)
    password = "s3cret"

    def work():
        raise ValueError(password)

    status_of(work)
    told = capfd.readouterr().err
    assert "internal error: ValueError" in told
    assert password not in told


def test_a_signal_that_comes_at_once_is_the_childs_own():
    """It makes its descriptor readable, and ends nothing by itself."""

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        return 5 if signal.SIGTERM in processes.received() else 1

    assert status_of(work) == 5


def test_no_signal_is_lost_while_they_are_caught_again(monkeypatch):
    """A listener does so when it has said that it listens: then people send it signals."""
    processes.catch()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    real = processes.received

    def read_and_get_another():
        found = real()
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)  # a thread that masks it
        return found

    monkeypatch.setattr(processes, "received", read_and_get_another)
    processes.catch_again(signal.SIGUSR1)
    assert sorted(real()) == [signal.SIGHUP, signal.SIGTERM]


def test_where_there_can_be_no_process_the_parent_is_told(monkeypatch):
    def refuse():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(BlockingIOError):
        processes.spawn(lambda: 0)


@pytest.mark.parametrize(("work", "line"), [
    (lambda: 0, ""),
    (lambda: 3, "ended with status 3"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by signal 9"),
])  # fmt: skip
def test_a_death_is_told_unless_it_was_a_good_one(work, line, capfd):
    logs.open_log("mail", "info", to_stderr=True)
    pid, status = os.waitpid(processes.spawn(work), 0)
    processes.log_death("gatekeeper", pid, status)
    told = capfd.readouterr().err
    assert (f"gatekeeper {pid} {line}\n" in told) if line else not told


def test_nobody_else_forks_a_child_that_could_come_back():
    """Two have a fork of their own: what goes on in the background, and half of a scan."""
    forks = [name for name in sys.modules if name.startswith("tpop3d.")]
    assert forks  # the modules are found by their files below
    root = os.path.dirname(sys.modules["tpop3d"].__file__)
    found = set()
    for directory, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(directory, name), encoding="utf-8") as file:
                    if "os.fork()" in file.read():
                        found.add(os.path.relpath(os.path.join(directory, name), root))
    assert found == {"system/processes.py", "auth/isolation.py", "doors/daemon.py",
                     "mailspool/parallel_scan.py"}  # fmt: skip
