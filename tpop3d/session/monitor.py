"""The decisions about one connection: who is let in, and to which maildrop.

The monitor runs with all the privileges that the program has. It gives them up in `admit`.
"""

from __future__ import annotations

import os

from tpop3d import logs
from tpop3d.auth.driver import CANNOT_SAY, YES, Account, Verdict
from tpop3d.auth.switch import Switch
from tpop3d.mailspool import refusal, state
from tpop3d.mailspool.refusal import Refusal
from tpop3d.session import gatekeeper
from tpop3d.session.privileges import become

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config
    from tpop3d.mailspool.locks import Pause
    from tpop3d.mailspool.spool import Spool
    from tpop3d.pop3.authorization import Attempt


class Monitor:
    """The monitor of one connection, from the address `client`, made at `local`."""

    def __init__(self, config: Config, client: str, local: tuple[str, int]) -> None:
        self._config = config
        self.client = client
        self._switch = Switch(config.drivers, config)
        self._domain = config.local_domain(*local)
        self.checks_apop = self._switch.checks_apop
        self.verdict = Verdict.no("nothing was tried")
        self.method = ""

    def ask(self, attempt: Attempt) -> str:
        """Decide on an attempt, and log it if it is not let in."""
        self.method = attempt.method
        self.verdict = self._switch.decide(attempt, self._domain, self.client)
        if self.verdict.answer == YES:
            return gatekeeper.ADMITTED
        line = logs.event(
            "login failed" if self.verdict.answer != CANNOT_SAY else "login undecided",
            user=attempt.name,
            rip=self.client,
            method=attempt.method,
            driver=self.verdict.driver,
            reason=self.verdict.reason,
        )
        logs.notice(line)
        return gatekeeper.UNDECIDED if self.verdict.answer == CANNOT_SAY else gatekeeper.REFUSED

    def admit(self, account: Account, pause: Pause) -> Spool | Refusal:
        """Become the account's user, for good, and open the maildrop."""
        # The last moment at which our own files can surely be read: the user may not be allowed
        # to, and everything that a session imports has to be in memory from here on.
        from tpop3d.mailspool.spool import Terms, open_spool
        from tpop3d.pop3 import capabilities, transaction  # noqa: F401

        path = next((one for one in account.mailboxes if _exists(one)), account.mailboxes[0])
        place = state.prepare(self._config.state_directory, path, account.uid, account.gid)
        if isinstance(place, Refusal):
            return place
        if why := become(account.uid, account.gid):
            return Refusal(refusal.PERMANENT, why)
        os.umask(0o077)
        terms = Terms(
            dotlock=not self._config.mailspool_no_dotfile_locking,
            lock_timeout=self._config.lock_timeout_seconds,
            pause=pause,
        )
        return open_spool(path, account.uid, place, terms)


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError:
        return False
    return True
