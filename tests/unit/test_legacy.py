"""Configurations of tpop3d 1.5.5, the C program: all directives are known, ignored or refused."""

import pytest

from authkit import LEAST, but_for_syslogd, config_of, errors_of, foreign_driver, text_of, tpop3d
from mailsite import ENVIRONMENT, MAIL_USER
from test_check_config import DRIVER
from tpop3d.config import legacy
from tpop3d.configuration import WrongConfiguration, read

KNOWN, IGNORED, UNSUPPORTED = "known", "ignored", "unsupported"


def words(text):
    return text.split()


SQL = ("enable", "username", "password", "database", "hostname", "mail-group", "pass-query",
       "apop-query", "onlogin-query")  # fmt: skip
# All that the C program took, with whatever it was built.
GENERAL = words("""
    listen-address max-children append-domain strip-domain timeout-seconds tcp-send-buffer
    log-facility log-stderr log-level apop-only mailbox no-detach permit-empty-password
    permit-empty-passwords onlogin-child-wait log-bad-passwords no-commit-on-early-close
    lowercase-user lowercase-mailbox uidl-style domain-separators mailspool-index
    mailspool-no-dotfile-locking tcp-wrappers-name drac-server whoson-enable
    maildir-exclusive-lock maildir-recursion maildir-ignore-folders maildir-evaluate-filename
    maildir-size-string tls-no-bug-workarounds authcache-enable authcache-use-client-host
    authcache-entry-lifetime
""")
DRIVERS = {
    "pam": words("enable facility mailbox mail-user mail-group"),
    "passwd": words("enable mailbox mail-group"),
    "mysql": SQL,
    "pgsql": SQL,
    "ldap": words(
        "enable url searchdn password use-tls filter scope mailbox mailbox-attr mboxtype-attr"
        " mail-user mail-user-attr mail-group mail-group-attr"
    ),
    "other": words("enable program user group timeout"),
    "perl": words("enable start finish apop pass onlogin"),
    "flatfile": words("enable mail-user mail-group passwd-file"),
    "gdbm": words("enable mail-user mail-group passwd-file persistent"),
    "cdb": words(
        "enable mail-user mail-group userfile spoolfile homedir allow-plus-sign"
        " plaintext-fallback enable-bulletins bulletins-directory allow-sublogins enable-acl"
        " acl-whitelist acl-blacklist keep-last-login case-sensitive-username"
    ),
}
ALL = GENERAL + [f"auth-{name}-{key}" for name, keys in DRIVERS.items() for key in keys]
ARE_IGNORED = words("""
    tcp-send-buffer no-detach permit-empty-passwords onlogin-child-wait log-bad-passwords
    maildir-exclusive-lock maildir-recursion maildir-ignore-folders maildir-evaluate-filename
    maildir-size-string tls-no-bug-workarounds authcache-enable authcache-use-client-host
    authcache-entry-lifetime
""")
ARE_UNSUPPORTED = [
    "lowercase-mailbox", "tcp-wrappers-name", "drac-server", "whoson-enable", "auth-pam-mail-user",
    *(f"auth-{name}-{key}" for name in ("pgsql", "ldap", "other", "perl", "gdbm", "cdb")
      for key in DRIVERS[name]),
]  # fmt: skip


def said_of(key, lines):
    """The errors and the warnings about a directive."""
    where = f": {key}: "
    try:
        config = read(lines, "test.conf")
    except WrongConfiguration as wrong:
        return [one for one in wrong.problems if where in one], []
    return [], [one for one in config.warnings if where in one]


def class_of(key):
    """What becomes of a directive that somebody depends on."""
    driver = key.split("-")[1] if key.startswith("auth-") else ""
    lines = text_of({k: v for k, v in LEAST.items() if k != key})
    if driver not in ("", "flatfile", "mysql", "pam") and not key.endswith("-enable"):
        lines += f"auth-{driver}-enable: yes\n"
    errors, warnings = said_of(key, f"{lines}{key}: yes\n")
    if any(": is ignored: " in one for one in warnings):
        return IGNORED
    if any(": is not supported: " in one for one in errors):
        return UNSUPPORTED
    # The value may be wrong.
    return "" if any("unknown directive" in one for one in errors) else KNOWN


