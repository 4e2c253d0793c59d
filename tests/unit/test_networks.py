"""Networks of addresses: how they are written, and who belongs to them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import LEAST, config_of, errors_of, text_of
from tpop3d.config.networks import Networks

WITHIN = {
    "192.0.2.7": (["192.0.2.7"], ["192.0.2.6", "192.0.2.8", "", "unix", "unknown", "pipe", "::1"]),
    "192.0.2.0/24": (["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0"]),
    "192.0.2.128/25": (["192.0.2.128"], ["192.0.2.127"]),
    "0.0.0.0/0": (["0.0.0.0", "255.255.255.255"], ["::", "::1"]),
    "0.0.0.0/1": (["127.255.255.255"], ["128.0.0.0"]),
    "192.0.2.7/32": (["192.0.2.7"], ["192.0.2.6"]),
    "::1": (["::1", "0:0::1"], ["::", "127.0.0.1", "0.0.0.1"]),
    "2001:db8::/32": (["2001:db8::7", "2001:DB8:ffff::"], ["2001:db9::"]),
    "::/0": (["::1", "2001:db8::7"], ["192.0.2.7"]),
    "fe80::/10": (["fe80::1", "fe80::1%eth0", "febf::1"], ["fec0::1"]),
    "10.0.0.0/8 ::1\t192.0.2.7": (["10.9.9.9", "::1", "192.0.2.7"], ["192.0.2.8"]),
}
WRONG = {
    "192.0.2": "'192.0.2'",
    "localhost": "'localhost'",
    "192.0.2.7,192.0.2.8": "'192.0.2.7,192.0.2.8'",
    "192.0.2.0/": "a number of bits, to 32",
    "192.0.2.0/33": "a number of bits, to 32",
    "192.0.2.0/-1": "a number of bits, to 32",
    "192.0.2.0/255.255.255.0": "a number of bits, to 32",
    "2001:db8::/129": "a number of bits, to 128",
    "192.0.2.0/\u0662": "a number of bits, to 32",
    "192.0.2.7/24": "192.0.2.7/24: is no network; 192.0.2.0/24 would be, and 192.0.2.7 one host",
    "2001:db8::7/64": "2001:db8::/64 would be, and 2001:db8::7 one host",
    "[::1]": "'[::1]'",
    "fe80::1%eth0": "'fe80::1%eth0'",
    "::ffff:192.0.2.0/120": "must be written as IPv4",
    "10.0.0.0/8 x": "'x'",
    "/8": "'/8'",
}


@pytest.mark.parametrize("text", WITHIN)
def test_who_is_within(text):
    inside, outside = WITHIN[text]
    networks = config_of(proxy_protocol_from=text).proxy_protocol_from
    assert [one for one in inside if one not in networks] == []
    assert [one for one in outside if one in networks] == []


def test_without_any_there_is_nothing_to_ask():
    assert config_of().proxy_protocol_from is None
    assert config_of({"proxy-protocol-from": ""}).proxy_protocol_from is None


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_form_is_an_error_with_file_line_and_key(text):
    (error,) = errors_of(text_of(LEAST) + f"proxy-protocol-from: {text}\n")
    assert error.startswith(f"test.conf:{len(LEAST) + 1}: proxy-protocol-from: ")
    assert WRONG[text] in error


@given(st.sampled_from([4, 6]), st.data())
def test_it_agrees_with_the_standard_library(version, data):
    made = {4: ipaddress.IPv4Network, 6: ipaddress.IPv6Network}[version]
    width = 32 if version == 4 else 128
    first = data.draw(st.ip_addresses(v=version))
    network = made((first, data.draw(st.integers(0, width))), strict=False)
    if network.network_address.packed.startswith(10 * b"\0" + b"\xff\xff"):
        return
    address = data.draw(st.ip_addresses(v=version) | st.just(first) | st.sampled_from(
        [network[0], network[-1]]))  # fmt: skip
    assert (str(address) in Networks(str(network))) == (address in network)


@given(st.text(max_size=30))
def test_no_address_is_in_none(text):
    assert text not in Networks("192.0.2.7 2001:db8::7")
