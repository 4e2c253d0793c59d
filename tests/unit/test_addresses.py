"""`listen-address`: where to listen, for which domain, with which TLS; and who is local."""

import pytest

from authkit import LEAST, config_of, errors_of, text_of
from tpop3d.config.addresses import PLAIN, Tls, addresses, host_and_port, is_local, located

RIGHT = [
    ("127.0.0.1", [("127.0.0.1", 110, "")]),
    ("mail.example.org:1110", [("mail.example.org", 1110, "")]),
    ("0.0.0.0:pop3", [("0.0.0.0", 110, "")]),
    ("0.0.0.0:pop-3", [("0.0.0.0", 110, "")]),
    ("0.0.0.0:pop3s", [("0.0.0.0", 995, "")]),
    ("host:0", [("host", 0, "")]),
    ("host:0(example.org);tls=immediate", [("host", 0, "example.org")]),
    ("host:65535(example.org)", [("host", 65535, "example.org")]),
    ("host(example.org)", [("host", 110, "example.org")]),
    ("[::1]", [("::1", 110, "")]),
    ("[::1]:1(a.example)", [("::1", 1, "a.example")]),
    ("[2001:db8::1](a.example)", [("2001:db8::1", 110, "a.example")]),
    ("a:1  b:2\t[::]:3", [("a", 1, ""), ("b", 2, ""), ("::", 3, "")]),
    ("", []),
    ("host;tls=immediate", [("host", 995, "")]),
    ("host;tls=stls", [("host", 110, "")]),
    ("host:110;tls=immediate", [("host", 110, "")]),
    ("[::1](a.example);tls=immediate,/c", [("::1", 995, "a.example")]),
]


@pytest.mark.parametrize(("text", "expected"), RIGHT)
def test_hosts_ports_and_domains(text, expected):
    assert [(one.host, one.port, one.domain) for one in addresses(text)] == expected


WRONG = [
    ":110", "[::1", "::1", "2001:db8::1:110", "host:", "host:65536", "host:-1",
    "host:no-such-service", "host(", "host()", "host(x", "host(x)y", "[]", "[::1]110",
    "[::1]x:110", "[::1]:", "a b:c", "host:\u0661\u0661\u0660", "(x)", ";tls=stls",
    # TLS
    "host;", "host; x", "host;stls", "host;tls", "host;tls=", "host;tls=yes", "host;TLS=stls",
    "host;tls=stls;x", "host;tls=stls(x)", "host;tls=stls,", "host;tls=stls,x.pem",
    "host;tls=stls,/c,", "host;tls=stls,/c,k", "host;tls=stls,/c,/k,/x", "host;tls=none,/c",
    "host;tls=stls,$HOME/c", "host;tls=immediate,,/k", "host;tls=immediate:995",
]  # fmt: skip


# What is no host, and passed for one until the server was started.
NO_HOSTS = {
    "110": "no port alone: 0.0.0.0:110 [::]:110",
    "995;tls=none": "no port alone: 0.0.0.0:995",
    "lo": "lo is a network interface; give its address",
    "lo:110": "lo is a network interface; give its address",
    "/run/x": "no path",
    "127.0.0.1/8": "no path",
    "192.0.2.300": "192.0.2.300 is no address of IPv4",
    "192.0.2": "192.0.2 is no address of IPv4",
    "192.0.2.1.": "192.0.2.1. is no address of IPv4",
    "[192.0.2.1]:110": "192.0.2.1 is no address of IPv6",
    "[2001:db8::x]": "2001:db8::x is no address of IPv6",
    "*": "no address has an asterisk; all of this host's are 0.0.0.0 and [::]",
    "*:110": "no address has an asterisk",
    "127.0.0.1,127.0.0.2": "addresses are separated by blanks",
    "127.0.0.1:110, 127.0.0.2": "there is no port '110,'",
    "a.example,": "addresses are separated by blanks",
    '"127.0.0.1"': "is no name of a host",
    "pop3:": "has no port",
    ":110": "has no host; all of this one's are 0.0.0.0:110 [::]:110",
    "$HOST": "is no name of a host",
    "tcp://127.0.0.1": "there is no port '//127.0.0.1'",
}


@pytest.mark.parametrize("text", NO_HOSTS)
def test_what_is_no_host_is_told_as_what_it_is(text):
    (error,) = errors_of(text_of(LEAST) + f"listen-address: {text}\n")
    assert error.startswith(f"test.conf:{len(LEAST) + 1}: listen-address: ")
    assert NO_HOSTS[text] in error


