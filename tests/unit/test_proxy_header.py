"""The PROXY header: what it may look like, and that nothing behind it is ever asked for."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import proxyheaders
from proxyheaders import (
    CLIENT,
    LOCAL,
    PLACE,
    PROXY,
    SIGNATURE,
    SSL,
    TCP4,
    TCP6,
    UDP4,
    UNIX,
    UNSPEC,
    binary,
    line,
    raw,
)
from tpop3d.proxy.header import Header, parse
from tpop3d.system.refusal import Refusal

SIX = "2001:db8::7", ("2001:db8::5", 995)
NOT_SAID = ("", ("", 0))


def said(octets):
    found = parse(octets)
    assert isinstance(found, Header), found
    return found.client, found.local


RIGHT = {
    "a line": (line(), (CLIENT, PLACE)),
    "a line of IPv6": (line(*SIX), SIX),
    "the longest line of IPv4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.254 65535 65535\r\n",
        ("255.255.255.255", ("255.255.255.254", 65535)),
    ),
    "the longest of IPv6": (
        b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b"ffff:" * 8)[:-1], (b"fffe:" * 8)[:-1]),
        ((":".join(["ffff"] * 8)), (":".join(["fffe"] * 8), 65535)),
    ),
    "the shortest": (b"PROXY TCP6 :: :: 0 0\r\n", ("::", ("::", 0))),
    "upper case, and not shortened": (
        b"PROXY TCP6 2001:0DB8:0:0:0:0:0:7 2001:DB8:0:0:0:0:0:5 1 995\r\n",
        SIX,
    ),
    "IPv4 over IPv6": (
        b"PROXY TCP6 ::ffff:192.0.2.7 ::FFFF:cb00:7105 1 110\r\n",
        (CLIENT, PLACE),
    ),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", NOT_SAID),
    "UNKNOWN with addresses": (line().replace(b"TCP4", b"UNKNOWN"), NOT_SAID),
    "UNKNOWN with anything": (b"PROXY UNKNOWN \xff\0  \r x\r\n", NOT_SAID),
    "UNKNOWN of 107 octets": (b"PROXY UNKNOWN " + 91 * b"x" + b"\r\n", NOT_SAID),
    "binary": (binary(), (CLIENT, PLACE)),
    "binary of IPv6": (binary(*SIX), SIX),
    "binary, IPv4 over IPv6": (
        binary("::ffff:192.0.2.7", ("::ffff:203.0.113.5", 110)),
        (CLIENT, PLACE),
    ),
    "binary with what is no TLV": (binary(more=b"\xff\xff"), (CLIENT, PLACE)),
    "with TLS at the balancer": (binary(more=SSL), (CLIENT, PLACE)),
    "as long as can be": (binary(more=(0xFFFF - 12) * b"x"), (CLIENT, PLACE)),
    "LOCAL": (raw(LOCAL, UNSPEC), NOT_SAID),
    "LOCAL with addresses": (raw(LOCAL, TCP4, binary()[16:]), NOT_SAID),
    "LOCAL with anything": (raw(LOCAL, TCP6, b"xyz"), NOT_SAID),
    "an unknown family": (raw(PROXY, UNSPEC), NOT_SAID),
    "an unknown protocol": (raw(PROXY, 0x10, binary()[16:]), NOT_SAID),
    "datagrams": (raw(PROXY, UDP4, binary()[16:]), NOT_SAID),
    "a unix socket": (raw(PROXY, UNIX, 216 * b"/"), NOT_SAID),
}  # fmt: skip
WRONG = {
    "a command": b"CAPA\r\n",
    "lower case": b"proxy TCP4 192.0.2.7 203.0.113.5 1 110\r\n",
    "a hello of TLS": b"\x16\x03\x01\x02\0\x01",
    "another family": line().replace(b"TCP4", b"UDP4"),
    "a family in lower case": line().replace(b"TCP4", b"tcp4"),
    "longer than UNKNOWN": b"PROXY UNKNOWNS\r\n",
    "the other family": line().replace(b"TCP4", b"TCP6"),
    "another one": line(*SIX).replace(b"TCP6", b"TCP4"),
    "two families": line().replace(b"203.0.113.5", b"2001:db8::5"),
    "two spaces": line().replace(b" 110", b"  110"),
    "a tab": line().replace(b" 110", b"\t110"),
    "a space at the end": line().replace(b"\r", b" \r"),
    "one port": b"PROXY TCP4 192.0.2.7 203.0.113.5 110\r\n",
    "three ports": b"PROXY TCP4 192.0.2.7 203.0.113.5 1 2 110\r\n",
    "no client": b"PROXY TCP4  203.0.113.5 1 110\r\n",
    "a name": b"PROXY TCP4 localhost 203.0.113.5 1 110\r\n",
    "three numbers": b"PROXY TCP4 192.0.7 203.0.113.5 1 110\r\n",
    "a zero before": b"PROXY TCP4 192.0.02.7 203.0.113.5 1 110\r\n",
    "a number too large": b"PROXY TCP4 192.0.2.256 203.0.113.5 1 110\r\n",
    "an interface": b"PROXY TCP6 fe80::1%lo fe80::2 1 110\r\n",
    "a NUL": b"PROXY TCP4 192.0.2.7\0 203.0.113.5 1 110\r\n",
    "no ASCII": "PROXY TCP4 192.0.2.\u0667 203.0.113.5 1 110\r\n".encode(),
    "a port too large": line(port=65536),
    "a port far too large": line(port=10**20),
    "a port with a zero before": line(port="01"),
    "a port with a sign": line(port="+1"),
    "a port in superscript": line(port="\u00b2").decode().encode("latin-1"),
    "no port": line(port=""),
    "a line feed alone": line().replace(b"\r", b""),
    "a line feed in it": b"PROXY UNKNOWN \n x\r\n",
    "two headers": 2 * line(),
    "108 octets": b"PROXY UNKNOWN " + 92 * b"x" + b"\r\n",
    "107 octets without an end": b"PROXY UNKNOWN " + 93 * b"x",
    "all of it but too long": b"PROXY UNKNOWN " + 999 * b"x",
    "version 1 in binary": raw(0x11, TCP4, binary()[16:]),
    "version 3": raw(0x31, TCP4, binary()[16:]),
    "another command": raw(0x22, TCP4, binary()[16:]),
    "family 4": raw(PROXY, 0x41, 12 * b"x"),
    "protocol 3": raw(PROXY, 0x13, 12 * b"x"),
    "an impossible LOCAL": raw(LOCAL, 0x44),
    "too short": raw(PROXY, TCP4, binary()[16:-1]),
    "IPv6 in 12 octets": raw(PROXY, TCP6, binary()[16:]),
    "nothing": raw(PROXY, TCP4),
    "the signature of another": SIGNATURE[:-1] + b"\r" + raw(PROXY, UNSPEC)[12:],
}


@pytest.mark.parametrize("how", RIGHT)
def test_a_header(how):
    octets, expected = RIGHT[how]
    assert said(octets) == expected


@pytest.mark.parametrize("how", WRONG)
def test_no_header(how):
    assert isinstance(parse(WRONG[how]), Refusal)


@pytest.mark.parametrize(
    "how", [how for how in WRONG if how != "two headers"]
)  # of which one would be read
def test_whoever_reads_on_as_told_comes_to_the_same(how):
    assert isinstance(read(WRONG[how] + 200 * b"\n")[0], Refusal)


def read(stream):
    """Read as many octets as are missing, again and again, and see what comes of it."""
    taken, calls = 0, 0
    while isinstance(found := parse(stream[:taken]), int):
        assert found > 0
        assert taken < len(stream), "more is asked for than there is"
        taken = min(taken + found, len(stream))
        calls += 1
    return found, taken, calls


@pytest.mark.parametrize("how", RIGHT)
def test_nothing_behind_it_is_asked_for(how):
    octets, expected = RIGHT[how]
    for behind in (b"", b"\r\n", b"USER anna\r\nPASS secret\r\n", octets):
        found, taken, _ = read(octets + behind)
        assert (found.client, found.local) == expected
        assert taken == len(octets)


@pytest.mark.parametrize("how", RIGHT)
def test_a_part_of_it_is_never_taken_for_more_or_less(how):
    octets = RIGHT[how][0]
    for length in range(min(len(octets), 300)):
        missing = parse(octets[:length])
        assert isinstance(missing, int), length
        assert 0 < missing <= len(octets) - length


def test_usual_headers_take_few_calls():
    assert read(binary(more=SSL))[2] <= 3
    assert read(line(*SIX))[2] <= 12
    assert read(line())[2] <= 12


addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
ports = st.integers(0, 65535)


@given(st.data(), st.sampled_from([4, 6]), ports, ports, st.sampled_from([line, binary]))
def test_whatever_a_balancer_says_is_understood(data, version, source, port, write):
    client, place = (str(data.draw(st.ip_addresses(v=version))) for _ in range(2))
    behind = data.draw(st.binary(max_size=20))
    octets = write(client, (place, port), source)
    found, taken, _ = read(octets + behind)
    assert taken == len(octets)
    for shown, meant in ((found.client, client), (found.local[0], place)):
        meant = ipaddress.ip_address(meant)
        assert ipaddress.ip_address(shown) == (getattr(meant, "ipv4_mapped", None) or meant)
    assert found.local[1] == port


@given(st.binary(max_size=300))
def test_any_octets(octets):
    for stream in (octets, b"PROXY " + octets, b"PROXY TCP4 " + octets, SIGNATURE + octets):
        found = parse(stream)
        assert isinstance(found, int | Refusal | Header)
        if isinstance(found, int):
            assert found > 0


@given(st.sampled_from([octets for octets, _ in RIGHT.values()]), st.data())
def test_a_changed_octet(octets, data):
    place = data.draw(st.integers(0, min(len(octets), 120) - 1))
    changed = bytearray(octets)
    changed[place] = data.draw(st.integers(0, 255))
    assert isinstance(parse(bytes(changed)), int | Refusal | Header)


def test_the_helper_writes_what_the_document_has():
    assert line("192.0.2.1", ("192.0.2.2", 443), 56324) == (
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"
    )
    assert proxyheaders.binary("172.19.0.1", ("172.19.0.3", 80), 42578) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a2111000cac130001ac130003a6520050"
    )
