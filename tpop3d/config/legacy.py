"""The directives of tpop3d 1.5.5, the C program, that this server does not have.

Each directive of the C program is either known to this server or in exactly one of these tables.
This module is imported only if a configuration file has an unknown directive or a wrong value.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

NOTED = "auth-mysql-onlogin-query can note who logs in, and from where"
NO_CACHE = "logins are not cached; each one is checked"
NO_MAILDIR = "there are no maildirs here"
# Directives that can be left out without harm, and why.
IGNORED = {
    "no-detach": "tpop3d stays in the foreground, unless started with --detach",
    "tcp-send-buffer": "the kernel finds the size of buffers itself",
    "onlogin-child-wait": "sessions always wait for the on-login query",
    "log-bad-passwords": "passwords are never logged",
    "permit-empty-passwords": "the C program never read it; it is permit-empty-password",
    "tls-no-bug-workarounds": "OpenSSL's work-arounds are those of its own defaults",
    "maildir-exclusive-lock": NO_MAILDIR,
    "maildir-recursion": NO_MAILDIR,
    "maildir-ignore-folders": NO_MAILDIR,
    "maildir-evaluate-filename": NO_MAILDIR,
    "maildir-size-string": NO_MAILDIR,
    "authcache-enable": NO_CACHE,
    "authcache-use-client-host": NO_CACHE,
    "authcache-entry-lifetime": NO_CACHE,
}
# Directives that a site may depend on: who gets in, whose mail it is, who may send. The value no
# switches them off in the C program, too.
UNSUPPORTED = {
    "tcp-wrappers-name": "hosts.allow and hosts.deny are not read; let xinetd, systemd"
    " (IPAddressDeny=) or a packet filter keep clients out",
    "drac-server": f"there is no DRAC; {NOTED}",
    "whoson-enable": f"there is no WHOSON; {NOTED}",
    "lowercase-mailbox": "paths of mailboxes are taken as they are; there is lowercase-user",
    "auth-pam-mail-user": "whom PAM lets in must be a user of the system; for others there are"
    " flatfile and mysql",
}
OWN_DRIVER = "a driver of your own can ask it: README, DRIVERS OF YOUR OWN"
SQL = ("username", "password", "database", "hostname", "mail-group", "pass-query", "apop-query",
       "onlogin-query")  # fmt: skip
# The drivers of the C program: what to do instead, and their directives besides `enable`.
DRIVERS = {
    "pgsql": ("a PAM module can ask PostgreSQL, with auth-pam-enable", SQL),
    "ldap": (
        "a PAM module (pam_ldap, pam_sss) can ask a directory, with auth-pam-enable",
        ("url", "searchdn", "password", "use-tls", "filter", "scope", "mailbox", "mailbox-attr",
         "mboxtype-attr", "mail-user", "mail-user-attr", "mail-group", "mail-group-attr"),
    ),
    "other": (OWN_DRIVER, ("program", "user", "group", "timeout")),
    "perl": (OWN_DRIVER, ("start", "finish", "apop", "pass", "onlogin")),
    "gdbm": (
        "write its entries into a file of lines user:hash, for auth-flatfile-enable",
        ("mail-user", "mail-group", "passwd-file", "persistent"),
    ),
    "cdb": (
        "write its entries into a file of lines user:hash, for auth-flatfile-enable",
        ("mail-user", "mail-group", "userfile", "spoolfile", "homedir", "allow-plus-sign",
         "plaintext-fallback", "enable-bulletins", "bulletins-directory", "allow-sublogins",
         "enable-acl", "acl-whitelist", "acl-blacklist", "keep-last-login",
         "case-sensitive-username"),
    ),
}  # fmt: skip
YES, NO = ("yes", "true"), ("no", "false")


def fate(
    key: str, lines: Mapping[str, tuple[int, str]], *, has_driver: bool
) -> tuple[bool, str] | None:
    """Is a directive of the C program an error here, and what is there to say about it?

    `lines` are the lines that nobody took, with their values. `has_driver`: is there a driver of
    that name, perhaps from another package? Returns None if the C program had no such directive.
    """
    value = lines[key][1].lower()
    if key in IGNORED:
        return False, f"is ignored: {IGNORED[key]}"
    if key in UNSUPPORTED:
        if value in NO:
            return False, "is ignored: no is the only choice"
        return True, f"is not supported: {UNSUPPORTED[key]}"
    prefix, _, directive = key.removeprefix("auth-").partition("-")
    if not key.startswith("auth-") or has_driver or prefix not in DRIVERS:
        return None
    instead, directives = DRIVERS[prefix]
    enable = f"auth-{prefix}-enable"
    is_enabled = lines.get(enable, (0, ""))[1].lower() in YES
    if directive == "enable":
        if not is_enabled:
            return False, f"is ignored: there is no driver {prefix}"
        return True, f"is not supported: there is no driver {prefix}; {instead}"
    if directive not in directives:
        return None
    if not is_enabled:
        return False, f"is ignored: {enable} is not yes"
    return True, f"is not supported: there is no driver {prefix}"


def meaning(key: str, value: str) -> tuple[str, str] | None:
    """Return what a value of the C program means here, and the warning about it; None: it had no
    such value."""
    if key == "mailspool-index" and value.startswith(("/", "$(")):
        return "yes", "is taken for yes; indexes are in state-directory"
    if (key, value) == ("uidl-style", "qmail"):
        return "tpop3d", "is taken for tpop3d, as the C program did with mailspools"
    return None