@pytest.mark.parametrize(
    "text", ["[fe80::1%lo]:110", "0.0.0.0", "3com.example.org", "mail.1", "a_b"]
)
def test_what_may_be_a_host_is_none_of_these(text):
    assert len(addresses(text)) == 1


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_form_is_an_error_with_file_line_and_key(text):
    errors = errors_of(text_of(LEAST) + f"listen-address: {text}\n")
    assert len(errors) == 1
    assert errors[0].startswith(f"test.conf:{len(LEAST) + 1}: listen-address: ")


DEFAULT = {"tls-certificate": "/c /d", "tls-private-key": "/k /l"}
PAIRS = (("/c", "/k"), ("/d", "/l"))
SETTLED = {
    # Without a certificate there is no TLS, and no error.
    ("host", ()): ("none", (), 110),
    ("host;tls=none", ()): ("none", (), 110),
    ("host;tls=stls,/x", ()): ("stls", (("/x", "/x"),), 110),
    ("host;tls=immediate,/x,/y", ()): ("immediate", (("/x", "/y"),), 995),
    ("host", ("stls",)): ("stls", PAIRS, 110),
    ("host", ("none",)): ("none", (), 110),
    ("host", ("immediate",)): ("immediate", PAIRS, 995),
    ("host:110", ("immediate",)): ("immediate", PAIRS, 110),
    # What the address says goes before what the configuration says.
    ("host;tls=none", ("stls",)): ("none", (), 110),
    ("host;tls=none", ("immediate",)): ("none", (), 110),
    ("host;tls=stls", ("immediate",)): ("stls", PAIRS, 110),
    ("host;tls=stls", ("none",)): ("stls", PAIRS, 110),
    ("host;tls=immediate", ("stls",)): ("immediate", PAIRS, 995),
    ("host;tls=immediate,/x,/y", ("none",)): ("immediate", (("/x", "/y"), *PAIRS), 995),
    ("host;tls=stls,$CREDENTIALS_DIRECTORY/x", ("stls",)): (
        "stls", (("$CREDENTIALS_DIRECTORY/x",) * 2, *PAIRS), 110,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "mode"), SETTLED)
def test_the_tls_of_an_address_is_its_own_before_that_of_all(text, mode):
    settings = DEFAULT | {"tls-mode": mode[0]} if mode else {}
    (address,) = config_of({"listen-address": text} | settings).listen_address
    found = address.tls.mode, address.tls.pairs, address.port
    assert found == SETTLED[text, mode]


def test_a_certificate_may_hold_its_key():
    (address,) = config_of(listen_address="host", tls_certificate="/c /d").listen_address
    assert address.tls.pairs == (("/c", "/c"), ("/d", "/d"))


def test_several_addresses_have_each_their_own():
    text = "a;tls=immediate,/x b c:3;tls=none"
    found = config_of({"listen-address": text} | DEFAULT).listen_address
    assert [(one.port, one.tls.mode, len(one.tls.pairs)) for one in found] == [
        (995, "immediate", 3), (110, "stls", 2), (3, "none", 0),
    ]  # fmt: skip


def test_an_address_is_settled_without_the_other_being_changed():
    one, other = addresses("a b")
    one.settle(Tls("immediate", (("/c", "/k"),)))
    assert (one.port, other.port, other.tls) == (995, 110, None)
    assert PLAIN.pairs == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", ("a", "")), ("a:b", ("a", "b")), ("[::1]", ("::1", "")), ("[::1]:2", ("::1", "2"))],
)
def test_a_place_has_a_host_and_perhaps_a_port(text, expected):
    assert host_and_port(text) == expected


def test_credentials_are_found_where_systemd_says(monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    assert located("$CREDENTIALS_DIRECTORY/tls.key") == "/run/credentials/x/tls.key"
    assert located("/etc/$CREDENTIALS_DIRECTORY/x") == "/etc/$CREDENTIALS_DIRECTORY/x"


def test_credentials_without_systemd_are_an_error_and_other_files_none(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert located("/etc/x.pem") == "/etc/x.pem"
    with pytest.raises(ValueError, match=r"^\$CREDENTIALS_DIRECTORY/k: .*LoadCredential="):
        located("$CREDENTIALS_DIRECTORY/k")


LOCAL = ["unix", "pipe", "::1", "127.0.0.1", "127.255.0.9"]
REMOTE = ["192.0.2.1", "10.0.0.1", "::", "::2", "2001:db8::127.0.0.1", "1.127.0.0", "unknown", "",
          "12.7.0.1", "fe80::1"]  # fmt: skip


@pytest.mark.parametrize("client", LOCAL + REMOTE)
def test_who_is_on_this_host(client):
    assert is_local(client) is (client in LOCAL)
    for setting, expected in (("yes", True), ("no", False), ("local", client in LOCAL)):
        assert config_of(plaintext_logins=setting).takes_plaintext(client) is expected
