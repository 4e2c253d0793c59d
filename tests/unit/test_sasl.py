"""SASL PLAIN: what is base64, and what is a name and a password."""

import re
from base64 import b64encode
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpop3d.pop3 import authorization

DECODED = [
    (b"", b""),
    (b"AGFubgBzZWNyZXQ=", b"\0ann\0secret"),
    (b"YQ==", b"a"),
    (b"YWI=", b"ab"),
    (b"YWJj", b"abc"),
    (b"+/+/", b"\xfb\xff\xbf"),
    # Set bits that belong to no octet (RFC 4648 section 3.5).
    (b"YR==", b"a"),
    (b"Y/==", b"c"),
    (b"YWJ=", b"ab"),
    (b"YWL=", b"ab"),
]
NO_BASE64 = [
    b"=", b"==", b"====", b"*", b"Y", b"YQ", b"YQ=", b"YQ===", b"YQ==YQ==", b"=YQ=", b"Y=Q=",
    b" YQ==", b"YQ== ", b"Y Q==", b"YQ==\t", b"YQ!=", b"Y*Q==", b"-_-_", b"YQ==\0", b"\xff\xff",
    b"YWJj=", b"YWJjZ", b"YWJj==", b"YWJj===", b"YWJj====", b"YWJj========", b"YQ======",
    b"YWI=====", b"========", b"YQ==YWJj", b"YWI=YWJj", b"YWJj====YWJj", b"====YWJj", b"=YWJj===",
]  # fmt: skip
PLAIN = [
    (b"\0ann\0secret", (b"ann", b"secret")),
    (b"ann\0ann\0secret", (b"ann", b"secret")),
    (b"\0ann@example.org\0two words", (b"ann@example.org", b"two words")),
    (b"\0ann\0", (b"ann", b"")),
    ("\0käthe\0süß".encode(), ("käthe".encode(), "süß".encode())),
    (b"\0ann\0\xff", (b"ann", b"\xff")),
]
NO_PLAIN = {
    "nothing": b"",
    "no separator": b"ann",
    "one separator": b"ann\0secret",
    "a third separator": b"\0ann\0sec\0ret",
    "no name": b"\0\0secret",
    "nothing at all between": b"\0\0",
    "for another": b"root\0ann\0secret",
    "for another in other letters": b"ANN\0ann\0secret",
    "CR in the name": b"\0an\rn\0secret",
    "LF in the name": b"\0an\nn\0secret",
    "CR in the password": b"\0ann\0sec\rret",
    "LF in the password": b"\0ann\0sec\nret",
    "LF in both identities": b"a\n\0a\n\0secret",
}


@pytest.mark.parametrize(("response", "octets"), DECODED)
def test_base64_is_decoded(response, octets):
    assert authorization.decode_base64(response) == octets


@pytest.mark.parametrize("response", NO_BASE64)
def test_what_is_no_base64_is_refused(response):
    assert authorization.decode_base64(response) is None


@settings(max_examples=300)
@given(st.binary(max_size=40), st.integers(1, 12))
def test_no_padding_is_taken_but_the_one_that_is_due(octets, more):
    response = b64encode(octets)
    assert authorization.decode_base64(response + b"=" * more) is None
    for missing in range(1, response.count(b"=") + 1):
        assert authorization.decode_base64(response[:-missing]) is None


@pytest.mark.parametrize("length", [4, 8])
def test_what_is_taken_is_base64_whatever_stands_where(length):
    """All responses of some characters: the grammar of RFC 4648 section 4 decides."""
    grammar = re.compile(rb"(?:[YWQ]{4})*(?:[YWQ]{4}|[YWQ]{3}=|[YWQ]{2}==)?")
    for characters in product(b"YWQ=", repeat=length):
        response = bytes(characters)
        assert (authorization.decode_base64(response) is not None) == bool(
            grammar.fullmatch(response)
        ), response


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_all_octets_survive_base64(octets):
    assert authorization.decode_base64(b64encode(octets)) == octets


@pytest.mark.parametrize(("message", "credentials"), PLAIN)
def test_plain_has_a_name_and_a_password(message, credentials):
    assert authorization.credentials_of(message) == credentials


@pytest.mark.parametrize("message", NO_PLAIN.values(), ids=NO_PLAIN.keys())
def test_a_malformed_plain_message_is_refused(message):
    assert authorization.credentials_of(message) is None


@settings(max_examples=200)
@given(st.binary(max_size=20))
def test_no_message_makes_a_name_with_nul_cr_or_lf(message):
    if credentials := authorization.credentials_of(message):
        name, password = credentials
        assert name
        assert not set(name + password) & set(b"\0\r\n")
