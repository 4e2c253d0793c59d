"""The unit files in systemd/: right, hardened, and at odds where they want the same port."""

import configparser
import re
import subprocess
import sys

import pytest

from mailsite import CHECKOUT, ENVIRONMENT, need
from tpop3d.doors.activation import TLS_NAME

UNITS = CHECKOUT / "systemd"
LISTENERS = ["tpop3d-listener.service", "tpop3d.service"]
SERVICES = ["tpop3d@.service", "tpop3d-tls@.service", *LISTENERS]
PORTS = {
    "tpop3d.socket": 110,
    "tpop3d-tls.socket": 995,
    "tpop3d-listener.socket": 110,
    "tpop3d-listener-tls.socket": 995,
}
SOCKETS = list(PORTS)
MOST_EXPOSED = 3.0

# For each port who wants it, and gets it at boot where one before it is not enabled.
RIVALS = {
    110: ["tpop3d.service", "tpop3d-listener.socket", "tpop3d.socket"],
    995: ["tpop3d-listener-tls.socket", "tpop3d-tls.socket"],
}


class Unit(configparser.ConfigParser):
    """A unit file; a setting that is there twice is a list in systemd, and one string here."""

    class Values(dict):
        def __setitem__(self, key, value):
            if isinstance(value, list) and isinstance(self.get(key), list):
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    def __init__(self, name):
        super().__init__(interpolation=None, strict=False, dict_type=self.Values)
        self.optionxform = str
        self.read(UNITS / name)

    def words(self, section, key):
        return self.get(section, key, fallback="").split()


