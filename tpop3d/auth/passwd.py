"""auth-passwd: the system's users, by getpwnam(3), /etc/shadow and crypt(3), without PAM."""

from __future__ import annotations

import os

from tpop3d.auth import system_users
from tpop3d.auth.driver import Login, Verdict
from tpop3d.config import Unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Passwd:
    """Checks the system's own accounts. Refuses root, and names that are not plain, at once."""

    directives = system_users.DIRECTIVES
    checks_apop = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._maildrops = system_users.Maildrops(settings)

    @staticmethod
    def preload() -> None:
        """Load the code that `authenticate` needs for an unknown user, as attackers often name."""
        import ctypes  # noqa: F401

        from tpop3d.config import nsswitch  # noqa: F401

    def authenticate(self, login: Login) -> Verdict:
        """Check an attempt against the system's account of that name."""
        if refusal := system_users.refusal(login):
            return refusal
        try:
            user = system_users.find(login.name)
        except Unanswered as error:
            return Verdict.cannot_say(str(error))
        try:
            shadow = system_users.Shadow(login.name if user is None else os.fsencode(user.pw_name))
        except OSError as error:
            from tpop3d.system import reasons

            return Verdict.cannot_say(f"{system_users.SHADOW}: {reasons.why(error)}")
        stored = shadow.decoy
        if user is not None:
            stored = os.fsencode(user.pw_passwd)
            stored = shadow.stored if stored == b"x" else stored
        # The field of a locked account is no setting for crypt(3), which would answer at once. And
        # neither a client nor the log may learn whether root's password was right.
        locked = system_users.is_locked(stored)
        root = user is not None and user.pw_uid == 0
        good = login.matches(shadow.decoy if locked or root else stored, "crypt")
        if user is None:
            return login.no_such_user(system_users.is_known)
        if root:
            return Verdict.no("root has no mailbox here")
        if locked:
            return Verdict.no("locked account")
        if not good:
            return Verdict.no("wrong password")
        if shadow.refusal:
            return Verdict.no(shadow.refusal)
        return self._maildrops.of(user)


driver = Passwd
