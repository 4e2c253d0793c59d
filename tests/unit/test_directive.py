"""Every directive: its default, values it takes and values it refuses."""

import grp
import pwd

import pytest

from authkit import LEAST, config_of, errors_of, text_of
from mailsite import MAIL_USER
from tpop3d.config.directive import Directive, group_id, positive, size, size_text, user_id
from tpop3d.settings import DIRECTIVES, Config

DEFAULTS = {
    "listen-address": [],
    "proxy-protocol-from": None,
    "max-children": 16,
    "max-children-per-source": None,
    "gatekeeper-user": "tpop3d",
    "gatekeeper-connections": 100,
    "shutdown-seconds": 10,
    "timeout-seconds": 600,
    "login-seconds": 60,
    "lock-timeout-seconds": 10,
    "session-memory": 512 << 20,
    "auth-failure-delay-seconds": 3,
    "auth-timeout-seconds": 30,
    "auth-drivers": [],
    "append-domain": False,
    "strip-domain": False,
    "domain-separators": "@%!:",
    "lowercase-user": False,
    "plaintext-logins": "local",
    "tls-mode": "stls",
    "tls-certificate": [],
    "tls-private-key": [],
    "tls-min-version": "1.2",
    "tls-ciphers": "ECDHE+AESGCM:ECDHE+CHACHA20",
    "apop": "auto",
    "apop-only": False,
    "permit-empty-password": False,
    "mailbox": "bsd:/var/mail/$(user)",
    "mailspool-no-dotfile-locking": False,
    "mailspool-dotfile-locking": "try",
    "mailspool-flock": True,
    "mailspool-index": True,
    "uidl-style": "tpop3d",
    "no-commit-on-early-close": False,
    "state-directory": "/var/lib/tpop3d",
    "log-facility": "mail",
    "log-level": "info",
    "log-stderr": False,
}

NOT_POSITIVE = [
    "",
    "0",
    "-1",
    "+1",
    "1.5",
    "1 0",
    "one",
    "0x10",
    "1e3",
    "\u0663",
    "\u00b2",
    "1_0",
    "9" * 10,
]
POSITIVE = {"1": 1, "2": 2, "016": 16, "86400": 86400, "9" * 9: 999999999}
NOT_BOOLEAN = ["", "y", "on", "1", "0", "yes no", "oui", "yes,"]
BOOLEAN = {"yes": True, "true": True, "no": False, "false": False, "YES": True, "False": False}
NOT_ABSOLUTE = ["", "var/mail", "./x", "~/x", "$(home)/x"]
NOT_FILES_OF_TLS = ["x.pem", "./x.pem", "/x.pem y.pem", "$CREDENTIALS_DIRECTORY", "$HOME/x",
                    "$CREDENTIALS_DIRECTORYx/y", "$(home)/x"]  # fmt: skip
NUMBERS = [
    "max-children", "gatekeeper-connections", "shutdown-seconds", "timeout-seconds",
    "login-seconds", "lock-timeout-seconds", "auth-timeout-seconds",
]  # fmt: skip
BOOLEANS = [key for key, value in DEFAULTS.items() if isinstance(value, bool)]

