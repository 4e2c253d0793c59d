"""What systemd is told of the listener (sd_notify(3)); nothing where it does not ask."""

from __future__ import annotations

import os


def asks() -> bool:
    """Does whoever started us want to be told?"""
    return "NOTIFY_SOCKET" in os.environ


def notify(state: str) -> None:
    """Tell systemd, through systemd-python. When it does not listen, it is told the next time."""
    if asks():
        from systemd import daemon

        try:
            daemon.notify(state)
        except OSError:
            pass


def watchdog_interval() -> float:
    """Seconds between two signs of life, half of what systemd waits for; 0: it does not wait."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / 2e6
