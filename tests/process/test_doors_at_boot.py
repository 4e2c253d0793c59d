"""What is enabled is what answers after a boot: whatever else is enabled, port by port."""

from itertools import combinations

import pytest

import systemdbox
import tlskit
from mailsite import PATIENCE, poll
from systemdsite import SETTINGS, SystemdSite

EACH, EACH_TLS = "tpop3d.socket", "tpop3d-tls.socket"
LISTENER, LISTENER_TLS = "tpop3d-listener.socket", "tpop3d-listener-tls.socket"
DAEMON = "tpop3d.service"
# In the order in which they win.
FOR_110 = [DAEMON, LISTENER, EACH]
FOR_995 = [LISTENER_TLS, EACH_TLS]
UNITS = FOR_110 + FOR_995
PATHS = {"tls-certificate": "/etc/tpop3d.pem", "tls-private-key": "/etc/tpop3d.key"}
BOTH_PORTS = {"listen-address": "0.0.0.0 0.0.0.0;tls=immediate"}
SETS = [*combinations(UNITS, 2), (LISTENER, EACH, EACH_TLS), (DAEMON, LISTENER, EACH_TLS), UNITS]


@pytest.fixture(scope="module")
def machine():
    """A box of its own, to boot as often as is wanted."""
    systemdbox.require()
    box = SystemdSite()
    try:
        box.install()
        made = tlskit.authority().issue_cert(tlskit.HOST)
        tlskit.install(made, *map(box.path, PATHS.values()))
        yield box
    finally:
        box.close()


@pytest.fixture
def box(machine):
    """The box with nothing enabled, and TLS."""
    machine.systemctl("disable", "--now", *UNITS)
    machine.reset()
    machine.configure(SETTINGS | PATHS)
    yield machine
    print(machine.do("journalctl", "--output=short"))


def greets(box, port):
    """Does a POP3 server of ours answer there?"""
    try:
        wire = box.wire(port=port)
    except ConnectionRefusedError:
        return False
    if port == 995:
        tlskit.wrap(wire)
    assert wire.line().startswith(b"+OK")
    wire.ask("QUIT")
    wire.close()
    return True


def is_active(box, unit):
    return box.show(unit, "ActiveState") == "active"


@pytest.mark.parametrize("enabled", SETS, ids=" ".join)
def test_each_port_answers_that_anything_enabled_has(box, enabled):
    """Of those for one port the first of the list does it; and those for two ports never meet."""
    box.systemctl("enable", *enabled)
    box.reboot()
    for port, units in ((110, FOR_110), (995, FOR_995)):
        first, *others = [unit for unit in units if unit in enabled] or [None]
        if first is None:
            assert not greets(box, port)
        else:
            assert is_active(box, first)
            assert greets(box, port)
        assert not any(is_active(box, unit) for unit in others)
    # The listener that port 995 has started has not taken the other one from anybody.
    assert greets(box, 110) or not {*FOR_110, LISTENER_TLS} & {*enabled}
    assert box.systemctl("is-enabled", *enabled).split() == ["enabled"] * len(enabled)


def test_a_daemon_says_who_may_have_its_port_and_waits_for_that(box):
    box.configure(SETTINGS | PATHS | BOTH_PORTS)
    box.adapt(DAEMON, Service_RestartSec="100ms")
    box.systemctl("enable", EACH_TLS)
    box.systemctl("start", EACH_TLS)
    assert box.run("systemctl", "enable", "--now", DAEMON).returncode != 0
    box.wait_for_journal("cannot listen on 0.0.0.0:995: Address already in use by another server")
    box.reboot()
    assert greets(box, 995)
    box.systemctl("disable", "--now", EACH_TLS)
    poll(lambda: greets(box, 110) and greets(box, 995), "both ports", 3 * PATIENCE)
    assert is_active(box, DAEMON)


NAME = "mail.example.net"


@pytest.mark.parametrize(
    ("unit", "settings", "file", "line"),
    [
        (DAEMON, {"listen-address": NAME}, "hosts", f"127.0.0.1 {NAME}"),
        (DAEMON, {"gatekeeper-user": "late"}, "passwd", "late:x:4999:4999::/nonexistent:/bin/sh"),
        (LISTENER, {"gatekeeper-user": "late"}, "passwd", "late:x:4999:4999::/nonexistent:/bin/sh"),
    ],
)
def test_what_is_known_late_is_in_time(box, unit, settings, file, line):
    """However often it was tried before, as by default five times are the end."""
    before = box.path(f"/etc/{file}").read_text()
    box.configure(SETTINGS | settings)
    service = "tpop3d-listener.service" if unit == LISTENER else unit
    box.adapt(service, Service_RestartSec="100ms")
    box.systemctl("enable", unit)
    box.reboot()
    waiting = box.wire() if unit == LISTENER else None
    poll(lambda: int(box.show(service, "NRestarts")) > 7, "restarts", 3 * PATIENCE)
    box.path(f"/etc/{file}").write_text(f"{before}{line}\n")
    poll(lambda: is_active(box, service), "it to start", 3 * PATIENCE)
    assert greets(box, 110)
    if waiting:
        assert waiting.line().startswith(b"+OK")
        waiting.close()
    box.path(f"/etc/{file}").write_text(before)
