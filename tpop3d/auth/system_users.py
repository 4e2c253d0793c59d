"""The common part of auth-passwd and auth-pam: which system users have a maildrop, and where."""

from __future__ import annotations

import os
import pwd
from time import time

from tpop3d.auth.driver import Account, Login, Verdict, groups_of, text
from tpop3d.config.directive import Directive, absolute_path, group_id
from tpop3d.config.templates import Mailbox, is_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SHADOW = "/etc/shadow"
DAY = 86400  # seconds; shadow(5) counts in days

DIRECTIVES = {
    "mailbox": Directive(Mailbox),
    "mailspool-dir": Directive(absolute_path),
    "mail-group": Directive(group_id),
}


class Maildrops:
    """Finds the maildrops of the system's users, by the settings of `DIRECTIVES`.

    Raises ValueError, with a text for the administrator, if two of them exclude each other.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        directory: str | None = settings["mailspool-dir"]
        self._mailbox: Mailbox = settings["mailbox"] or settings["default-mailbox"]
        if directory is not None:
            if settings["mailbox"]:
                raise ValueError("mailbox and mailspool-dir are both given")
            self._mailbox = Mailbox(f"{directory}/$(user)")
        group = settings["mail-group"]
        self._gid: int | None = None if group is None else group.gid

    def of(self, user: pwd.struct_passwd) -> Verdict:
        """The verdict for a user whose password was right: a yes with the account."""
        name = os.fsencode(user.pw_name)
        values = {"user": name, "local_part": name, "home": os.fsencode(user.pw_dir)}
        mailboxes, required = self._mailbox.places(values)
        if not mailboxes:
            return Verdict.no("the name makes no mailbox path")
        gid, lock_gid = groups_of(user.pw_gid, self._gid)
        account = Account(name, user.pw_uid, gid, mailboxes, required=required, lock_gid=lock_gid)
        return Verdict.yes(account)


def refusal(login: Login) -> Verdict | None:
    """A refusal of an attempt for which nothing need be looked up, or None."""
    if login.password is None:
        return Verdict.impossible("APOP needs a stored plaintext password")
    if not is_plain(login.name):
        return Verdict.no("not a plain user name")
    return None


def find(name: bytes) -> pwd.struct_passwd | None:
    """Find the system's user of that name (getpwnam(3)); returns None if there is none.

    A directory may ignore letter case, or know other names of a user; the user's own is pw_name.
    Raises `Unanswered` if no user was found, and a source that may know one does not answer.
    """
    try:
        return pwd.getpwnam(text(name))
    except KeyError:
        from tpop3d.config import nsswitch

        if nsswitch.is_absent("passwd", text(name)):
            return None
    return pwd.getpwnam(text(name))  # now without nscd(8), which did not know the user


def is_known(login: Login) -> bool:
    """Is there a user of that name, other than root? No, if that cannot be told."""
    try:
        user = find(login.name) if is_plain(login.name) else None
    except ValueError:
        return False
    return user is not None and user.pw_uid != 0


def is_locked(stored: bytes) -> bool:
    """Does a password field mean that no password is right (shadow(5))?"""
    return stored[:1] in (b"!", b"*")


class Shadow:
    """The entry of a user in /etc/shadow: `stored` is the hash. `refusal` says why even the right
    password does not let the user in; "" if it does (shadow(5), fields 3, 5, 7 and 8).

    Without an entry `found` is False, and no password fits `stored`. `decoy` is the hash of some
    user, which takes the same time to check. Raises OSError if the file cannot be read.
    """

    def __init__(self, name: bytes) -> None:
        self.found = False
        self.stored = b"*"
        self.refusal = ""
        self.decoy = b""
        with open(SHADOW, "rb") as file:
            lines = file.read().split(b"\n")
        for line in lines:
            fields = line.split(b":")
            if len(fields) < 2:
                continue
            if not self.decoy and fields[1].startswith(b"$"):
                self.decoy = fields[1]
            if fields[0] == name:
                self.found = True
                self.stored = fields[1]
                self.refusal = _aged([_day(field) for field in fields[2:8]], int(time() // DAY))


def _day(field: bytes) -> int:
    """Parse a number of days; -1 if the field has none."""
    return int(field) if field.isdigit() else -1


def _aged(days: list[int], today: int) -> str:
    """Why an account is refused by its days, or "". pam_unix(8) decides the same, also if the day
    of the last change is missing."""
    changed, _, most, _, _, expires = (*days, *[-1] * 6)[:6]
    if 0 <= expires <= today:
        return "expired account"
    # A password that must be changed cannot be changed here, not even within the days of field 7.
    # A change in the future means that a clock was wrong: pam_unix(8) accepts the password.
    if changed == 0 or 0 <= most < today - changed:
        return "expired password"
    return ""
