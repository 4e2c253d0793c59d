"""A client that vanishes, as one whose battery is empty, does not hold its maildrop for long."""

import re
import subprocess
import sys

import pytest

import doors
from mailsite import CHECKOUT, need, poll
from network import OUTSIDE, network
from spools import mbox
from tpop3d.system import io

# As it is, but in seconds instead of minutes.
IMPATIENT = """
import sys
from tpop3d.system import io
io.KEEPALIVE_IDLE = io.KEEPALIVE_INTERVAL = io.KEEPALIVE_COUNT = 1
from tpop3d.cli import main
raise SystemExit(main())
"""


def timers(port, command=list):
    """What `ss` tells of the timers of the server's connections on a port."""
    ss = command([need("ss"), "-tnoH", "state", "established", "sport", "=", f":{port}"])
    return subprocess.run(ss, capture_output=True, text=True, check=True).stdout


def test_every_door_asks_whether_the_client_is_there(site, tcp_door):
    site.add("anna", mbox(b"Subject: x\n\ntext\n"))
    wire = tcp_door.connect()
    wire.login("anna")
    asked = re.compile(r"timer:\(keepalive,(1min|[3-5]\dsec)")
    poll(lambda: asked.search(timers(tcp_door.port)), "a timer of the right length")


@pytest.mark.parametrize("host", OUTSIDE)
def test_a_maildrop_is_free_again_when_its_client_has_vanished(site, monkeypatch, host):
    site.add("anna", mbox(b"Subject: x\n\ntext\n"))
    monkeypatch.setattr(doors, "SERVER", [sys.executable, "-c", IMPATIENT])
    site.configure({"plaintext-logins": "yes"})
    with network() as ours, ours.inetd(site, host) as wire:
        wire.login("anna")
        port = wire.connection.getpeername()[1]
        # Its host has taken all that was sent.
        taken = "timer:(keepalive"
        poll(lambda: taken in timers(port, lambda ss: ours.command(*ss)), taken)
        subprocess.run(ours.command("ip", "link", "set", "lo", "down"), check=True)
        assert "end=eof" in wire.logs.wait_for("session .*user=anna")
    monkeypatch.undo()
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert wire.ask("QUIT").startswith(b"+OK")


def test_units_and_xinetd_say_the_same_as_the_server():
    for unit in (CHECKOUT / "systemd").glob("*.socket"):
        text = unit.read_text()
        assert "\nKeepAlive=yes\n" in text, unit
        assert f"\nKeepAliveTimeSec={io.KEEPALIVE_IDLE}\n" in text, unit
        assert f"\nKeepAliveIntervalSec={io.KEEPALIVE_INTERVAL}\n" in text, unit
        assert f"\nKeepAliveProbes={io.KEEPALIVE_COUNT}\n" in text, unit
    for file in ("tpop3d", "tpop3d-tls"):
        flags = re.search(r"flags\s*=(.*)", (CHECKOUT / "xinetd" / file).read_text())[1]
        assert "KEEPALIVE" in flags.split()
