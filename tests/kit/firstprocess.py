"""Tests as pid 1 of a container, where no init is: so that there is one.

Pid 1 inherits all whose parents have ended. If it does not wait for them, a daemon that has ended
can be seen for ever; and dotlockfile(1) takes whoever is called by pid 1 for an orphan, and makes
no lock for it.
"""

import os
import signal


def leave_to_init() -> None:
    """Go on in a child, if this is pid 1, which waits for all others and ends like the child."""
    if os.getpid() != 1 or not (child := os.fork()):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child, too
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    ended = 0
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)
