"""auth-passwd: the system's users by getpwnam(3), /etc/shadow and crypt(3), without PAM."""

from __future__ import annotations

import os

from tpop3d.auth import system_users
from tpop3d.auth.driver import Login, Verdict
from tpop3d.config.directive import Unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Passwd:
    """The system's own accounts. root, and names that are not plain, are refused unasked."""

    directives = system_users.DIRECTIVES
    checks_apop = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._maildrops = system_users.Maildrops(settings)

    @staticmethod
    def preload() -> None:
        """Load what `authenticate` needs where a user is not found, as is often so under attack."""
        import ctypes  # noqa: F401

        from tpop3d.config import nsswitch  # noqa: F401

    def authenticate(self, login: Login) -> Verdict:
        """Check the attempt against the system's account of that name."""
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
        # A locked account is no setting for crypt(3), which would answer at once.
        # Of root's password nobody learns anything here, the log neither.
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
