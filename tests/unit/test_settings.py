"""The configuration file: its format, and that every error is told with file, line and key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import LEAST, config_of, errors_in, errors_of, text_of
from tpop3d.configuration import WrongConfiguration, load, read
from tpop3d.settings import DIRECTIVES

LINES = text_of(LEAST)


def config(content):
    return read(LINES + content, "test.conf")


def errors(content):
    """The errors of a file that is otherwise right; the line numbers count from `content` on."""
    return [error.removeprefix("test.conf:") for error in errors_of(content + "\n" + LINES)]


FORMS = [
    "max-children: 7",
    "  \t max-children: 7",
    "max-children:7",
    "max-children :\t7  \t",
    "max-children: 7 # seven",
    "max-children: 7# seven",
    "# six\n\n   # more\nmax-children: 7\n#",
    "#max-children: 6\nmax-children: 7",
    "max-children: 7\r",
    "\r\nmax-children: 7\r\n\r\n",
    "max-children: \\\n7",
    "max-\\\nchildren: 7",
    "max-children: \\\r\n7\r\n",
    "max-children: \\\n\\\n   7",
    "max-children: \\\n7 # seven \nlog-level: debug",
]


@pytest.mark.parametrize("content", FORMS)
def test_one_directive_in_many_forms(content):
    assert config(content).max_children == 7


def test_without_a_last_newline():
    assert read(LINES + "max-children: 7", "x").max_children == 7
    assert read(LINES.rstrip("\n"), "x").max_children == 16


def test_a_value_may_be_empty_and_hold_colons():
    assert config("listen-address:").listen_address == []
    assert config("domain-separators: :").domain_separators == ":"
    assert config("listen-address: [::1]:110").listen_address[0].host == "::1"


def test_a_continued_value_joins_without_a_line_end():
    assert str(config("mailbox: /a/$(user) \\\n  /b/$(user)").mailbox).split() == [
        "/a/$(user)",
        "/b/$(user)",
    ]
    assert str(config("mailbox: /a/$(us\\\ner)").mailbox) == "/a/$(user)"


def test_a_line_after_a_continued_one_keeps_its_number():
    assert errors("max-children: \\\n\\\n7\nx-y: 1") == ["4: x-y: unknown directive"]
    assert errors("max-children: \\\n\\\nseven")[0].startswith("1: max-children: ")


def test_octets_that_are_no_text_are_kept(tmp_path):
    file = tmp_path / "conf"
    file.write_bytes(LINES.encode() + b"mailbox: /m\xe4il/$(user)\n# \xff\xfe\n")
    assert load(str(file)).mailbox.paths({"user": b"ann"}) == ["/m\udce4il/ann"]


@pytest.mark.parametrize("line", [b"\xff: 1", b"max-children: \xff", b"\xff", b"log-level: \xe4"])
def test_octets_that_are_no_text_may_be_an_error(tmp_path, line):
    file = tmp_path / "conf"
    file.write_bytes(line + b"\n" + LINES.encode())
    assert [error.startswith(f"{file}:1: ") for error in errors_in(file)] == [True]


WRONG = [
    ("max-children 7", "1: max-children: "),
    ("max-children = 7", "1: max-children: "),
    ("yes", "1: must be"),
    (": 7", "1: "),
    ("max children: 7", "1: must be"),
    ("max-children 7", "1: max-children: must be"),
    ("Max-Children: 7", "1: Max-Children: "),
    ("max_children: 7", "1: max_children: "),
    ("maxchildren: 7", "1: maxchildren: "),
    ("max-children: 7\nmax-children: 7", "2: max-children: given before"),
    ("max-children: 7\n#\nmax-children: 8", "3: max-children: given before"),
    ("\ufeffmax-children: 7", "1: must be"),
    ("auth-flatfile: yes", "1: auth-flatfile: "),
    ("auth-flatfile-: yes", "1: auth-flatfile-: "),
    ("auth-nobody-enable: yes", "1: auth-nobody-enable: "),
    ("auth-nobody-enable: no", "1: auth-nobody-enable: "),
    ("auth-: yes", "1: auth-: "),
    ("auth--enable: yes", "1: auth--enable: "),
    ("auth: yes", "1: auth: "),
    ("-: yes", "1: -: "),
    ("auth-passwd-passwd-file: /x", "1: auth-passwd-passwd-file: "),
    ("auth-passwd-mail-group: no-such-group", "1: auth-passwd-mail-group: "),
]


@pytest.mark.parametrize(("content", "start"), WRONG)
def test_an_error_has_file_line_and_key(content, start):
    found = errors(content)
    assert len(found) == 1
    assert found[0].startswith(start)
    assert len(found[0]) > len(start)


def test_an_unknown_driver_is_named_with_those_there_are():
    error = errors("auth-nobody-enable: yes")[0]
    assert "'nobody'" in error
    assert "built in are pam, passwd, mysql, flatfile" in error


@pytest.mark.parametrize(
    ("name", "meant"),
    [("passwrd", "passwd"), ("flat", "flatfile"), ("Mysql", "mysql"), ("nobody", None)],
)
def test_a_driver_whose_name_is_like_one_is_that(name, meant):
    (error,) = errors(f"auth-{name}-enable: yes")
    assert error.partition("flatfile")[2] == (f"; did you mean {meant}?" if meant else "")


def test_a_file_that_ends_within_a_line_is_an_error():
    start = f"test.conf:{len(LEAST) + 1}: max-children: "
    assert errors_of(LINES + "max-children: 7\\") == [start + "is continued, and nothing follows"]
    assert errors_of(LINES + "max-children: 7\\\n")[0].startswith(start)


def test_all_errors_are_found_in_the_order_of_the_file():
    content = """\