@pytest.mark.parametrize("key", ALL)
def test_each_directive_of_the_c_program_is_in_one_class(key):
    expected = {IGNORED: key in ARE_IGNORED, UNSUPPORTED: key in ARE_UNSUPPORTED}
    assert not all(expected.values())
    assert class_of(key) == next((name for name, is_in in expected.items() if is_in), KNOWN)


def test_nothing_else_is_said_to_be_the_c_programs():
    theirs = {*legacy.IGNORED, *legacy.UNSUPPORTED}
    for name, (_, keys) in legacy.DRIVERS.items():
        theirs |= {f"auth-{name}-{key}" for key in ("enable", *keys)}
    assert theirs == {*ARE_IGNORED, *ARE_UNSUPPORTED}
    assert len(ALL) == len(set(ALL))
    assert class_of("colour") == class_of("auth-ldap-colour") == class_of("auth-x-enable") == ""


@pytest.mark.parametrize("key", ["whoson-enable", "lowercase-mailbox", "auth-ldap-enable"])
@pytest.mark.parametrize("no", ["no", "FALSE"])
def test_what_is_switched_off_is_not_missed(key, no):
    errors, warnings = said_of(key, f"{text_of(LEAST)}{key}: {no}\n")
    assert errors == []
    assert len(warnings) == 1
    assert f"{len(LEAST) + 1}: {key}: is ignored: " in warnings[0]


def test_the_directives_of_a_driver_that_is_not_enabled_are_not_missed():
    lines = text_of(LEAST) + "auth-ldap-url: ldap://x/\nauth-ldap-scope: base\n"
    assert said_of("auth-ldap-url", lines)[1] == [
        f"test.conf:{len(LEAST) + 1}: auth-ldap-url: is ignored: auth-ldap-enable is not yes"
    ]


def test_an_index_was_a_place():
    for place in ("$(name).tpop3d-index", "/var/spool/tpop3d/$(escaped_name)"):
        config = config_of({"mailspool-index": place})
        assert config.mailspool_index is True
        assert config.warnings == [
            f"test.conf:{len(LEAST) + 1}: mailspool-index: is taken for yes; indexes are in"
            " state-directory"
        ]
        assert ("mailspool-index", "yes", False) in config.effective


def test_the_ids_of_maildirs_were_none_of_mailspools():
    config = config_of({"uidl-style": "qmail"})
    assert config.uidl_style == "tpop3d"
    assert len(config.warnings) == 1
    assert "uidl-style: is taken for tpop3d" in config.warnings[0]


@pytest.mark.parametrize("driver", ["passwd", "pam"])
def test_the_systems_users_may_have_a_mailbox_of_their_own(driver):
    if driver == "pam":
        pytest.importorskip("pam")
    enabled = {f"auth-{driver}-enable": "yes", "mailbox": "/elsewhere/$(user)"}
    template = {f"auth-{driver}-mailbox": "bsd:/v/$(user[0])/$(user)"}
    drops = config_of(enabled | template).drivers[driver]._maildrops
    user = MAIL_USER.pw_name
    assert drops.of(MAIL_USER).account.mailboxes == [f"/v/{user[0]}/{user}"]
    drops = config_of(enabled).drivers[driver]._maildrops
    assert drops.of(MAIL_USER).account.mailboxes == [f"/elsewhere/{user}"]
    both = enabled | template | {f"auth-{driver}-mailspool-dir": "/v"}
    errors = errors_of(text_of(LEAST | both))
    assert len(errors) == 1
    assert errors[0].endswith(f"auth-{driver}-enable: mailbox and mailspool-dir are both given")


