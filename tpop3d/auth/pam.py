"""auth-pam: the system's users by PAM, through the package python-pam.

PAM's modules are foreign code, so this driver runs in a process of its own (see
`tpop3d.auth.isolation`): one that hangs is cut off, and one that crashes takes one attempt with it.
"""

from __future__ import annotations

import ctypes
import os
import sys

from tpop3d.auth import system_users
from tpop3d.auth.driver import UNKNOWN, Login, Verdict, require
from tpop3d.config.directive import Directive, Unanswered
from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pwd
    from collections.abc import Mapping
    from typing import Any

PLACES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d")  # of a service's file, pam.d(5)
# <security/_pam_types.h>, for what python-pam has no name, or not in each version
FAIL_DELAY = 10  # PAM_FAIL_DELAY
XDISPLAY = 11  # PAM_XDISPLAY
SUCCESS = 0
AUTH_ERR = 7
USER_UNKNOWN = 10
TERMINAL = b"tpop3d"  # in place of one: clients have none, and an administrator's is none of PAM's
# What else PAM answers that is a no, and why. All that are not here are *cannot say*.
# <security/_pam_types.h>
NO = {
    6: "",  # PAM_PERM_DENIED: pam_access and the like
    11: "",  # PAM_MAXTRIES
    12: "expired password",  # PAM_NEW_AUTHTOK_REQD; it cannot be changed here
    13: "expired account",  # PAM_ACCT_EXPIRED
    16: "",  # PAM_CRED_EXPIRED
    27: "expired password",  # PAM_AUTHTOK_EXPIRED
}


class Pam:
    """Whom PAM lets in. root, and names that are not plain, are refused before it is asked."""

    directives = {"facility": Directive(str, "tpop3d"), **system_users.DIRECTIVES}
    checks_apop = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        require("pam", "python-pam", extra="pam")
        self._service: str = settings["facility"]
        self._maildrops = system_users.Maildrops(settings)
        if not self._service or "/" in self._service or not self._service.isascii():
            raise ValueError("auth-pam-facility must be the name of a PAM service")
        self.warnings = []
        if not _is_configured(self._service):
            self.warnings.append(
                f"auth-pam-facility: there is no {PLACES[0]}/{self._service.lower()};"
                f" what PAM does instead is in {PLACES[0]}/other, if anywhere"
            )

    def check(self) -> tuple[list[str], list[str]]:
        """Look for what the service passes over: errors, of which there are none, and warnings."""
        from tpop3d.auth.pam_stack import passed_over

        why = "is passed over when whom it asks does not answer, and calls a right password wrong"
        advice = "tpop3d.pam has lines for a directory"
        places = passed_over(self._service)
        return [], [f"auth-pam-facility: {place} {why}; {advice}" for place in places]

    @staticmethod
    def preload() -> None:
        """Load what `authenticate` needs: once, before many children are forked."""
        import pam

        pam.PamAuthenticator()

    def authenticate(self, login: Login) -> Verdict:
        """Ask PAM for the password, and whether the account is valid (pam_acct_mgmt(3))."""
        if refusal := system_users.refusal(login):
            return refusal
        if login.password is None or b"\0" in login.password:
            return Verdict.no("no password has a NUL")
        try:
            user = system_users.find(login.name)
        except Unanswered as error:
            return Verdict.cannot_say(str(error))
        if user is not None and user.pw_uid == 0:
            return Verdict.no("root has no mailbox here")
        # Whoever counts failures, or has a list of users, is to know each by one name.
        name = login.name if user is None else os.fsencode(user.pw_name)
        code, text, accepted = self._ask(name, login)
        if code in (AUTH_ERR, USER_UNKNOWN):
            refusal = _refusal(name, code, user, accepted)
            if refusal.reason == UNKNOWN:
                return login.no_such_user(system_users.is_known)
            return refusal
        if code in NO:
            return Verdict.no(NO[code] or f"PAM: {text}")
        if code != SUCCESS:
            return Verdict.cannot_say(f"PAM: {text} ({code})")
        if user is None:
            return Verdict.no("PAM knows the user, and the system does not")
        return self._maildrops.of(user)

    def _ask(self, name: bytes, login: Login) -> tuple[int, str, bool]:
        """PAM's answer, its words for it, and whether the password was accepted."""
        import pam

        sys.unraisablehook = _log  # by default it writes to stderr, which is none of ours
        os.environ.pop("DISPLAY", None)  # which python-pam would tell PAM that the client sits at
        asked = pam.PamAuthenticator()  # a fresh one: it keeps what PAM has said
        authenticate, check_account = asked.pam_authenticate, asked.pam_acct_mgmt
        accepted = False
        # The monitor holds refusals back, all for the same time. No module need sleep for that.
        no_delay = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)(_do_nothing)
        items: list[tuple[int, object]] = [
            (FAIL_DELAY, no_delay),
            (pam.PAM_TTY, ctypes.c_char_p(TERMINAL)),  # python-pam gives it that of stdin
            (XDISPLAY, None),  # and this one, too
        ]
        if login.client:
            items.append((pam.PAM_RHOST, ctypes.c_char_p(login.client.encode())))
        # An account without a password is let in by pam_unix with any: only without one.
        flags = pam.PAM_DISALLOW_NULL_AUTHTOK if login.password else 0

        def authenticate_from(handle: Any, _: int) -> int:
            """After pam_start(3), before pam_authenticate(3): python-pam has no place for it."""
            for item, value in items:
                code: int = asked.pam_set_item(handle, item, value)
                if code != SUCCESS:
                    return code
            code = authenticate(handle, flags)
            return code

        def note_acceptance(handle: Any, _: int) -> int:
            nonlocal accepted
            accepted = True
            code: int = check_account(handle, 0)
            return code

        asked.pam_authenticate, asked.pam_acct_mgmt = authenticate_from, note_acceptance
        # Latin-1 takes any octets that a module may say. Credentials would end with this process.
        asked.authenticate(
            name, login.password, self._service, encoding="latin-1", resetcreds=False
        )
        text = str(asked.reason)
        if text.startswith("pam_start()"):  # python-pam's own words, which are a repr
            text = "pam_start(3) failed; is there a file of the service?"
        return asked.code, text, accepted


