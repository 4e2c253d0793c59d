"""Who holds which lock on a mailspool. Nothing is locked to find that out (F_OFD_GETLK).

A lock of the open-file-description kind has no holder by its own account: it is looked for in what
/proc says of the descriptors of processes (proc_pid_fdinfo(5)). As root those of all are seen.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from time import time

from tpop3d.mailspool.locks import STALE_AFTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Inode = tuple[int, int]  # device and number

FREE, HELD, UNKNOWN = "free", "held", "unknown"
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid


class Process:
    """A process: its number, the start of its command, the uid that it has (-1: unknown)."""

    __slots__ = ("command", "pid", "uid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.command = ""
        self.uid = -1
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                for line in file:
                    key, _, value = line.partition(b":")
                    if key == b"Name":
                        self.command = os.fsdecode(value.strip())
                    elif key == b"Uid":
                        self.uid = int(value.split()[1])
        except OSError:
            pass  # gone, or hidden (hidepid=)


class Lock:
    """An fcntl lock: FREE, HELD or UNKNOWN, and the processes that have it, as far as they can be
    seen. Of one that is UNKNOWN there is a `reason`."""

    __slots__ = ("holders", "reason", "state")

    def __init__(self, state: str, holders: list[Process], reason: str = "") -> None:
        self.state = state
        self.holders = holders
        self.reason = reason


class Dotlock:
    """A dotlock: its age in seconds, the process that it names (0: none), whether that lives (None:
    nobody knows), and whether a session would break it."""

    __slots__ = ("age", "is_alive", "is_stale", "path", "pid", "uid")

    def __init__(self, path: str, status: os.stat_result, pid: int) -> None:
        self.path = path
        self.age = time() - status.st_mtime
        self.uid = status.st_uid
        self.pid = pid
        self.is_alive = _lives(pid) if pid else None
        self.is_stale = self.age > STALE_AFTER or self.is_alive is False


def inode_of(path: str) -> Inode | None:
    """What a regular file is known by, None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def holders_of(inodes: Iterable[Inode]) -> dict[Inode, list[Process]]:
    """The processes that have an fcntl lock on one of these files, as far as we may see them."""
    found: dict[Inode, list[Process]] = {inode: [] for inode in inodes}
    numbers = {str(number) for _, number in found}
    try:
        with open("/proc/locks", encoding="ascii") as file:
            places = [word.split(":")[-1] for line in file for word in line.split() if ":" in word]
    except OSError:
        return found
    if not numbers.intersection(places):
        return found  # the rest takes a while where there are many processes
    for name in os.listdir("/proc"):
        if name.isdigit():
            for inode in _locked_by(name, found):
                found[inode].append(Process(int(name)))
    return found


def _locked_by(pid: str, wanted: Iterable[Inode]) -> set[Inode]:
    """Which of these files a process has a lock on."""
    locked: set[Inode] = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return locked  # gone, or none that we may look at
    for descriptor in descriptors:
        try:
            status = os.stat(f"/proc/{pid}/fd/{descriptor}")
            inode = (status.st_dev, status.st_ino)
            if inode not in wanted:
                continue
            with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as file:
                kinds = [line.split()[2] for line in file if line.startswith("lock:")]
        except OSError:
            continue
        if "OFDLCK" in kinds or "POSIX" in kinds:
            locked.add(inode)
    return locked


def look(path: str, holders: list[Process]) -> Lock | None:
    """The fcntl lock of a file, whose `holders` may be known; None: there is no such file."""
    try:
        fd = os.open(path, FLAGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Lock(HELD if holders else UNKNOWN, holders, error.strerror or "")
    try:
        whole = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, whole))
    except OSError as error:
        return Lock(UNKNOWN, holders, error.strerror or "")
    finally:
        os.close(fd)
    if kind == fcntl.F_UNLCK:
        return Lock(FREE, [])
    return Lock(HELD, holders or ([Process(pid)] if pid > 0 else []))


def look_for_dotlock(spool: str) -> Dotlock | None:
    """The dotlock beside a spool, None if there is none. Raises OSError."""
    path = spool + ".lock"
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    holder = b""
    if stat.S_ISREG(status.st_mode):
        try:
            fd = os.open(path, FLAGS)
        except OSError:
            pass  # it locks all the same
        else:
            try:
                holder = os.read(fd, 16).strip()
            finally:
                os.close(fd)
    return Dotlock(path, status, int(holder) if holder.isdigit() else 0)


def _lives(pid: int) -> bool | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return None  # no pid of this system
    return True
