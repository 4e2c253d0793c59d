"""auth-pam: the system's users, by PAM, through the package python-pam.

PAM's modules are foreign code, so this driver runs in a process of its own (see
`tpop3d.auth.isolation`): a module that hangs is cut off, and a crash costs only one attempt.
"""

from __future__ import annotations

import ctypes
import os
import sys

from tpop3d.auth import system_users
from tpop3d.auth.driver import UNKNOWN, Login, Verdict, require
from tpop3d.auth.pam_stack import PLACES, passed_over
from tpop3d.config import Unanswered
from tpop3d.config.directive import Directive
from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pwd
    from collections.abc import Mapping
    from typing import Any

# Numbers of <security/_pam_types.h> that python-pam does not name, or not in each version
FAIL_DELAY = 10  # PAM_FAIL_DELAY
XDISPLAY = 11  # PAM_XDISPLAY
SUCCESS = 0
AUTH_ERR = 7
USER_UNKNOWN = 10
TERMINAL = b"tpop3d"  # clients have no terminal, and PAM is not to see that of an administrator
# Further answers of PAM that are a no, with the reason. All others are *cannot say*.
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
    """Lets in the users that PAM lets in. Refuses root, and names that are not plain, at once."""

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
        """Look for modules that the service passes over; returns errors (none) and warnings."""
        why = "is passed over when whom it asks does not answer, and calls a right password wrong"
        advice = "tpop3d.pam has lines for a directory"
        places = passed_over(self._service)
        return [], [f"auth-pam-facility: {place} {why}; {advice}" for place in places]

    @staticmethod
    def preload() -> None:
        """Load the code that `authenticate` needs, once, before many children are forked."""
        import pam

        pam.PamAuthenticator()

    def authenticate(self, login: Login) -> Verdict:
        """Ask PAM whether the password is right (pam_authenticate(3)) and the account valid
        (pam_acct_mgmt(3))."""
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
        # Modules that count failures, or have a list of users, must know each user by one name.
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
        """Ask PAM; returns its code, its text for that, and whether the password was accepted."""
        import pam

        sys.unraisablehook = _log  # by default it writes to stderr, which is not our log
        os.environ.pop("DISPLAY", None)  # python-pam would give it to PAM as the client's display
        asked = pam.PamAuthenticator()  # a new one, for it keeps what PAM has said
        authenticate, check_account = asked.pam_authenticate, asked.pam_acct_mgmt
        accepted = False
        # The monitor delays all refusals for the same time, so no module need sleep for that.
        no_delay = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)(_do_nothing)
        items: list[tuple[int, object]] = [
            (FAIL_DELAY, no_delay),
            (pam.PAM_TTY, ctypes.c_char_p(TERMINAL)),  # python-pam sets the terminal of stdin
            (XDISPLAY, None),  # python-pam sets this to that terminal, too
        ]
        if login.client:
            items.append((pam.PAM_RHOST, ctypes.c_char_p(login.client.encode())))
        # pam_unix accepts any password for an account without one. We accept only the empty one.
        flags = pam.PAM_DISALLOW_NULL_AUTHTOK if login.password else 0

        def authenticate_from(handle: Any, _: int) -> int:
            """Set the items behind pam_start(3): python-pam has no place for that."""
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
        # Latin-1 decodes any octets of a module. Credentials would end with this process anyway.
        asked.authenticate(
            name, login.password, self._service, encoding="latin-1", resetcreds=False
        )
        text = str(asked.reason)
        if text.startswith("pam_start()"):  # python-pam's own words, which are a repr
            text = "pam_start(3) failed; is there a file of the service?"
        return asked.code, text, accepted


def _log(what: sys.UnraisableHookArgs) -> None:
    """Log an exception in a call from PAM into Python, which cannot raise it."""
    if isinstance(what.exc_value, Exception):
        logs.error(f"python-pam: {logs.describe(what.exc_value)}")


def _do_nothing(*_: object) -> None:
    """Stand in for the delay of pam_fail_delay(3)."""


def _refusal(name: bytes, code: int, user: pwd.struct_passwd | None, accepted: bool) -> Verdict:
    """Find out what PAM_AUTH_ERR means. Debian's services answer nothing else for an expired
    account, or when a directory does not answer, which they pass over."""
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
        return Verdict.no(UNKNOWN)  # all sources of users have answered
    return Verdict.no("locked account" if is_locked else "wrong password")


def _has_hash(user: pwd.struct_passwd, shadow: system_users.Shadow | None) -> bool:
    """Has this machine the hash of a user's password, so that no directory need be asked?"""
    stored = os.fsencode(user.pw_passwd)
    if stored == b"x":
        stored = b"*" if shadow is None else shadow.stored
    return not system_users.is_locked(stored)


def _is_configured(service: str) -> bool:
    """Is there a file of the service? If no directory exists, services are in /etc/pam.conf."""
    if not any(os.path.isdir(place) for place in PLACES):
        return os.path.exists("/etc/pam.conf")
    return any(os.path.exists(f"{place}/{service.lower()}") for place in PLACES)


driver = Pam
