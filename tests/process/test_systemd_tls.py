"""The unit files for TLS under a real systemd: port 995 and STLS, in every style."""

import os
import re
import socket
from pathlib import Path

import pytest

import tlskit
from mailsite import poll
from samples import MESSAGES, message, on_the_wire, spool_of
from systemdsite import USERS
from test_systemd import DAEMON, EACH, LISTENER, SERVICE
from test_systemd_manager import status, user_of

EACH_TLS = "tpop3d-tls.socket"
LISTENER_TLS = "tpop3d-listener-tls.socket"
TLS_STYLES = [EACH_TLS, LISTENER_TLS, DAEMON]
# What serves without TLS at first, beside it.
BESIDE = {EACH_TLS: EACH, LISTENER_TLS: LISTENER, DAEMON: DAEMON}
SPOOL = spool_of(MESSAGES)
# More than the kernel keeps for the client, and less than fits between it and the session.
LARGE = message(1, b"large", (b"x" * 76 + b"\n") * 2500)
DIRECTORY = "/etc/keys"
SETTINGS = {
    "listen-address": "0.0.0.0 0.0.0.0;tls=immediate",
    "tls-certificate": f"{DIRECTORY}/tls.pem",
    "tls-private-key": f"{DIRECTORY}/tls.key",
    "plaintext-logins": "no",
    "shutdown-seconds": 1,
}


def install_certificate(box):
    made = tlskit.authority().issue_cert(tlskit.HOST)
    tlskit.install(made, box.path(f"{DIRECTORY}/tls.pem"), box.path(f"{DIRECTORY}/tls.key"))


@pytest.fixture
def box(box):
    """The box with a certificate, a key that only root can read, and mail for ann."""
    box.path(DIRECTORY).mkdir(mode=0o700)
    install_certificate(box)
    box.configure(SETTINGS)
    box.add("ann", SPOOL)
    yield box
    box.do("rm", "-r", DIRECTORY)


@pytest.fixture(params=TLS_STYLES)
def style(request, box):
    box.systemctl("start", request.param)
    return request.param


def secured(box):
    """A connection to port 995 that must end as TLS wants it."""
    return tlskit.wrap(box.wire(port=995), suppress_ragged_eofs=False)


def logged_in(box):
    wire = secured(box)
    wire.login("ann")
    return wire


def service_of(box, style):
    """The unit of the one session that there is."""
    if style == EACH_TLS:
        units = ["list-units", "--plain", "--no-legend", "tpop3d-tls@*"]
        return poll(lambda: box.systemctl(*units).split(), "the session's unit")[0]
    return "tpop3d-listener.service" if style == LISTENER_TLS else style


def check(box, wire):
    """One message more is taken."""
    assert wire.ask_long("RETR 1")[1] == on_the_wire(MESSAGES[0])
    assert wire.ask("DELE 1").startswith(b"+OK")
    before = box.spool("ann").read_bytes()
    assert wire.ask("QUIT").startswith(b"+OK")
    assert wire.line() == b""
    assert len(box.spool("ann").read_bytes()) < len(before)


@pytest.mark.parametrize("style", TLS_STYLES)
def test_both_ports(box, style):
    """With the socket for port 110 beside that for 995; a listener serves both."""
    box.systemctl("start", *{style, BESIDE[style]})
    check(box, logged_in(box))
    box.add("ann", SPOOL)
    wire = box.wire()
    assert wire.line().startswith(b"+OK")
    assert wire.ask("USER ann").startswith(b"-ERR")
    tlskit.stls(wire)
    assert wire.ask("USER ann").startswith(b"+OK")
    assert wire.ask("PASS secret").startswith(b"+OK")
    check(box, wire)
    poll(lambda: len(re.findall(" tls=TLSv1.3 .* end=quit", box.journal())) == 2, "both sessions")
    assert box.show(style, "ActiveState") == "active"


def test_the_listeners_socket_brings_the_other_along(box):
    box.systemctl("start", LISTENER_TLS)
    check(box, logged_in(box))
    assert box.wire().line().startswith(b"+OK")


def test_a_listener_that_runs_already_gets_the_socket(box):
    """As the unit's file says. Without that systemd refuses, and the listener goes on."""
    box.systemctl("start", LISTENER)
    assert box.wire().line().startswith(b"+OK")
    assert box.run("systemctl", "start", LISTENER_TLS).returncode != 0
    assert box.wire().line().startswith(b"+OK")
    box.systemctl("restart", LISTENER, LISTENER_TLS)
    check(box, logged_in(box))
    assert box.wire().line().startswith(b"+OK")


@pytest.mark.parametrize("style", TLS_STYLES)
def test_a_key_for_the_service_alone(box, style):
    """systemd hands it over, and where it is from the service cannot look."""
    services = {EACH_TLS: "tpop3d-tls@.service", **SERVICE, LISTENER_TLS: SERVICE[LISTENER]}
    hidden = f"{DIRECTORY}/hidden.key"
    box.path(f"{DIRECTORY}/tls.key").rename(box.path(hidden))
    box.configure(SETTINGS | {"tls-private-key": "$CREDENTIALS_DIRECTORY/tls.key"})
    box.adapt(
        services[style],
        Service_LoadCredential=f"tls.key:{hidden}",
        Service_InaccessiblePaths=hidden,
    )
    box.systemctl("start", style)
    check(box, logged_in(box))


