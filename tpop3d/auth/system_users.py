"""What the drivers of the system's own users share: who may have a maildrop, and where it is."""

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
    """The maildrops of the system's users, by what `DIRECTIVES` came to."""

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
        """A yes, with the account of a user whose password was right."""
        name = os.fsencode(user.pw_name)
        values = {"user": name, "local_part": name, "home": os.fsencode(user.pw_dir)}
        mailboxes, required = self._mailbox.places(values)
        if not mailboxes:
            return Verdict.no("the name makes no mailbox path")
        gid, lock_gid = groups_of(user.pw_gid, self._gid)
        account = Account(name, user.pw_uid, gid, mailboxes, required=required, lock_gid=lock_gid)
        return Verdict.yes(account)


def refusal(login: Login) -> Verdict | None:
    """Why an attempt is refused before anything is looked up, or None."""
    if login.password is None:
        return Verdict.impossible("APOP needs a stored plaintext password")
    if not is_plain(login.name):
        return Verdict.no("not a plain user name")
    return None


def find(name: bytes) -> pwd.struct_passwd | None:
    """The system's user of that name (getpwnam(3)); None: there is none.

    A directory may ignore letter case, or know other names of a user: pw_name is the user's.
    Raises `Unanswered`, where none was found and somebody who may know one does not answer.
    """
    try:
        return pwd.getpwnam(text(name))
    except KeyError:
        from tpop3d.config import nsswitch

        if nsswitch.is_absent("passwd", text(name)):
            return None
    return pwd.getpwnam(text(name))  # now without whoever did not know better


def is_known(login: Login) -> bool:
    """Is there a user of that name, who may have a maildrop? No, where nobody can say."""
    try:
        user = find(login.name) if is_plain(login.name) else None
    except ValueError:
        return False
    return user is not None and user.pw_uid != 0


def is_locked(stored: bytes) -> bool:
    """Does a password field say that no password is right (shadow(5))?"""
    return stored[:1] in (b"!", b"*")


class Shadow:
    """What /etc/shadow says of a user: `stored`, the hash, and `refusal`, why the right password
    lets nobody in, "" if it does (shadow(5), fields 3, 5, 7 and 8).

    Where it says nothing, `stored` is a hash of nobody's, and `found` is False.

    `decoy` is one of somebody's, to spend the same time on where there is no other.
    Raises OSError where the file cannot be read.
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
    """A number of days, -1 for none."""
    return int(field) if field.isdigit() else -1


def _aged(days: list[int], today: int) -> str:
    """Why an account is refused by its days, or "". pam_unix(8) says the same: of a password that
    was changed nobody knows when, too."""
    changed, _, most, _, _, expires = (*days, *[-1] * 6)[:6]
    if 0 <= expires <= today:
        return "expired account"
    # A password that has to be changed cannot be changed here, within the days of field 7 neither.
    # One that was changed in the future is a clock that went wrong: pam_unix(8) lets it in.
    if changed == 0 or 0 <= most < today - changed:
        return "expired password"
    return ""