max-children: none
auth-flatfile-enable: yes
colour: red
timeout-seconds: 0
auth-flatfile-mail-user: nobody-at-all
no colon
mailbox: maildir:/x
log-level: loud
log-level: info
auth-passwd-mail-group: no-such-group
auth-nobody-enable: yes
listen-address: a:b:c
"""
    found = errors_of(content)
    numbers = [int(error.split(":")[1]) for error in found]
    assert numbers == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    keys = [error.split(": ")[1] for error in found]
    assert keys[:4] == ["max-children", "colour", "timeout-seconds", "auth-flatfile-mail-user"]


def test_what_contradicts_is_an_error():
    assert "auth-" in errors_of("")[0]
    assert "auth-" in errors_of("auth-flatfile-enable: no\nauth-passwd-enable: false\n")[0]
    found = errors_of("auth-passwd-enable: yes\napop-only: yes\n")
    assert len(found) == 1
    assert "apop-only: " in found[0]
    assert config("apop-only: yes").apop_only  # a flat file may hold plain text


BAD_TLS = {
    "immediate without a certificate": (
        "log-level: info\ntls-mode: immediate", "2: tls-mode: there is no tls-certificate"
    ),
    "a key too many": (
        "tls-certificate: /c\ntls-private-key: /k /l",
        "2: tls-private-key: names 2 files, and tls-certificate 1",
    ),
    "a key too few": (
        "tls-private-key: /k\ntls-certificate: /c /d /e",
        "1: tls-private-key: names 1 files, and tls-certificate 3",
    ),
    "a key for nothing": (
        "tls-private-key: /k", "1: tls-private-key: names 1 files, and tls-certificate 0"
    ),
    "an address without a certificate": (
        "\nlisten-address: a b;tls=stls c;tls=immediate,/c",
        "2: listen-address: b has no certificate, and there is no tls-certificate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TLS)
def test_tls_that_contradicts_is_an_error(what):
    content, error = BAD_TLS[what]
    assert errors(content) == [error]


def test_of_wrong_tls_only_what_is_wrong_is_told():
    """What follows from it would only be noise."""
    assert len(errors("tls-mode: immediate\ntls-certificate: c")) == 1
    assert len(errors("listen-address: a;tls=stls b:c:d")) == 1
    assert len(errors("listen-address: a;tls=stls b;tls=stls")) == 2


def test_tls_is_no_error_where_nobody_wants_it():
    for content in ("tls-mode: stls", "tls-mode: none\ntls-certificate: /c", "tls-ciphers: x"):
        assert config(content)
    assert config("tls-mode: none\ntls-certificate: /c").tls.mode == "none"
    assert config("").tls.mode == "none"
    assert config("tls-certificate: /c").tls.mode == "stls"


def test_a_driver_that_is_off_is_still_checked():
    found = errors("auth-passwd-enable: no\nauth-passwd-mail-group: no-such-group")
    assert [error.split(": ")[1] for error in found] == ["auth-passwd-mail-group"]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    assert errors_in(tmp_path / "missing") == [f"{tmp_path}/missing: No such file or directory"]
    assert errors_in(tmp_path) == [f"{tmp_path}: Is a directory"]


def test_drivers_are_asked_in_the_order_of_the_documentation():
    passwd, flatfile = "auth-passwd-enable: yes\n", LINES
    for content in (passwd + flatfile, flatfile + passwd):
        assert list(read(content, "x").drivers) == ["passwd", "flatfile"]


def test_only_what_is_enabled_is_a_driver():
    assert list(config("auth-passwd-enable: no").drivers) == ["flatfile"]
    assert sorted(config("auth-passwd-enable: yes").drivers) == ["flatfile", "passwd"]


ADDRESSES = "192.0.2.1(one.example) [2001:db8::1]:1110(two.example) 0.0.0.0:995(all.example) \
192.0.2.9"
LOCAL = [
    ("192.0.2.1", 110, b"one.example"),
    ("192.0.2.1", 111, b""),
    ("192.0.2.2", 110, b""),
    ("2001:db8::1", 1110, b"two.example"),
    ("2001:db8::1", 110, b""),
    ("198.51.100.7", 995, b"all.example"),
    ("192.0.2.9", 110, b""),
    ("", 0, b""),
]


@pytest.mark.parametrize(("host", "port", "domain"), LOCAL)
def test_the_domain_is_that_of_the_address(host, port, domain):
    assert config(f"listen-address: {ADDRESSES}").local_domain(host, port) == domain


@pytest.mark.parametrize(
    ("word", "host"),
    [
        ("localhost", "127.0.0.1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("[::]", "192.0.2.1"),
    ],
)
def test_the_domain_is_found_however_the_address_is_spelled(word, host):
    assert config(f"listen-address: {word}(a.example)").local_domain(host, 110) == b"a.example"


NO_NAMES = ["x" * 64, "a..example", ".example", "a." + "x" * 64 + ".example", "\u200b", "\xad",
            "\xfc" * 60, "a..\xe4.example", "\ud7ff\u0378\udc80"]  # fmt: skip


@pytest.mark.parametrize("host", NO_NAMES)
def test_a_host_that_no_nameserver_can_be_asked_for_is_an_error(host):
    """Logins would be internal errors: getaddrinfo(3) is not even called."""
    (error,) = errors(f"append-domain: yes\nlisten-address: {host}(a.example)")
    assert "is no name of a host" in error


@pytest.mark.parametrize("host", ["b\xfccher.example", "a.example.", "x" * 63, "[::ffff:1.2.3.4]"])
def test_a_host_that_one_can_be_asked_for_is_none(host):
    assert config(f"listen-address: {host}(a.example)")


words = st.text(st.characters(codec="utf-8", exclude_characters="\n\r#\\"), max_size=20)


keys = st.sampled_from([*DIRECTIVES, *LEAST, "x", "auth-x-y", "", "a b"])


@given(st.lists(st.tuples(keys, words)))
def test_any_file_is_a_configuration_or_a_list_of_errors(lines):
    try:
        config = read("".join(f"{key}: {value}\n" for key, value in lines), "test.conf")
    except WrongConfiguration as wrong:
        errors = wrong.problems
    else:
        assert config.drivers
        return
    assert errors
    assert all(error.startswith("test.conf:") for error in errors)


@given(st.binary(max_size=60))
def test_any_octets_at_all_are_read(octets):
    content = octets.decode("utf-8", "surrogateescape")
    assert errors_of(content)


def test_every_value_is_there_and_drivers_know_the_general_mailbox():
    config = config_of()
    assert all(hasattr(config, key.replace("-", "_")) for key in DIRECTIVES)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("listen-adress", "listen-address"), ("max_children", "max-children"),
        ("Mailbox", "mailbox"), ("auth-flatfile-passwdfile", "auth-flatfile-passwd-file"),
        ("tls-certificates", "tls-certificate"), ("colour", None),
    ],
)  # fmt: skip
def test_an_unknown_directive_says_which_one_was_meant(key, meant):
    (error,) = errors(f"{key}: x")
    ending = "unknown directive" if meant is None else f"unknown directive; did you mean {meant}?"
    assert error.endswith(f"{key}: {ending}")