@pytest.mark.parametrize("style", [LISTENER_TLS, DAEMON])
def test_a_renewed_certificate(box, style):
    box.systemctl("start", style)
    old = secured(box)
    assert old.line().startswith(b"+OK")
    install_certificate(box)
    box.systemctl("reload", service_of(box, style))
    poll(lambda: serial_number(secured(box)) != serial_number(old), "the new certificate")
    assert old.ask("QUIT").startswith(b"+OK")


def serial_number(wire):
    return wire.connection.getpeercert()["serialNumber"]


def test_as_the_kernel_sees_it(box, style):
    """Whoever is not root has no rights left, and the relay no directory, either."""
    wire = logged_in(box)
    relays = int(box.do("id", "-u", "tpop3d"))
    pids = box.pids(service_of(box, style))
    by_user = {user_of(pid): pid for pid in pids}
    assert {relays, USERS["ann"]} <= set(by_user)
    for pid in pids:
        of_it = status(pid)
        assert (of_it["NoNewPrivs"], of_it["Seccomp"]) == ("1", "2")
        if user_of(pid):
            assert int(of_it["CapEff"], 16) == int(of_it["CapPrm"], 16) == 0
    assert os.readlink(f"/proc/{by_user[relays]}/root").endswith("/var/lib/tpop3d/empty")
    check(box, wire)


@pytest.mark.usefixtures("library")
def test_a_filter_of_the_relays_own(box, style):
    wire = logged_in(box)
    relays = int(box.do("id", "-u", "tpop3d"))
    filters = {}
    for pid in box.pids(service_of(box, style)):
        filters.setdefault(user_of(pid), set()).add(int(status(pid)["Seccomp_filters"]))
    assert min(filters[relays]) > min(filters[USERS["ann"]]) > 0
    # What is left is enough for it to end, too.
    check(box, wire)
    box.wait_for_journal("end=quit")
    assert "was ended by signal" not in box.journal()


def test_stopped_while_a_session_is_open(box, style):
    wire = logged_in(box)
    assert wire.ask("DELE 1").startswith(b"+OK")
    service = service_of(box, style)
    pids = box.pids(service)
    box.systemctl("stop", style, service)
    assert wire.line() == b""
    assert box.spool("ann").read_bytes() == SPOOL
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert box.show(service, "Result") in ("success", "")
    box.wait_for_journal("end=signal")
    assert "was ended by signal" not in box.journal()


def test_stopped_while_the_client_takes_nothing(box):
    box.add("ann", spool_of([LARGE]))
    box.adapt(EACH_TLS, Socket_SendBuffer="16K")
    box.systemctl("start", EACH_TLS)
    wire = logged_in(box)
    wire.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    wire.send(b"RETR 1\r\n")
    box.wait_for_journal("login rip=127.0.0.1 user=ann")
    box.systemctl("stop", EACH_TLS, service_of(box, EACH_TLS))
    box.wait_for_journal("Stopped tpop3d-tls@")
    assert "timed out" not in box.journal()


def test_stopped_within_a_handshake(box):
    box.systemctl("start", EACH_TLS)
    client = box.wire(port=995)
    # One process to decide, one to speak POP3, one to speak TLS.
    poll(lambda: len(box.pids(service_of(box, EACH_TLS))) == 3, "the relay")
    box.systemctl("stop", EACH_TLS, service_of(box, EACH_TLS))
    assert client.line() == b""
    box.wait_for_journal("Stopped tpop3d-tls@")
    assert "timed out" not in box.journal()
    assert "was ended by signal" not in box.journal()


def test_what_was_sent_last_is_not_lost(box):
    """The session is over, and its client has much still to read: systemd may end nothing."""
    box.add("ann", spool_of([LARGE]))
    box.adapt(EACH_TLS, Socket_SendBuffer="16K")
    box.systemctl("start", EACH_TLS)
    wire = logged_in(box)
    wire.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    wire.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
    box.wait_for_journal("end=quit")
    assert len(box.pids(service_of(box, EACH_TLS))) == 2  # the session, and the relay
    assert wire.line().startswith(b"+OK")
    body, ending = on_the_wire(LARGE), wire.reader.read()
    assert ending[: len(body)] == body
    assert [line[:3] for line in ending[len(body) :].splitlines()] == [b".", b"+OK", b"+OK"]


def test_starting_one_stops_the_other(box):
    before = None
    # Each after each other.
    for style in [*TLS_STYLES, *TLS_STYLES[::2], *TLS_STYLES[1::-1]]:
        box.add("ann", SPOOL)
        if before and DAEMON in (before, style):
            # What it listens to besides port 110, only its configuration knows.
            box.systemctl("stop", before)
        box.systemctl("start", *{style, BESIDE[style]})
        check(box, logged_in(box))
        for unit in (style, BESIDE[style]):
            assert box.show(unit, "ActiveState") == "active"
        for unit in (before, BESIDE[before]) if before else ():
            assert box.show(unit, "ActiveState") == "inactive", f"{unit} before {style}"
        before = style
