"""auth-passwd: the system's users by getpwnam(3), /etc/shadow and crypt(3), without PAM."""

from __future__ import annotations

import os
import pwd
from time import time

from tpop3d.auth.driver import Account, Login, Verdict, is_plain, text
from tpop3d.auth.templates import Mailbox
from tpop3d.directives import Directive, absolute_path, group_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

SHADOW = "/etc/shadow"
DAY = 86400  # seconds; shadow(5) counts in days


class Passwd:
    """The system's own accounts. root, and names that are not plain, are refused unasked."""

    directives: ClassVar[dict[str, Directive]] = {
        "mailspool-dir": Directive(absolute_path),
        "mail-group": Directive(group_id),
    }
    checks_apop = False
    own_process = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        directory: str | None = settings["mailspool-dir"]
        self._mailbox: Mailbox = settings["default-mailbox"]
        if directory is not None:
            self._mailbox = Mailbox(f"{directory}/$(user)")
        group = settings["mail-group"]
        self._gid: int | None = None if group is None else group.gid

    def authenticate(self, login: Login) -> Verdict:
        """Check the attempt against the system's account of that name."""
        if login.password is None:
            return Verdict.no("APOP needs a stored plaintext password")
        name = login.name
        if not is_plain(name):
            return Verdict.no("not a plain user name")
        try:
            shadow = _Shadow(name)
        except OSError as error:
            return Verdict.cannot_say(f"{SHADOW}: {error.strerror}")
        try:
            account = pwd.getpwnam(text(name))
        except KeyError:
            account = None
        stored = shadow.decoy
        if account is not None:
            stored = os.fsencode(account.pw_passwd)
            stored = shadow.stored if stored == b"x" else stored
        # A locked account ("!", "*") is no setting for crypt(3), which would answer at once.
        # Of root's password nobody learns anything here, the log neither.
        locked = stored[:1] in (b"!", b"*")
        root = account is not None and account.pw_uid == 0
        good = login.matches(shadow.decoy if locked or root else stored, "crypt")
        if account is None:
            return Verdict.no("unknown user")
        if root:
            return Verdict.no("root has no mailbox here")
        if locked:
            return Verdict.no("locked account")
        if not good:
            return Verdict.no("wrong password")
        if shadow.expired:
            return Verdict.no("expired account")
        values = {"user": name, "local_part": name, "home": os.fsencode(account.pw_dir)}
        mailboxes = self._mailbox.paths(values)
        if not mailboxes:
            return Verdict.no("the name makes no mailbox path")
        gid = account.pw_gid if self._gid is None else self._gid
        return Verdict.yes(Account(name, account.pw_uid, gid, mailboxes))


class _Shadow:
    """What /etc/shadow says of a user: `stored`, the hash, and `expired` (shadow(5), field 8).

    `decoy` is a hash of somebody's, to spend the same time on where there is no other.
    Raises OSError where the file cannot be read.
    """

    def __init__(self, name: bytes) -> None:
        self.stored = b"*"
        self.expired = False
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
                self.stored = fields[1]
                day = fields[7] if len(fields) > 7 else b""
                self.expired = day.isdigit() and int(day) <= time() // DAY


driver = Passwd
