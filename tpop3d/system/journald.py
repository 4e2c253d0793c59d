"""Sends lines to systemd's journal, each with its fields: `journalctl POP3_USER=anna`.

We import only the extension of systemd-python that sends: the rest of its `systemd.journal`
(logging, uuid, ...) takes more than ten times as long.

libsystemd opens a socket with the first line, keeps it, and does not tell its number. If we then
close all descriptors that we do not know, libsystemd goes on writing to that number, which may be
a client's connection by then. So we find out the number. After descriptors were closed, we put a
socket back there; if the number is anything but our socket, we send nothing.
"""

from __future__ import annotations

import os
import select
import stat

from tpop3d.system import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.system.outlets import Event

SOCKET = "/run/systemd/journal/socket"  # the socket of sd_journal_sendv(3)
PATIENCE = 1.0  # seconds that a line may wait for the journal
PREFIX = "POP3_"

# Fields that have another name than in the line.
NAMES = {"rip": "REMOTE", "retr": "RETRIEVED", "dele": "DELETED"}
COUNTED = ("retr", "top")  # a value `messages/octets` becomes two fields

Identity = tuple[int, int]  # st_dev and st_ino


class JournalSocket:
    """Sends to the journal, in this process and in those that it forks.

    Raises ImportError if systemd-python is missing.
    """

    def __init__(self) -> None:
        from systemd import _journal

        self._sendv = _journal.sendv
        self._fd = -1  # the socket of libsystemd; -1 until there is one
        self._socket: Identity | None = None  # the identity of that socket
        self._patience = PATIENCE

    def send(self, level: int, facility: int, line: str, event: Event | None) -> bool:
        """Send a line; level and facility are syslog(3)'s. False: the caller must use syslog now.

        If the journal is away, or has no room for a second, the line is lost, and so are all lines
        until there is room again. No session ends or waits for that.
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
            # If it has another number, we do not know that: then this was the last line.
            self._fd, self._socket = number, _identity(number) if _is_socket(number) else None
        return self._fd < 0 or self._socket is not None

    def hold(self) -> None:
        """Put a socket back if ours was closed, before anything else gets its number."""
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
        """The lowest free descriptor number, which the next socket gets (open(2)); -1 if the
        journal has no room for a line, so that libsystemd would wait, perhaps for ever."""
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
    """Turn an event into fields of the journal, without those that are empty.

    Values are those of the line, without quotes: one line of printable ASCII each.
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
    """The device and inode of an open file; None if the descriptor is not open."""
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
