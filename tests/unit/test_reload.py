"""A reload: what it comes to, and what is told of it."""

import pytest

from tpop3d.configuration import WrongConfiguration
from tpop3d.listener import reload as reloads
from tpop3d.listener.lookups import Answers, NotAsked
from tpop3d.listener.reload import TRIES, Reload
from tpop3d.system import logs
from tpop3d.system.refusal import Refusal

KEPT = "the configuration is kept as it was"


class Site:
    """A listener's part of a reload. `outcome` is what reading gives, or raises."""

    def __init__(self):
        self.outcome = ("config", "sandbox", {}, None)
        self.changes = []
        self.told = []
        self.look_ups = 0
        self.reload = Reload(None, self.read, lambda: None, self.change, lambda: "STATUS=x")

    def read(self):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def change(self, *what):
        self.changes.append(what)


@pytest.fixture
def site(monkeypatch):
    """It looks nothing up, but goes on at once with an answer to everything."""
    made = Site()

    class NoLookUp:
        answers = Answers({})

        def __init__(self, loop, look_up, finish):
            made.look_ups += 1
            self.finish = finish

        def stop(self):
            pass

    monkeypatch.setattr(reloads, "LookUp", NoLookUp)
    monkeypatch.setattr(reloads.sd_notify, "notify", made.told.append)
    return made


def finish(site, answers=NotImplemented):
    """Let the look-ups that are under way end."""
    while (looking_up := site.reload._looking_up) is not None:
        looking_up.finish(looking_up.answers if answers is NotImplemented else answers)


@pytest.fixture
def log(capfd):
    logs.open_log("mail", "info", to_stderr=True)
    return lambda: capfd.readouterr().err


def test_what_is_right_is_changed_to(site, log):
    site.reload.begin()
    finish(site)
    assert site.changes == [site.outcome]
    assert site.reload.trouble == ""
    assert "reload: the configuration is read again" in log()
    assert [one.partition("=")[0] for one in site.told] == ["RELOADING", "READY"]


def test_what_is_refused_is_told_and_changes_nothing(site, log):
    site.outcome = Refusal("no keys")
    site.reload.begin()
    finish(site)
    assert (site.changes, site.reload.trouble) == ([], "no keys")
    assert f"reload: no keys; {KEPT}" in log()
    assert site.told[-1].startswith("READY=1")


def test_each_problem_of_a_wrong_configuration_is_logged(site, log):
    site.outcome = WrongConfiguration(["x:1: one", "x:2: two"])
    site.reload.begin()
    finish(site)
    told = log()
    assert "x:1: one\n" in told
    assert "x:2: two\n" in told
    assert "reload: the configuration has errors, and is kept as it was" in told
    assert (site.changes, site.reload.trouble) == ([], "x:1: one (and 1 more)")


def test_nothing_is_read_when_nobody_answers(site, log):
    site.reload.begin()
    finish(site, None)
    assert site.changes == []
    assert "cannot be looked up" in site.reload.trouble
    assert KEPT in log()


def test_a_file_that_changes_meanwhile_is_tried_again_and_not_for_ever(site, log):
    site.outcome = NotAsked()
    site.reload.begin()
    finish(site)
    assert site.look_ups == TRIES
    assert f"reload: the configuration changes while it is read; {KEPT}" in log()
    assert [one.partition("=")[0] for one in site.told] == ["RELOADING"] * TRIES + ["READY"]


def test_without_a_further_process_there_is_no_reload(site, log, monkeypatch):
    def none(*arguments):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(reloads, "LookUp", none)
    site.reload.begin()
    assert f"reload: no further process: Resource temporarily unavailable; {KEPT}" in log()
    assert site.told[-1].startswith("READY=1")


def test_a_bug_is_trouble_that_the_log_explains(site):
    site.outcome = ZeroDivisionError()
    site.reload.begin()
    with pytest.raises(ZeroDivisionError):
        finish(site)
    assert site.reload.trouble == "internal error, see the log"
    assert site.told[-1].startswith("READY=1")


def test_trouble_is_over_when_a_later_reload_is_right(site):
    right, site.outcome = site.outcome, Refusal("no keys")
    site.reload.begin()
    finish(site)
    site.outcome = right
    site.reload.begin()
    finish(site)
    assert site.reload.trouble == ""