def analyze(*arguments):
    # Without what a terminal would get: colours and faces.
    plain = ENVIRONMENT | {"SYSTEMD_COLORS": "0", "SYSTEMD_EMOJI": "0"}
    return subprocess.run(
        [need("systemd-analyze"), *arguments],
        capture_output=True,
        text=True,
        env=plain,
        cwd=UNITS,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A stand-in for the command that pip installs: verify wants it to be there."""
    path = tmp_path_factory.mktemp("bin") / "tpop3d"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_all_are_known_here():
    there = {path.name for path in UNITS.iterdir()}
    assert there == {*SERVICES, *SOCKETS, "sysusers.d", "tmpfiles.d"}
    for kind in ("sysusers.d", "tmpfiles.d"):
        assert [path.name for path in (UNITS / kind).iterdir()] == ["tpop3d.conf"]


def test_systemd_finds_nothing_wrong(tmp_path, command):
    for name in SERVICES + SOCKETS:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/local/bin/tpop3d", str(command)))
    files = [tmp_path / name for name in SERVICES + SOCKETS]
    done = analyze("verify", "--man=no", "--recursive-errors=no", *files)
    # What it says of other units, of this machine, is not about ours.
    assert [line for line in done.stderr.splitlines() if "tpop3d" in line] == []
    assert done.returncode == 0


@pytest.mark.parametrize("service", SERVICES)
def test_hardened(service):
    report = analyze("security", "--offline=true", UNITS / service).stdout
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", report)
    assert found, report
    assert float(found[1]) <= MOST_EXPOSED, report


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_left_out_has_a_reason(service):
    """Each directive that systemd marks as missing is named in a comment, or given in part."""
    report = analyze("security", "--offline=true", UNITS / service).stdout
    text = (UNITS / service).read_text()
    missing = re.findall(r"^✗ (\w+)=", report, re.MULTILINE)
    assert missing
    unexplained = [name for name in missing if f"{name}=" not in text]
    # Nothing but a socket from outside could use a directory of its own for the whole system; and
    # what devices there are, PrivateDevices= says.
    assert set(unexplained) <= {"RootDirectory", "DeviceAllow"}


def test_the_same_for_all():
    """What a service may do does not depend on how it is started, but for the port."""
    differing = {"Type", "ExecStart", "ExecReload", "StandardInput", "StandardError", "Restart"}
    differing |= {"RestartSec", "WatchdogSec", "OOMPolicy", "TimeoutStopSec"}

    def common(name):
        service = dict(Unit(name)["Service"])
        service["CapabilityBoundingSet"] = sorted(
            set(service["CapabilityBoundingSet"].split()) - {"CAP_NET_BIND_SERVICE"}
        )
        return {key: value for key, value in service.items() if key not in differing}

    first, *others = [common(name) for name in SERVICES]
    assert all(other == first for other in others)


@pytest.mark.parametrize("service", SERVICES)
def test_options_are_those_of_the_program(service):
    words = Unit(service).words("Service", "ExecStart")
    assert words[0] == "/usr/local/bin/tpop3d"
    help_text = subprocess.run(
        [sys.executable, "-m", "tpop3d", "--help"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    ).stdout
    for word in words[1:]:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", help_text)


@pytest.mark.parametrize("port", RIVALS)
def test_only_one_takes_the_port(port):
    """Who loses waits for nobody, and who wins until the port is free."""
    for n, name in enumerate(RIVALS[port]):
        losers = RIVALS[port][n + 1 :]
        # With more of them, ports that nobody else has would be dead after a boot.
        assert Unit(name).words("Unit", "Conflicts") == losers[::-1]
        for loser in losers:
            assert name in Unit(loser).words("Unit", "Before")


@pytest.mark.parametrize("name", SERVICES)
def test_no_other_conflicts(name):
    assert name == "tpop3d.service" or Unit(name).words("Unit", "Conflicts") == []


@pytest.mark.parametrize("service", LISTENERS)
def test_is_tried_for_ever(service):
    unit = Unit(service)
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["RestartSec"] == "5"


@pytest.mark.parametrize("socket", SOCKETS)
def test_sockets_listen_on_both_kinds_of_addresses(socket):
    text = (UNITS / socket).read_text()
    port = PORTS[socket]
    found = re.findall(r"^ListenStream=(.*)$", text, re.MULTILINE)
    assert found == [f"0.0.0.0:{port}", f"[::]:{port}"]
    assert Unit(socket)["Socket"]["BindIPv6Only"] == "ipv6-only"


@pytest.mark.parametrize("name", ["tpop3d", "tpop3d-tls"])
def test_one_process_for_each_connection(name):
    socket, service = Unit(f"{name}.socket")["Socket"], Unit(f"{name}@.service")["Service"]
    assert socket["Accept"] == "yes"
    assert int(socket["MaxConnectionsPerSource"]) < int(socket["MaxConnections"])
    assert socket["TriggerLimitIntervalSec"] == "0"
    # stderr must not be the connection, as it would be by default.
    assert (service["StandardInput"], service["StandardError"]) == ("socket", "journal")


def test_what_is_for_tls_says_so():
    for name in SERVICES:
        assert ("--tls" in Unit(name).words("Service", "ExecStart")) == (name[:10] == "tpop3d-tls")
    for name in SOCKETS[2:]:
        found = Unit(name)["Socket"].get("FileDescriptorName")
        assert found == (TLS_NAME if PORTS[name] == 995 else None)


def test_both_sockets_are_for_one_listener():
    assert Unit("tpop3d-listener-tls.socket")["Socket"]["Service"] == "tpop3d-listener.service"
    service = Unit("tpop3d-listener.service")
    assert set(SOCKETS[2:]) <= set(service.words("Unit", "After"))
    assert service.words("Unit", "Requires") == ["tpop3d-listener.socket"]


@pytest.mark.parametrize("service", LISTENERS)
def test_listeners_are_watched(service):
    settings = Unit(service)["Service"]
    assert settings["Type"] == "notify"
    assert settings["Restart"] == "on-failure"
    assert int(settings["WatchdogSec"]) > 0
    # By default one process that runs out of memory is the end of all others.
    assert settings["OOMPolicy"] == "continue"
