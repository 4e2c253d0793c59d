"""What a reload is told by the process that has looked names up for it."""

import marshal
import os
import socket
import time

import pytest

from tpop3d.config import Unanswered, directive
from tpop3d.config.directive import group_id, user_id
from tpop3d.listener import lookups
from tpop3d.listener.event_loop import Loop
from tpop3d.listener.lookups import Answers, NotAsked, knowing


def told(ask):
    """The answer to a question, as it comes from another process."""
    there = Answers()
    try:
        there.answer("what", "name", ask)
    except (ValueError, OSError):
        pass
    return Answers(marshal.loads(marshal.dumps(there.known)))


def raising(error):
    def ask():
        raise error

    return ask


def never():
    raise AssertionError("it is looked up again")


@pytest.mark.parametrize("value", [("anna", 1000, 1000, b"/home/anna"), 8, ["127.0.0.1"], []])
def test_a_value(value):
    assert told(lambda: value).answer("what", "name", never) == value


@pytest.mark.parametrize(
    "error",
    [Unanswered("ldap does not answer"), ValueError("there is no user 'x' on this system"),
     socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
     OSError(24, "Too many open files")],
)  # fmt: skip
def test_what_was_raised(error):
    with pytest.raises(type(error)) as raised:
        told(raising(error)).answer("what", "name", never)
    assert type(raised.value) is type(error)
    assert raised.value.args == error.args


def test_what_was_raised_of_a_kind_that_is_not_known():
    with pytest.raises(OSError) as raised:
        told(raising(PermissionError(13, "Permission denied"))).answer("what", "name", never)
    assert (raised.value.errno, raised.value.strerror) == (13, "Permission denied")
    with pytest.raises(UnicodeError):
        told(lambda: "\0".join("x" * 70).encode("idna")).answer("what", "name", never)


def test_what_was_not_asked():
    answers = told(lambda: 1)
    for what, name in (("what", "other"), ("else", "name")):
        with pytest.raises(NotAsked):
            answers.answer(what, name, never)


@pytest.mark.parametrize(
    ("look_up", "expected"),
    [
        (lambda: directive.found("what", "name", lambda: 7), {("what", "name"): ("", 7)}),
        (lambda: None, {}),
        (lambda: os._exit(1), None),
        (lambda: time.sleep(600), None),
    ],
    ids=["an answer", "no question", "death", "silence"],
)
def test_the_process_that_looks_up(monkeypatch, look_up, expected):
    if expected is None:
        monkeypatch.setattr(lookups, "PATIENCE", 0.5)
    loop, told = Loop(), []
    lookups.LookUp(loop, look_up, told.append)
    while not told:
        loop.run_once()
    (answers,) = told
    assert (None if answers is None else answers.known) == expected
    assert os.wait()  # it has ended, or been ended
    assert directive.answers is None


def test_users_and_groups_of_a_configuration(monkeypatch):
    there = Answers()
    names = {"user": user_id, "group": group_id}
    told_there = {}
    for what, look_up in names.items():
        told_there[what] = vars_of(knowing(there, lambda look_up=look_up: look_up("mail")))
        with pytest.raises(ValueError, match=f"there is no {what} 'no-such-name-here'"):
            knowing(there, lambda look_up=look_up: look_up("no-such-name-here"))
    for module in ("pwd.getpwnam", "grp.getgrnam"):
        monkeypatch.setattr(module, lambda name: never())
    here = Answers(there.known)
    for what, look_up in names.items():
        assert vars_of(knowing(here, lambda look_up=look_up: look_up("mail"))) == told_there[what]
        with pytest.raises(ValueError, match=f"there is no {what} 'no-such-name-here'"):
            knowing(here, lambda look_up=look_up: look_up("no-such-name-here"))
        with pytest.raises(NotAsked):
            knowing(here, lambda look_up=look_up: look_up("root"))
    assert directive.answers is None


def vars_of(principal):
    return principal.name, principal.uid, principal.gid, principal.home
