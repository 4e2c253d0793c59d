"""Lines for systemd's journal, each with its fields: `journalctl POP3_USER=anna`.

Of the package systemd-python only the extension is imported that its own `systemd.journal` sends
with: all else in there (logging, uuid, ...) takes more than ten times as long.

libsystemd opens a socket of its own with the first line, keeps it, and tells nobody its number.
Where all descriptors are closed but known ones, it would go on writing to that number, which may
be a client's connection by then. So the number is found out here; the socket is put back where it
was closed; and where anything else is there, nothing is sent.
"""

from __future__ import annotations

import os
import select
import stat

from tpop3d.system import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.system.logs import Event

SOCKET = "/run/systemd/journal/socket"  # sd_journal_sendv(3)'s
PATIENCE = 1.0  # seconds that a line may wait for the journal
PREFIX = "POP3_"

# Fields that are named otherwise than their words in the line are.
NAMES = {"rip": "REMOTE", "retr": "RETRIEVED", "dele": "DELETED"}
COUNTED = ("retr", "top")  # messages/octets: two fields

Identity = tuple[int, int]  # st_dev and st_ino


class JournalSocket:
    """The way to the journal, in this process and in those that it forks.

    Raises ImportError where there is no systemd-python.
    """

    def __init__(self) -> None:
        from systemd import _journal

        self._sendv = _journal.sendv
        self._fd = -1  # libsystemd's socket; -1 until there is one
        self._socket: Identity | None = None  # what that socket is
        self._patience = PATIENCE

    def send(self, level: int, facility: int, line: str, event: Event | None) -> bool:
        """Send a line; level and facility are syslog(3)'s. False: lines must go another way now.

        A journal that is away, or has no room for a second, loses the line, and those that come
        until there is room again: nobody's session ends for it, or waits.
        """
        if self._fd >= 0 and _identity(self._fd) != self._socket:
            return False
        if (number := self._number_if_room()) < 0:
            return True
        fields = [
            f"MESSAGE={line}",
            f"PRIORITY={level}",
            "SYSLOG_IDENTIFIER=tpop3d",
            f"SYSLOG_FACILITY={facility >> 3}",
        ]
        if event is not None:
            fields += fields_of(event)
        is_sent = True
        try:
            self._sendv(*fields)
        except OSError:
            is_sent = False
        if self._fd < 0 and (is_sent or _is_socket(number)):
            # If it is not there, it is nowhere that we know: this was the last line.
            self._fd, self._socket = number, _identity(number) if _is_socket(number) else None
        return self._fd < 0 or self._socket is not None

    def hold(self) -> None:
        """Have the socket back after it was closed, before anything else gets its number."""
        if self._fd < 0 or _identity(self._fd) is not None:
            return
        try:
            other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return
        if other.fileno() == self._fd:
            other.detach()
        else:
            os.dup2(other.fileno(), self._fd, inheritable=False)
            other.close()
        self._socket = _identity(self._fd)

    def _number_if_room(self) -> int:
        """The lowest number that no descriptor has, which the next one gets (socket(2)); -1: the
        journal would not take a line, and libsystemd would wait for it, perhaps forever."""
        try:
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return -1
        number = probe.fileno()
        has_room = False
        try:
            probe.connect(SOCKET)
            poll = select.poll()
            poll.register(number, select.POLLOUT)
            has_room = bool(poll.poll(self._patience * 1000))
            self._patience = PATIENCE if has_room else 0.0
        except OSError:
            pass
        probe.close()
        return number if has_room else -1


def fields_of(event: Event) -> list[str]:
    """An event as fields of the journal; those that are empty are left out.

    The values are as the line has them, without its quotes: one line of printable ASCII each.
    """
    found = [f"{PREFIX}EVENT={event.what}"]
    for key, value in event.fields.items():
        name = PREFIX + NAMES.get(key, key.upper())
        if key in COUNTED:
            messages, _, octets = value.partition("/")
            found += [f"{name}={messages}", f"{name}_OCTETS={octets}"]
        elif value:
            found.append(f"{name}={value}")
    return found


def _identity(fd: int) -> Identity | None:
    """What tells an open file apart from others; None for a descriptor that is not open."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