RIGHT = {
    **dict.fromkeys(NUMBERS, POSITIVE),
    **dict.fromkeys(BOOLEANS, BOOLEAN),
    "auth-failure-delay-seconds": {"0": 0, **POSITIVE},
    "max-children-per-source": {"0": 0, "half": None, **POSITIVE},
    "auth-drivers": {"": [], "flatfile": ["flatfile"]},
    "gatekeeper-user": {"nobody": "nobody", "65534": "65534", "no-such-user": "no-such-user"},
    "domain-separators": {"@": "@", "+": "+", "@%!:": "@%!:", "-._": "-._"},
    "mailbox": {"/m/$(user)": "/m/$(user)", "bsd:/m /n": "bsd:/m /n"},
    "state-directory": {"/var/lib/x": "/var/lib/x", "/x/": "/x", "/": "/", "/a b": "/a b"},
    "apop": {"yes": "yes", "no": "no", "auto": "auto", "Auto": "auto"},
    "plaintext-logins": {"yes": "yes", "no": "no", "local": "local", "LOCAL": "local"},
    "tls-mode": {"none": "none", "stls": "stls", "STLS": "stls"},
    "tls-certificate": {"/x.pem": ["/x.pem"], "/a  /b": ["/a", "/b"],
                        "$CREDENTIALS_DIRECTORY/x": ["$CREDENTIALS_DIRECTORY/x"]},
    # As many as there are certificates: test_settings.
    "tls-private-key": {"": []},
    "tls-min-version": {"1.2": "1.2", "1.3": "1.3"},
    "tls-ciphers": {"HIGH:!aNULL": "HIGH:!aNULL", "no such": "no such"},  # OpenSSL knows
    "log-facility": {**{f"local{n}": f"local{n}" for n in range(8)}, "mail": "mail",
                     "daemon": "daemon", "auth": "auth", "user": "user", "MAIL": "mail"},
    "uidl-style": {one: one for one in ("tpop3d", "popa3d", "dovecot", "x-uidl")},
    "mailspool-dotfile-locking": {one: one for one in ("try", "require", "no")},
    "session-memory": {"64M": 64 << 20, "65536k": 64 << 20, "2G": 2 << 30, "67108864": 64 << 20,
                       "100000001": 100_000_001, "1048576G": 1 << 50},
    "log-level": {level: level for level in
                  ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")},
}  # fmt: skip
WRONG = {
    **dict.fromkeys(NUMBERS, NOT_POSITIVE),
    **dict.fromkeys(BOOLEANS, NOT_BOOLEAN),
    "auth-failure-delay-seconds": [one for one in NOT_POSITIVE if one != "0"],
    "max-children-per-source": [
        *(one for one in NOT_POSITIVE if one != "0"), "Half", "a half", "1/2",
    ],
    "auth-drivers": ["flatfile flatfile", "pam mysql pam"],
    "gatekeeper-user": [],  # who it is, is seen when a door opens
    "domain-separators": ["", "a", "@x", "@ %", "1", "é", "@\t%"],
    "mailbox": ["", "mail/x", "maildir:/x", "/m/$(nobody)", "/m/$(user", "/m x"],
    "state-directory": NOT_ABSOLUTE,
    "apop": ["", "true", "only", "yes no"],
    "plaintext-logins": ["", "true", "never", "yes no"],
    "tls-mode": ["", "yes", "starttls", "immediate stls"],
    "tls-certificate": NOT_FILES_OF_TLS,
    "tls-private-key": NOT_FILES_OF_TLS,
    "tls-min-version": ["", "1", "1.0", "1.1", "1.4", "TLSv1.2", "1.2 1.3"],
    "tls-ciphers": [],
    "log-facility": ["", "post", "local8", "mail daemon"],
    "uidl-style": ["", "qpopper", "dovecot popa3d"],
    "mailspool-dotfile-locking": ["", "yes", "try require"],
    "session-memory": ["", "0", "63M", "512", "67108863", "512MB", "512 M", "512KK", "M", "-1G",
                       "1.5G", "0x40M", "\N{ARABIC-INDIC DIGIT NINE}G", "1048577G", "9" * 100],
    "log-level": ["", "loud", "7", "info debug"],
    "listen-address": ["a:b:c"],  # and more: test_addresses
    "proxy-protocol-from": ["a:b:c"],  # and more: test_networks
}  # fmt: skip


def test_the_directives_are_those_of_the_documents():
    assert set(DIRECTIVES) == set(DEFAULTS)
    elsewhere = {"listen-address", "proxy-protocol-from"}
    assert set(RIGHT) | elsewhere == set(DEFAULTS) == set(WRONG)


def test_the_annotations_are_the_directives():
    names = {key.replace("-", "_") for key in DIRECTIVES} | {
        "drivers",
        "effective",
        "lines",
        "warnings",
    }
    assert set(Config.__annotations__) == names


def test_the_annotations_are_the_types():
    config = config_of(listen_address="127.0.0.1")
    for name, annotation in Config.__annotations__.items():
        kinds = [kind.partition("[")[0] for kind in annotation.split(" | ")]
        found = getattr(config, name)
        assert ("None" if found is None else type(found).__name__) in kinds


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_default(key):
    value = getattr(config_of({key: None}), key.replace("-", "_"))
    assert (str(value) if key == "mailbox" else value) == DEFAULTS[key]
    # Written into a file, the default is the same value.
    written = getattr(config_of({key: DIRECTIVES[key].default}), key.replace("-", "_"))
    assert (str(written) if key == "mailbox" else written) == DEFAULTS[key]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [(key, text, value) for key, values in RIGHT.items() for text, value in values.items()],
)
def test_a_right_value(key, text, value):
    found = getattr(config_of({key: text}), key.replace("-", "_"))
    assert (str(found) if key == "mailbox" else found) == value
    assert type(found) is type(value) or key == "mailbox"


