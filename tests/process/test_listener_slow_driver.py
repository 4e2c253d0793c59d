"""A driver that never answers: an error of ours, and nobody else's trouble."""

import select
import sys
import time

import pytest

import doors
from authkit import foreign_driver
from spools import mbox

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")
DRIVER = """
import time
from tpop3d.auth.driver import Verdict

class Driver:
    directives = {}
    checks_apop = False

    def __init__(self, settings):
        pass

    def authenticate(self, login):
        if login.local_part == b"slow":
            time.sleep(600)
        return Verdict.no("unknown user")
"""
# The gatekeeper's time to report, after login-seconds, is over long before the driver's is.
CODE = """
import sys
from tpop3d.privsep import monitor
monitor.GRACE = 0.2
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""
SETTINGS = {"login-seconds": 2, "auth-timeout-seconds": 3, "auth-failure-delay-seconds": 0}


@pytest.fixture
def door(site, monkeypatch):
    site.add("anna", SPOOL)
    packages = site.path / "packages"
    packages.mkdir()
    for name, value in foreign_driver(packages, "tar", DRIVER).items():
        monkeypatch.setitem(doors.ENVIRONMENT, name, value)
    monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", CODE])
    with doors.standalone(site, settings=SETTINGS | {"auth-tar-enable": "yes"}) as door:
        yield door


def test_a_driver_that_hangs_is_no_failed_password_and_no_attack(door):
    started = time.monotonic()
    wire = door.connect()
    assert wire.line().startswith(b"+OK")
    assert wire.ask("USER slow").startswith(b"+OK")
    wire.send(b"PASS secret\r\n")
    # All others are served meanwhile.
    served = 0
    while served < 5 and not select.select([wire.connection], [], [], 0)[0]:
        other = door.connect()
        other.login("anna")
        assert other.ask("STAT").startswith(b"+OK 2 ")
        assert other.ask("QUIT").startswith(b"+OK")
        assert other.line() == b""
        served += 1
    assert served > 1  # the first one may have come to its end when the driver had
    assert wire.line().startswith(b"-ERR [SYS/TEMP] ")
    assert time.monotonic() - started >= 3
    door.logs.wait_for("login undecided .*user=slow .*driver=tar")
    # The time to log in is over by now.
    assert wire.line() == b""
    door.logs.wait_for("session .*user=- .*end=timeout")
    assert "attack" not in door.logs.text()
    assert "login failed" not in door.logs.text()
