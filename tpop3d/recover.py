"""`tpop3d --recover`: finish what a crash has interrupted, in all mailboxes."""

from __future__ import annotations

import os
import stat

from tpop3d import logs
from tpop3d.mailspool.journal import NAME
from tpop3d.mailspool.refusal import Refusal
from tpop3d.mailspool.spool import Terms, recover_spool
from tpop3d.session import signals
from tpop3d.session.privileges import become

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config


def recover_all(config: Config) -> bool:
    """Carry out every journal that is found; True: there is none any more.

    Each is its mailbox's user's business, in a process of that user. What was done is logged.
    """
    try:
        places = [entry.path for entry in os.scandir(config.state_directory)]
    except FileNotFoundError:
        return True
    except OSError as error:
        logs.error(f"{config.state_directory}: {error.strerror}")
        return False
    is_good = True
    for place in sorted(places):
        if os.path.lexists(os.path.join(place, NAME)):
            is_good = _in_a_process(place, config) and is_good
    return is_good


def _in_a_process(place: str, config: Config) -> bool:
    """Recover one mailbox in a process of its user's; True if that is done."""
    pid = signals.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    status = 1
    try:
        status = 0 if _recover(place, config) else 1
    except BaseException as error:
        logs.error(f"internal error: {logs.describe(error)}")
    finally:
        os._exit(status)


def _recover(place: str, config: Config) -> bool:
    found = os.lstat(place)
    why = become(found.st_uid, found.st_gid) if stat.S_ISDIR(found.st_mode) else "no directory"
    if why:
        logs.error(logs.event("maildrop not recovered", directory=place, reason=why))
        return False
    os.umask(0o077)
    style = config.uidl_style
    terms = Terms(config.dotlocks, config.lock_timeout_seconds, _pause, style=style)
    result = recover_spool(found.st_uid, place, terms)
    if isinstance(result, Refusal):
        line = logs.event("maildrop not recovered", directory=place, reason=result.reason)
        logs.error(line)
        return False
    if result is not None:
        line = logs.event("maildrop recovered", directory=place, reason=result.line)
        (logs.error if result.is_alarming else logs.warning)(line)
    return True


def _pause(seconds: float) -> bool:
    """Wait; True when we are told to end."""
    import select

    wakeup, _ = signals.descriptors()
    return bool(select.select((wakeup,), (), (), seconds)[0])
