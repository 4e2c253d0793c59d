"""What the listener believes of reports about hosts, and what it does of its own."""

import os
import signal
import time

import pytest

from mailsite import poll
from tpop3d.auth.hosts import REPORT, Hosts
from tpop3d.listener import hosts as remembering
from tpop3d.listener.event_loop import Loop
from tpop3d.listener.hosts import SilentHosts
from tpop3d.system import logs


class Driver:
    """One with three hosts. A trial finds out what it was told to."""

    def __init__(self):
        self.hosts = Hosts(["db1", "db2:3307", "/run/db3"])
        self.answers = True

    def try_host(self, number):
        self.hosts.note(number, is_silent=not self.answers)


class Other:
    """A driver without hosts."""


class Listener:
    def __init__(self, drivers, known=frozenset()):
        self.loop = Loop()
        self.complaints = []
        self.silent = SilentHosts(drivers, self.loop, self.complaints.append, known)

    def turn(self, seconds=0.0):
        self.loop.call_later(seconds, lambda: None)
        self.loop.run_once()

    def report(self, message):
        os.write(self.silent.descriptors[0], message)
        self.turn()

    def until(self, condition):
        def turned():
            self.turn(0.01)
            return condition()

        poll(turned, "a report", 60)


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(logs, "write", lambda level, line: lines.append(line))
    return lines


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def listener(driver):
    made = Listener({"passwd": Other(), "mysql": driver})
    yield made
    made.silent.retire()


def test_a_report_is_remembered_and_logged_once(listener, driver, log):
    for _ in range(2):
        listener.report(REPORT.pack(0, 1, True))
        assert driver.hosts.silent == {1}
    for _ in range(2):
        listener.report(REPORT.pack(0, 1, False))
        assert driver.hosts.silent == set()
    assert log == [
        "host silent driver=mysql host=db2:3307",
        "host answers driver=mysql host=db2:3307",
    ]
    assert listener.complaints == []


MALFORMED = [b"\0", b"\0\1", b"\0\1\1\1", b"x" * 4096]
BESIDE = [REPORT.pack(1, 0, True), REPORT.pack(255, 0, True), REPORT.pack(0, 3, True)]


@pytest.mark.parametrize("message", [*MALFORMED, *BESIDE])
def test_what_is_no_report_of_ours_changes_nothing(listener, driver, log, message):
    listener.report(message)
    assert driver.hosts.silent == set()
    assert log == []
    listener.report(REPORT.pack(0, 2, True))
    assert driver.hosts.silent == {2}
    assert listener.complaints == ["reports of hosts: one is malformed"] * (message in MALFORMED)


def test_reports_that_nobody_takes_do_not_block_who_makes_them(listener, driver):
    """Nor does a listener that is not there any more end it."""
    teller = Hosts(driver.hosts.names)
    teller.report_to(listener.silent.descriptors[0], 0)
    for _ in range(10_000):
        teller.note(0, is_silent=True)
        teller.note(0, is_silent=False)
    copy = os.dup(listener.silent.descriptors[0])
    listener.silent.retire()
    teller.report_to(copy, 0)
    teller.note(0, is_silent=True)
    os.close(copy)


def test_a_flood_of_reports_leaves_time_for_others(listener, driver, monkeypatch):
    heard = []
    monkeypatch.setattr(remembering, "REPORTS", 3)
    monkeypatch.setattr(listener.silent, "_note", lambda *report: heard.append(report))
    for _ in range(5):
        os.write(listener.silent.descriptors[0], REPORT.pack(0, 0, True))
    listener.turn()
    assert len(heard) == 3
    listener.turn()
    assert len(heard) == 5


def test_a_silent_host_is_tried_by_a_process_until_it_answers(monkeypatch, driver, log):
    monkeypatch.setattr(remembering, "RETRY", 0.05)
    driver.answers = False
    listener = Listener({"mysql": driver})
    listener.report(REPORT.pack(0, 0, True))
    listener.report(REPORT.pack(0, 2, True))
    for _ in range(2):
        listener.until(lambda: len(listener.silent._trials) == 2)
        for pid in list(listener.silent._trials):
            os.waitpid(pid, 0)
            assert listener.silent.reap(pid)
    assert driver.hosts.silent == {0, 2}
    driver.answers = True
    listener.until(lambda: not driver.hosts.silent)
    for pid in list(listener.silent._trials):
        os.waitpid(pid, 0)
        listener.silent.reap(pid)
    assert not listener.silent.reap(os.getpid())
    assert [line.split()[1] for line in log] == ["silent"] * 2 + ["answers"] * 2
    listener.turn(0.2)
    assert not listener.silent._trials  # there is nothing to be tried any more
    listener.silent.retire()


def test_a_host_is_not_tried_twice_at_once_and_a_trial_ends_with_the_listener(monkeypatch, driver):
    monkeypatch.setattr(remembering, "RETRY", 0.01)
    monkeypatch.setattr(driver, "try_host", lambda number: time.sleep(600))
    listener = Listener({"mysql": driver})
    listener.report(REPORT.pack(0, 0, True))
    listener.until(lambda: listener.silent._trials)
    for _ in range(20):
        listener.turn(0.02)
    (pid,) = listener.silent._trials
    listener.silent.retire()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_another_configuration_knows_what_the_one_before_it_knew(listener, driver):
    listener.report(REPORT.pack(0, 1, True))
    known = listener.silent.known()
    assert known == {("mysql", "db2:3307")}
    listener.silent.retire()
    # To the drivers of before, which some connections still have, none is silent.
    assert driver.hosts.silent == set()
    assert driver.hosts.descriptors == ()
    again = Driver()
    again.hosts = Hosts(["db2:3307", "db4"])
    later = Listener({"mysql": again}, known)
    assert again.hosts.silent == {0}
    later.silent.retire()


def test_without_hosts_there_is_nothing_to_hear():
    listener = Listener({"passwd": Other()})
    assert listener.silent.descriptors == ()
    assert listener.silent.known() == frozenset()
    listener.silent.retire()
