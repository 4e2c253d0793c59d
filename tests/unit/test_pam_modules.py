"""auth-pam and the code of others: modules that hang, crash, talk, wait, or are not there."""

import os
import time

import pytest

from mailsite import PATIENCE, poll
from pamkit import ANN, SECRET, compiled, wrapper
from tpop3d.auth.driver import CANNOT_SAY, NO, YES

ACCOUNT = "account required pam_permit.so"


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("module"))


@pytest.fixture
def odd(pam, module):
    """Make a service of the module, which does what its arguments say."""

    def make(arguments):
        pam.service(f"auth required {module} {arguments}", f"account required {module}")

    return make


# That are not there


def test_without_any_service_nobody_can_say(pam):
    (pam.services / "tpop3d").unlink()
    verdict = pam.ask()
    assert verdict.answer == CANNOT_SAY
    assert verdict.reason == "PAM: pam_start(3) failed; is there a file of the service? (26)"


def test_without_the_service_the_other_one_decides(pam):
    (pam.services / "tpop3d").unlink()
    pam.service("auth required pam_deny.so", name="other")
    assert pam.ask().answer == NO
    pam.service(*pam.matrix(), name="other")
    assert pam.ask().answer == YES
    assert pam.ask(password="wrong").answer == NO


@pytest.mark.parametrize("kind", ["auth", "account"])
@pytest.mark.parametrize("found", ["missing", "no library"])
def test_without_a_module_nobody_can_say(pam, kind, found):
    path = pam.path / "pam_x.so"
    if found != "missing":
        path.write_text("no library\n")
    pam.service(*pam.matrix(), f"{kind} required {path}")
    assert (pam.ask().answer, pam.ask().reason) == (CANNOT_SAY, "PAM: Module is unknown (28)")


@pytest.mark.parametrize("lines", [[], ["auth"], ["nonsense"], ["auth required pam_permit.so"]])
def test_a_service_that_says_nothing_lets_nobody_in(pam, lines):
    pam.service(*lines)
    assert pam.ask().answer in (NO, CANNOT_SAY)


# That hang


def gone(pid):
    """Has the process ended? Whoever inherits it may not have noticed yet."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_what_hangs_is_cut_off_with_all_that_it_has_started(pam):
    """pam_exec(8) starts its script in a session of its own."""
    pids = pam.path / "pids"
    wait = f"(trap '' TERM HUP; sleep 1000 & echo $! >>{pids}; wait) & echo $! $$ >>{pids}; wait"
    pam.service(f"auth required {pam.script(wait)}", ACCOUNT)
    started = time.monotonic()
    verdict = pam.ask(seconds=1)
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, "driver gave no answer in 1 seconds")
    assert 1 <= time.monotonic() - started < PATIENCE
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 3
    try:
        poll(lambda: all(map(gone, left)), "what the module has started to end")
    finally:
        for pid in left:
            if not gone(pid):
                os.kill(pid, 9)
    pam.service(*pam.matrix())
    assert pam.ask().answer == YES


def test_the_time_is_that_of_the_configuration(pam):
    pam.service(f"auth required {pam.script('exec sleep 1000')}", ACCOUNT)
    started = time.monotonic()
    assert pam.decided(ANN, SECRET, {"auth-timeout-seconds": "1"}) == (CANNOT_SAY, "pam")
    assert 1 <= time.monotonic() - started < PATIENCE


# That crash


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("abort", "driver was ended by signal 6"),
        ("segv", "driver was ended by signal 11"),
        ("exit", "driver failed: it ended without an answer"),
    ],
)
def test_what_crashes_takes_one_attempt_with_it(pam, odd, how, reason):
    odd(how)
    assert (pam.ask().answer, pam.ask().reason) == (CANNOT_SAY, reason)
    odd("nothing")
    assert pam.ask().answer == YES


# That wait


@pytest.mark.parametrize("delay", ["pam_faildelay", "pam_fail_delay"])
def test_the_delay_of_a_refusal_is_ours_alone(pam, odd, delay):
    """All refusals are held back for the same time, the others elsewhere."""
    if delay == "pam_faildelay":
        pam.service("auth optional pam_faildelay.so delay=60000000", *pam.matrix())
    else:
        odd("delay")
    assert pam.ask(password="wrong").answer == NO  # and not undecided, as after PATIENCE


# That talk, and listen


def test_what_modules_have_to_say_is_said_to_nobody(pam, capfd):
    pam.service(f"auth required {wrapper('pam_chatty')} num_lines=300 info error", *pam.matrix())
    assert pam.ask().answer == YES
    assert pam.ask(password="wrong").answer == NO
    assert capfd.readouterr() == ("", "")


def test_what_python_pam_does_not_expect_is_a_line_in_the_log(pam, odd, capfd):
    odd("expect-nothing")
    assert pam.ask().answer == YES
    assert pam.ask(password="wrong").answer == NO
    output = capfd.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 2
    assert all("]: python-pam: ValueError at " in line for line in lines)


def test_what_is_no_utf_8_may_be_said_and_asked(pam, odd, capfd):
    odd("say")
    assert pam.ask().answer == YES
    assert pam.ask(password="wrong").answer == NO
    assert capfd.readouterr() == ("", "")


def test_who_asks_twice_gets_the_same_answer_twice(pam, odd):
    """A second factor that has no place in POP3 fails as a password does, not as a server."""
    odd("ask-twice")
    assert pam.ask().answer == YES
    assert pam.ask(password="wrong").answer == NO


def test_what_a_module_writes_is_not_the_answer(pam, odd):
    odd("print")
    assert pam.ask().answer == YES
    assert pam.ask(password="wrong").answer == NO


@pytest.mark.parametrize("length", [1, 511, 512, 513, 4096, 12288])
def test_a_password_of_any_length_arrives_whole(pam, odd, length):
    odd(f"length {length}")
    assert pam.ask(password="x" * length).answer == YES
    assert pam.ask(password="x" * (length + 1)).answer == NO


def test_long_passwords_with_modules_that_cut_them_off(pam):
    pam.service(*pam.matrix(), f"auth required {pam.script('cat', options='expose_authtok')}")
    assert pam.ask().answer == YES
    assert pam.ask(password="x" * 12288).answer == NO


@pytest.mark.parametrize("password", [b"gr\xfc\xdfe", b"gr\xc3\xbc\xc3\x9fe", b"\xff\xfe", b"a  b"])
def test_a_password_is_octets(pam, password):
    pam.passdb.write_bytes(b"%b:%b:tpop3d\n" % (ANN.encode(), password))
    assert pam.ask(password=password).answer == YES
    assert pam.ask(password=password[:-1]).answer == NO


def test_an_account_without_a_password_takes_no_other_one(pam, odd):
    """pam_unix(8) with nullok lets it in whatever the password, unless it is told not to."""
    odd("not-null")
    assert pam.ask(password="whatever").answer == NO
    assert pam.ask(password="").answer == YES  # the switch has refused it, if it is to be refused


def test_where_pam_cannot_be_told_the_address_it_is_not_asked(pam, monkeypatch):
    import pam as library

    pam.marking(*pam.matrix())
    monkeypatch.setattr(library.PamAuthenticator, "pam_set_item", staticmethod(lambda *_: 5))
    verdict = pam.ask()
    assert (verdict.answer, verdict.reason) == (CANNOT_SAY, "PAM: Memory buffer error (5)")
    assert not pam.mark.exists()
