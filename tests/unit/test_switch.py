"""The auth switch: who is asked about whom, and what the answers come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import CANARY, PERFECT, Stub, config_of
from tpop3d.auth.driver import CANNOT_SAY, NO, YES, Login, Verdict
from tpop3d.auth.switch import Switch
from tpop3d.pop3.authorization import Attempt
from tpop3d.system import logs

ANSWERS = {
    YES: Verdict.yes(PERFECT),
    NO: Verdict.no("wrong password"),
    CANNOT_SAY: Verdict.cannot_say("no answer"),
}


@pytest.fixture(autouse=True)
def log(monkeypatch):
    """The lines of the log, all levels."""
    lines = []
    monkeypatch.setattr(logs, "write", lambda level, line: lines.append(line))
    return lines


def decide(drivers, name=b"ann", password=b"secret", domain=b"", **settings):
    attempt = Attempt("USER", name, password=password)
    return Switch(drivers, config_of(**settings)).decide(attempt, domain, "192.0.2.1")


def stubs(*answers):
    # A verdict of its own for each: the switch writes the driver's name into it.
    return {
        f"d{n}": Stub(Verdict(one.answer, one.account, one.reason))
        for n, one in enumerate(ANSWERS[answer] for answer in answers)
    }


@given(st.lists(st.sampled_from(list(ANSWERS)), max_size=5))
def test_the_answers_come_to_one(answers):
    drivers = stubs(*answers)
    verdict = decide(drivers)
    if YES in answers:
        first = answers.index(YES)
        assert verdict.answer == YES
        assert verdict.account is PERFECT
        assert verdict.driver == f"d{first}"
        asked = [len(driver.asked) for driver in drivers.values()]
        assert asked == [1] * (first + 1) + [0] * (len(answers) - first - 1)
    else:
        assert verdict.answer == (CANNOT_SAY if CANNOT_SAY in answers else NO)
        assert verdict.account is None
        assert all(len(driver.asked) == 1 for driver in drivers.values())


def test_without_drivers_nobody_gets_in():
    assert decide({}).answer == NO


def test_a_yes_after_a_cannot_say_is_a_yes_and_the_trouble_is_logged(log):
    verdict = decide(stubs(CANNOT_SAY, YES))
    assert (verdict.answer, verdict.driver) == (YES, "d1")
    assert log == ['driver undecided driver=d0 reason="no answer"']


def test_the_reason_is_the_most_telling_one():
    drivers = {
        "a": Stub(Verdict.no("unknown user")),
        "b": Stub(Verdict.no("wrong password")),
        "c": Stub(Verdict.no("unknown user")),
    }
    verdict = decide(drivers)
    assert (verdict.driver, verdict.reason) == ("b", "wrong password")


def test_the_driver_sees_the_attempt():
    driver = Stub(Verdict.no("x"))
    decide({"a": driver}, b"ann@example.org", b" two words ")
    login = driver.asked[0]
    assert (login.name, login.local_part, login.domain) == (
        b"ann@example.org",
        b"ann",
        b"example.org",
    )
    assert login.password == b" two words "
    assert login.client == "192.0.2.1"


def test_apop_is_handed_on():
    driver = Stub(Verdict.no("x"))
    attempt = Attempt(
        "APOP",
        b"mrose",
        timestamp=b"<1896.697170952@dbc.mtview.ca.us>",
        digest=b"c4c9334bac560ecc979e58001b3e22fb",
    )
    Switch({"a": driver}, config_of()).decide(attempt, b"", "")
    assert driver.asked[0].password is None
    assert driver.asked[0].matches(b"{plaintext}tanstaaf", "crypt")
    assert not driver.asked[0].matches(b"{plaintext}tanstaafl", "crypt")


@pytest.mark.parametrize("checking", [(), (False,), (True,), (False, True)])
def test_apop_is_offered_where_any_driver_can_check_it(checking):
    drivers = {str(n): Stub(None, checks_apop=one) for n, one in enumerate(checking)}
    assert Switch(drivers, config_of()).offers_apop() == any(checking)


APPEND, STRIP = {"append-domain": "yes"}, {"strip-domain": "yes"}
LOOKUPS = [
    # name given, domain of the address, settings, names looked up
    (b"ann", b"", {}, [b"ann"]),
    (b"ann", b"here.example", {}, [b"ann"]),
    (b"ann", b"here.example", APPEND, [b"ann", b"ann@here.example"]),
    (b"ann", b"", APPEND, [b"ann"]),
    (b"ann@b.example", b"here.example", APPEND, [b"ann@b.example"]),
    (b"ann@b.example", b"here.example", {}, [b"ann@b.example"]),
    (b"ann@b.example", b"here.example", STRIP, [b"ann@b.example", b"ann"]),
    (b"ann", b"here.example", STRIP, [b"ann"]),
    (b"ann", b"here.example", APPEND | STRIP, [b"ann", b"ann@here.example"]),
    (b"ann%b.example", b"", STRIP, [b"ann@b.example", b"ann"]),
    (b"ann!b.example", b"", STRIP, [b"ann@b.example", b"ann"]),
    (b"ann:b.example", b"", STRIP, [b"ann@b.example", b"ann"]),
    (b"ann%b.example", b"", STRIP | {"domain-separators": "@"}, [b"ann%b.example"]),
    (b"ann+b.example", b"", STRIP | {"domain-separators": "+"}, [b"ann@b.example", b"ann"]),
    (b"ann@b@c", b"", STRIP, [b"ann@b@c", b"ann"]),
    (b"Ann@B.example", b"", {}, [b"Ann@B.example"]),
    (b"Ann@B.example", b"", {"lowercase-user": "yes"}, [b"ann@b.example"]),
    (b"ANN\xc9", b"", {"lowercase-user": "yes"}, [b"ann\xc9"]),
    (b"ann@", b"here.example", {}, [b"ann@"]),
    (b"ann@", b"here.example", APPEND, [b"ann@"]),
]


@pytest.mark.parametrize(("name", "domain", "settings", "expected"), LOOKUPS)
def test_which_names_are_looked_up(name, domain, settings, expected):
    driver = Stub(Verdict.no("unknown user"))
    decide({"a": driver}, name, domain=domain, **settings)
    assert [login.name for login in driver.asked] == expected


def test_a_name_is_split_at_its_first_separator():
    driver = Stub(Verdict.no("unknown user"))
    decide({"a": driver}, b"ann%inner@outer.example")
    assert (driver.asked[0].local_part, driver.asked[0].domain) == (b"ann", b"inner@outer.example")


def test_an_appended_domain_is_a_domain():
    driver = Stub(Verdict.no("unknown user"))
    decide({"a": driver}, b"ann", domain=b"here.example", append_domain="yes")
    assert [login.domain for login in driver.asked] == [b"", b"here.example"]
    assert [login.local_part for login in driver.asked] == [b"ann", b"ann"]


def test_every_driver_is_asked_for_one_name_before_the_next_name():
    first = Stub({b"ann": Verdict.yes(PERFECT)})
    second = Stub({b"ann@b.example": Verdict.yes(PERFECT)})
    verdict = decide({"a": first, "b": second}, b"ann@b.example", strip_domain="yes")
    assert (verdict.answer, verdict.driver) == (YES, "b")
    assert [login.name for login in first.asked] == [b"ann@b.example"]


def test_the_second_name_may_get_in_after_the_first_could_not_be_checked():
    answers = {b"ann@b.example": Verdict.cannot_say("x"), b"ann": Verdict.yes(PERFECT)}
    assert decide({"a": Stub(answers)}, b"ann@b.example", strip_domain="yes").answer == YES
    answers = {b"ann@b.example": Verdict.cannot_say("x")}
    verdict = decide({"a": Stub(answers)}, b"ann@b.example", strip_domain="yes")
    assert verdict.answer == CANNOT_SAY


def test_an_empty_password_is_refused_unless_it_is_permitted():
    driver = Stub(Verdict.yes(PERFECT))
    assert decide({"a": driver}, password=b"").answer == NO
    assert driver.asked == []
    assert decide({"a": driver}, password=b" ").answer == YES
    assert decide({"a": driver}, password=b"", permit_empty_password="yes").answer == YES


FAILURES = [
    ValueError(CANARY),
    KeyError(CANARY.encode()),
    UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
    RuntimeError({"password": CANARY}),
    OSError(CANARY),
    OSError(5, "Input/output error", CANARY),
    RecursionError(CANARY),
    MemoryError(CANARY),
    type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: type(one).__name__)
def test_a_driver_that_raises_cannot_say_and_its_text_is_not_logged(log, failure):
    drivers = {"bad": Stub(failure)}
    verdict = decide(drivers, password=CANARY.encode())
    assert (verdict.answer, verdict.driver) == (CANNOT_SAY, "bad")
    assert type(failure).__name__ in verdict.reason
    assert "authkit.py" in verdict.reason
    assert len(log) == 1
    assert CANARY not in verdict.reason + "".join(log)


def test_a_driver_that_raises_keeps_nobody_else_from_being_asked():
    verdict = decide({"bad": Stub(ValueError()), "good": Stub(Verdict.yes(PERFECT))})
    assert (verdict.answer, verdict.driver) == (YES, "good")


NO_VERDICTS = {
    "None": None,
    "True": True,
    "a text": "yes",
    "an account": PERFECT,
    "yes without an account": Verdict(YES),
    "no with an account": Verdict(NO, PERFECT),
    "cannot say with an account": Verdict(CANNOT_SAY, PERFECT),
    "an answer nobody knows": Verdict("perhaps"),
    "an answer that is no text": Verdict(True, PERFECT),
}


@pytest.mark.parametrize("answer", NO_VERDICTS.values(), ids=NO_VERDICTS)
def test_what_is_no_verdict_is_cannot_say(answer):
    assert decide({"bad": Stub(answer)}).answer == CANNOT_SAY


def test_a_login_knows_its_parts_and_shows_no_secret():
    login = Login(b"ann", b"b.example", password=CANARY.encode(), digest=CANARY.encode())
    assert login.name == b"ann@b.example"
    assert Login(b"ann").name == b"ann"
    assert CANARY not in repr(login)