def _log(what: sys.UnraisableHookArgs) -> None:
    """What goes wrong between PAM and Python, in a call that cannot fail."""
    if isinstance(what.exc_value, Exception):
        logs.error(f"python-pam: {logs.describe(what.exc_value)}")


def _do_nothing(*_: object) -> None:
    """In place of the delay of pam_fail_delay(3)."""


def _refusal(name: bytes, code: int, user: pwd.struct_passwd | None, accepted: bool) -> Verdict:
    """What is behind PAM_AUTH_ERR. Debian's services say nothing else: of an expired account, and
    of a directory that does not answer, which they pass over."""
    try:
        shadow = system_users.Shadow(name)
    except OSError:
        shadow = None
    is_locked = shadow is not None and shadow.found and system_users.is_locked(shadow.stored)
    if user is not None and not _has_hash(user, shadow):
        from tpop3d.config import nsswitch

        try:
            nsswitch.require_directories(os.fsdecode(name))
        except Unanswered as error:
            return Verdict.cannot_say(str(error))
    if code == USER_UNKNOWN:
        return Verdict.no(UNKNOWN)
    if accepted:
        return Verdict.no((shadow and shadow.refusal) or "refused account")
    if user is None:
        return Verdict.no(UNKNOWN)  # of whom everybody was asked
    return Verdict.no("locked account" if is_locked else "wrong password")


def _has_hash(user: pwd.struct_passwd, shadow: system_users.Shadow | None) -> bool:
    """Is a user's password one that this machine can check, so that nobody knows better?"""
    stored = os.fsencode(user.pw_passwd)
    if stored == b"x":
        stored = b"*" if shadow is None else shadow.stored
    return not system_users.is_locked(stored)


def _is_configured(service: str) -> bool:
    """Is there a file of the service? Without any of the directories all are in /etc/pam.conf."""
    if not any(os.path.isdir(place) for place in PLACES):
        return os.path.exists("/etc/pam.conf")
    return any(os.path.exists(f"{place}/{service.lower()}") for place in PLACES)


driver = Pam