@pytest.mark.parametrize(
    ("key", "text"), [(key, text) for key, values in WRONG.items() for text in values]
)
def test_a_wrong_value_is_an_error_with_file_line_and_key(key, text):
    errors = errors_of(text_of(LEAST) + f"{key}: {text}\n")
    assert len(errors) == 1
    assert errors[0].startswith(f"test.conf:{len(LEAST) + 1}: {key}: ")


@pytest.mark.parametrize("text", [f"{MAIL_USER.pw_uid}", MAIL_USER.pw_name])
def test_a_user_by_name_and_number(text):
    user = user_id(text)
    assert (user.name, user.uid, user.gid) == MAIL_USER[:1] + MAIL_USER[2:4]
    assert user.home == MAIL_USER.pw_dir.encode()


NO_IDS = ["", "no-such-name-here", "-1", " ", "0x0", "4294967295", "9" * 40, "9" * 5000, "a\0b"]


@pytest.mark.parametrize("text", NO_IDS)
def test_no_user(text):
    assert text not in {entry.pw_name for entry in pwd.getpwall()}
    with pytest.raises(ValueError):
        user_id(text)


@pytest.mark.parametrize("text", [*NO_IDS, "4294967296"])
def test_no_group(text):
    with pytest.raises(ValueError):
        group_id(text)


def test_a_group_by_name_and_number():
    group = next(group for group in grp.getgrall() if group.gr_gid)
    assert group_id(group.gr_name).gid == group_id(str(group.gr_gid)).gid == group.gr_gid
    assert group_id("54321").gid == 54321  # a group need not have a name


def test_drivers_declare_directives():
    for driver in config_of({"auth-passwd-enable": "yes"}).drivers.values():
        assert all(isinstance(one, Directive) for one in driver.directives.values())


@pytest.mark.parametrize(
    "key",
    [
        "auth-flatfile-mailbox",
        "auth-flatfile-mail-group",
        "auth-passwd-mailspool-dir",
        "auth-passwd-mail-group",
    ],
)
def test_a_drivers_directive_with_a_wrong_value(key):
    errors = errors_of(text_of(LEAST) + f"auth-passwd-enable: yes\n{key}: no such thing\n")
    assert len(errors) == 1
    assert errors[0].startswith(f"test.conf:{len(LEAST) + 2}: {key}: ")


def test_a_number_that_is_wrong_is_quoted():
    with pytest.raises(ValueError, match="'seven'"):
        positive("seven")


@pytest.mark.parametrize("text", ["1", "1023", "1K", "1025", "64M", "1000M", "2G", "1536M"])
def test_a_size_is_told_as_it_is_written(text):
    assert size_text(size(text)) == text


def test_what_is_wrong_with_a_size_is_said():
    assert "must be a size like 512M (K, M, G, or octets), not '512MB'" in str(
        errors_of("session-memory: 512MB\n")
    )
    assert "must be at least 64M, not '1000K'" in str(errors_of("session-memory: 1000K\n"))
