"""auth-pam: the system's users by PAM, through the package python-pam.

PAM's modules are foreign code, so this driver runs in a process of its own (see
`tpop3d.auth.isolation`): one that hangs is cut off, and one that crashes takes one attempt with it.
"""

from __future__ import annotations

import ctypes
import os

from tpop3d.auth import system
from tpop3d.auth.driver import Login, Verdict, require
from tpop3d.directives import Directive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PLACES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d")  # of a service's file, pam.d(5)
FAIL_DELAY = 10  # <security/_pam_types.h>: PAM_FAIL_DELAY, for which python-pam has no name
# What PAM's answers come to, besides yes. All that are not here are *cannot say*.
# <security/_pam_types.h>
NO = {
    6: "",  # PAM_PERM_DENIED: pam_access and the like
    7: "wrong password",  # PAM_AUTH_ERR
    10: "unknown user",  # PAM_USER_UNKNOWN
    11: "",  # PAM_MAXTRIES
    12: "expired password",  # PAM_NEW_AUTHTOK_REQD; it cannot be changed here
    13: "expired account",  # PAM_ACCT_EXPIRED
    16: "",  # PAM_CRED_EXPIRED
    27: "expired password",  # PAM_AUTHTOK_EXPIRED
}
SUCCESS = 0


class Pam:
    """Whom PAM lets in. root, and names that are not plain, are refused before it is asked."""

    directives = {"facility": Directive(str, "tpop3d"), **system.DIRECTIVES}
    checks_apop = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        require("pam", "python-pam", extra="pam")
        self._service: str = settings["facility"]
        self._maildrops = system.Maildrops(settings)
        if not self._service or "/" in self._service:
            raise ValueError("auth-pam-facility must be the name of a PAM service")
        self.warnings = []
        if not _is_configured(self._service):
            self.warnings.append(
                f"auth-pam-facility: there is no {PLACES[0]}/{self._service}; PAM does what it does"
                " for any other service, which is to refuse everybody on most systems"
            )

    @staticmethod
    def preload() -> None:
        """Load what `authenticate` needs: once, before many children are forked."""
        import pam

        pam.PamAuthenticator()

    def authenticate(self, login: Login) -> Verdict:
        """Ask PAM for the password, and whether the account is valid (pam_acct_mgmt(3))."""
        if refusal := system.refusal(login):
            return refusal
        user = system.find(login.name)
        if user is not None and user.pw_uid == 0:
            return Verdict.no("root has no mailbox here")
        code, text = self._ask(login)
        if code != SUCCESS:
            return _refused(code, text, login.name)
        if user is None:
            return Verdict.no("PAM knows the user, and the system does not")
        return self._maildrops.of(login.name, user)

    def _ask(self, login: Login) -> tuple[int, str]:
        """PAM's answer, and its words for it."""
        import pam

        asked = pam.PamAuthenticator()  # a fresh one: it keeps what PAM has said
        authenticate = asked.pam_authenticate
        # The monitor holds refusals back, all for the same time. No module need sleep for that.
        no_delay = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)(_do_nothing)

        def authenticate_from(handle: Any, flags: int) -> int:
            """After pam_start(3), before pam_authenticate(3): python-pam has no place for it."""
            asked.pam_set_item(handle, FAIL_DELAY, no_delay)
            if login.client:
                client = ctypes.c_char_p(login.client.encode())
                asked.pam_set_item(handle, pam.PAM_RHOST, client)
            answer: int = authenticate(handle, flags)
            return answer

        asked.pam_authenticate = authenticate_from
        # Latin-1 takes any octets that a module may say. Credentials would end with this process.
        asked.authenticate(
            login.name, login.password, self._service, encoding="latin-1", resetcreds=False
        )
        return asked.code, str(asked.reason)


def _do_nothing(*_: object) -> None:
    """In place of the delay of pam_fail_delay(3)."""


def _refused(code: int, text: str, name: bytes) -> Verdict:
    if code not in NO:
        return Verdict.cannot_say(f"PAM: {text} ({code})")
    why = NO[code] or f"PAM: {text}"
    if why == "wrong password" and _is_locked(name):
        why = "locked account"
    return Verdict.no(why)


def _is_locked(name: bytes) -> bool:
    """Is that why the password was wrong? PAM does not say, and only the log is told."""
    try:
        return system.is_locked(system.Shadow(name).stored)
    except OSError:
        return False


def _is_configured(service: str) -> bool:
    return os.path.exists("/etc/pam.conf") or any(
        os.path.exists(f"{place}/{service.lower()}") for place in PLACES
    )


driver = Pam