# As an administrator has them, after the C program's manual page.
PASSWD = """\
listen-address: 192.0.2.1(example.com) 0.0.0.0(example.org) \\
                0.0.0.0;tls=immediate,/etc/ssl/pop.pem,/etc/ssl/pop.key
max-children: 50
timeout-seconds: 600
append-domain: yes
log-facility: authpriv
no-detach: yes
mailspool-index: /var/spool/tpop3d/$(escaped_name)
mailbox: bsd:/var/spool/mail/$(user[0])/$(user)
auth-passwd-enable: yes
auth-passwd-mail-group: mail
auth-flatfile-enable: true
auth-flatfile-passwd-file: /etc/mail/$(domain)/passwd
auth-flatfile-mail-user: nobody
auth-flatfile-mail-group: mail
"""
OTHERS = """\
listen-address: 0.0.0.0
mailbox: maildir:$(home)/Maildir bsd:/var/spool/mail/$(user)
tcp-wrappers-name: pop3
whoson-enable: yes
drac-server: relay.example.org
tls-no-bug-workarounds: yes
auth-ldap-enable: yes
auth-ldap-url: ldap://ldap.example.org/dc=example,dc=org
auth-ldap-password: hunter2
auth-perl-enable: yes
auth-perl-start: do '/etc/tpop3d/tpop3d.pl';
auth-pgsql-password: hunter3
"""


def checked(directory, content):
    """What --check-config says: its status, and stderr, without the name of the file."""
    file = directory / "tpop3d.conf"
    file.touch(mode=0o600)
    file.write_text(content)
    done = tpop3d("--check-config", "-f", file)
    told = but_for_syslogd(done.stderr.decode())
    return done.returncode, told.replace(f"{file}:", "").splitlines()


def test_a_configuration_of_the_c_program_is_taken_as_it_is(tmp_path):
    content = PASSWD.replace(";tls=immediate,/etc/ssl/pop.pem,/etc/ssl/pop.key", ":1110")
    status, lines = checked(tmp_path, "gatekeeper-user: nobody\n" + content)
    assert status == 0, lines
    assert lines[:2] == [
        "warning: 8: no-detach: is ignored: tpop3d stays in the foreground, unless started with"
        " --detach",
        "warning: 9: mailspool-index: is taken for yes; indexes are in state-directory",
    ]
    assert len(lines) == 4  # and there is neither a certificate nor a password file
    config = read(PASSWD, "test.conf")
    tls = config.listen_address[2].tls
    assert (tls.mode, tls.pairs) == ("immediate", (("/etc/ssl/pop.pem", "/etc/ssl/pop.key"),))
    assert [one.domain for one in config.listen_address] == ["example.com", "example.org", ""]


def test_what_cannot_be_done_is_said_line_by_line(tmp_path):
    status, lines = checked(tmp_path, OTHERS)
    assert status == 2
    lines = [line for line in lines if line[0].isdecimal()]  # of the file
    told = [line.split(": ", 2) for line in lines]
    assert [(int(number), key) for number, key, _ in told] == [
        (2, "mailbox"),
        (3, "tcp-wrappers-name"),
        (4, "whoson-enable"),
        (5, "drac-server"),
        (7, "auth-ldap-enable"),
        (8, "auth-ldap-url"),
        (9, "auth-ldap-password"),
        (10, "auth-perl-enable"),
        (11, "auth-perl-start"),
    ]
    assert "there is bsd" in lines[0]
    assert all(text.startswith("is not supported: ") for _, _, text in told[1:])
    assert "pam_ldap" in lines[4]
    assert "DRIVERS OF YOUR OWN" in lines[7]
    assert not any("hunter" in line for line in lines)


def test_a_foreign_driver_of_that_name_is_asked(tmp_path):
    """The tables are for names that nobody knows."""
    env = ENVIRONMENT | foreign_driver(tmp_path, "ldap", DRIVER)
    file = tmp_path / "tpop3d.conf"
    file.write_text("gatekeeper-user: nobody\nauth-ldap-enable: yes\nauth-ldap-open: door\n")
    done = tpop3d("--check-config", "-f", file, env=env)
    assert done.returncode == 0, done.stderr
    assert "auth-ldap-open: door\n" in done.stdout.decode()
    file.write_text(file.read_text() + "auth-ldap-url: ldap://x/\n")
    assert tpop3d("--check-config", "-f", file, env=env).returncode == 2
