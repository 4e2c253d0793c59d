"""Whom a PROXY header is believed, what in it, and by whom it is read."""

import re
import subprocess
from contextlib import closing

import pytest

import doors
import tlskit
from mailsite import IS_ROOT, poll
from network import OUTSIDE, network
from proxyheaders import CLIENT, LOCAL, PROXY, TCP4, UNIX, UNSPEC, binary, line, raw
from strace import traced
from test_hazard_plaintext_logins import must_refuse, must_serve
from test_hazard_proxy import (
    BALANCER,
    MAIL,
    ONE,
    SESSION,
    SETTINGS,
    at_end,
    complaints,
    connect,
    in_both_versions,
)
from test_hazard_root_reads import CALLS, readers
from test_listener_signals import reload
from tpop3d.proxy.header import Header
from tpop3d.proxy.origin import origin

OWN = {
    "LOCAL": raw(LOCAL, UNSPEC),
    "LOCAL with addresses": raw(LOCAL, TCP4, binary()[16:]),
    "UNKNOWN": b"PROXY UNKNOWN\r\n",
    "a unix socket": raw(PROXY, UNIX, 216 * b"/"),
}


@pytest.fixture
def site(site):
    site.add("anna", ONE)
    site.configure(SETTINGS)
    return site


@pytest.mark.parametrize("how", OWN)
@tlskit.in_both_doors
def test_a_balancer_that_speaks_for_itself(site, opens, how):
    site.configure({"plaintext-logins": "local"})
    with opens(site) as door:
        wire = connect(door)
        wire.send(OWN[how] + SESSION)
        assert MAIL in wire.reader.read()
        door.logs.wait_for(f"session rip={BALANCER} user=anna .* end=quit")


@in_both_versions
@tlskit.in_both_doors
def test_who_is_no_balancer_says_nothing_of_himself(site, opens, header):
    site.configure({"plaintext-logins": "local"})
    with opens(site) as door:
        wire = connect(door, "127.0.0.2")
        assert wire.line().startswith(b"+OK")
        wire.send(header + b"\r\n" + SESSION)
        answers = at_end(wire)
        assert answers.startswith(b"-ERR")
        door.logs.wait_for("session rip=127.0.0.2 user=(anna|-) ")
        assert CLIENT not in door.logs.text()
        assert complaints(door) == []


# Addresses that are none of the client's


def test_whose_connection_it_is():
    place, own = ("203.0.113.5", 110), ("10.0.0.1", 1110)
    assert origin(Header("192.0.2.7", place), "10.0.0.9", own) == ("192.0.2.7", place)
    assert origin(Header(), "10.0.0.9", own) == ("10.0.0.9", own)
    # On the balancer's host, which is this one or not.
    assert origin(Header("127.0.0.1", place), "127.0.0.2", own) == ("127.0.0.1", place)
    assert origin(Header("127.0.0.1", place), "10.0.0.9", own) == ("10.0.0.9", place)
    assert origin(Header("::1", place), "2001:db8::9", own) == ("2001:db8::9", place)


@pytest.fixture(scope="module")
def elsewhere():
    with network() as made:
        for peer in OUTSIDE:  # a new address of IPv6 takes its time
            command = made.command("ip", "route", "get", peer)
            poll(lambda command=command: not subprocess.call(command), f"a way to {peer}")
        yield made


@pytest.mark.parametrize("peer", OUTSIDE)
def test_a_client_on_the_balancers_host_is_not_on_ours(site, monkeypatch, elsewhere, peer):
    """Its password has crossed a network."""
    if ":" in peer:
        near, far, place = "::1", "2001:db8::99", "2001:db8::5"
    else:
        near, far, place = "127.0.0.1", "192.0.2.99", "203.0.113.5"
    header = line(near, (near, 110))
    site.configure({"plaintext-logins": "local", "proxy-protocol-from": " ".join(OUTSIDE)})
    with elsewhere.inetd(site, peer) as wire:
        wire.send(header)
        must_refuse(wire, wire.line(), b"TLS")
        assert wire.ask("QUIT").startswith(b"+OK")
        wire.logs.wait_for(f"session rip={re.escape(peer)} user=- ")
    monkeypatch.setattr(doors, "SERVER", elsewhere.command(*doors.SERVER))
    host = f"[{peer}]" if ":" in peer else peer
    with doors.standalone(site, host=host) as door:
        with closing(elsewhere.connect(peer, door.port)) as wire:
            wire.send(header)
            must_refuse(wire, wire.line(), b"TLS")
        door.logs.wait_for(f"session rip={re.escape(peer)} user=- ")
        with closing(elsewhere.connect(peer, door.port)) as wire:
            wire.send(line(far, (place, 110)))
            must_refuse(wire, wire.line(), b"TLS")
        door.logs.wait_for(f"session rip={re.escape(far)} user=- ")
        site.configure({"plaintext-logins": "yes"})
        reload(door, "reload: the configuration is read again")
        with closing(elsewhere.connect(peer, door.port)) as wire:
            wire.send(header)
            assert wire.line().startswith(b"+OK")
            must_serve(wire, "USER anna", "PASS secret")


# Whoever reads the header is root


class Whole:
    """A trace in which no call is in two parts, because another process made one meanwhile."""

    def __init__(self, trace):
        self.trace = trace

    @property
    def lines(self):
        made, begun = [], {}
        for pid, call in self.trace.lines:
            if call.endswith(" <unfinished ...>"):
                begun[pid] = len(made)
                call = call.removesuffix(" <unfinished ...>")
            elif (found := re.match(r"<\.\.\. \w+ resumed>(.*)", call)) and pid in begun:
                place = begun.pop(pid)
                made[place] = pid, made[place][1] + found[1]
                continue
            made.append((pid, call))
        return made


@pytest.mark.skipif(not IS_ROOT, reason="only root has privileges to separate")
@in_both_versions
@tlskit.in_both_doors
def test_root_reads_the_header_and_not_an_octet_more(site, monkeypatch, opens, header):
    options = ["-f", "-yy", "-s", "16", "-e", f"trace={','.join(CALLS)}"]
    trace = Whole(traced(monkeypatch, site.path, *options))
    with opens(site) as door:
        wire = connect(door)
        wire.send(header + SESSION)
        assert MAIL in wire.reader.read()
        door.logs.wait_for(f"session rip={CLIENT} user=anna .* end=quit")
    by_root, good = readers(site, trace)
    assert good >= 1
    taken = [int(call.rpartition(" = ")[2]) for call in by_root if " EAGAIN " not in call]
    assert sum(taken) == len(header)
    assert not any("MSG_PEEK" in call for call in by_root)
