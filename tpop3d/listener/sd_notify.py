"""What the listener tells systemd (sd_notify(3)), if systemd asks."""

from __future__ import annotations

import os

MAX_STATUS = 400  # octets of a reason in it


def asks() -> bool:
    """Does systemd ask to be told?"""
    return "NOTIFY_SOCKET" in os.environ


def notify(state: str) -> None:
    """Tell systemd, through systemd-python. If it does not listen, it is told the next time."""
    if asks():
        from systemd import daemon

        try:
            daemon.notify(state)
        except OSError:
            pass


def summary(problems: list[str]) -> str:
    """Write problems as a part of STATUS=: in one line of UTF-8, or systemd takes none of it."""
    from tpop3d.system.logs import printable

    further = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return printable(os.fsencode(problems[0]))[:MAX_STATUS] + further


def tell_failure(problems: list[str]) -> None:
    """Tell why the listener does not start: the status stays when the process is gone."""
    try:
        notify(f"STATUS=not started: {summary(problems)}")
    except ImportError:
        pass  # without systemd-python nothing can be told


def watchdog_interval() -> float:
    """Seconds from one sign of life to the next, half of what systemd waits for; 0: it does not
    wait."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / 2e6
