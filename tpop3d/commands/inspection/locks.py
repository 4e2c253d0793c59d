"""Find out who holds which lock on a mailspool, without locking anything.

F_OFD_GETLK tells of fcntl locks; flock(2) has no such call, so /proc/locks tells. Neither names the
holder of an open-file-description lock: the descriptors of all processes are searched for it
(proc_pid_fdinfo(5)). Only root sees those of other users.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from time import time

from tpop3d.mailspool import lockfile
from tpop3d.mailspool.lockfile import STALE_AFTER, Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Inode = tuple[int, int]  # device and number

FREE, HELD, UNKNOWN = "free", "held", "unknown"
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid


class Process:
    """A process: its pid, the start of its command, and its uid (-1: unknown)."""

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
            pass  # it is gone, or hidden (hidepid=)


class Holders:
    """The processes that hold locks on a file, as far as we may see them.

    `has_flock`: does anybody hold an flock, even if we may not see who? None: unknown.
    """

    __slots__ = ("fcntl", "flock", "has_flock")

    def __init__(self) -> None:
        self.fcntl: list[Process] = []
        self.flock: list[Process] = []
        self.has_flock: bool | None = None


class Lock:
    """An fcntl lock or an flock: FREE, HELD or UNKNOWN, and the holders that we can see.

    `reason` says why it is UNKNOWN.
    """

    __slots__ = ("holders", "reason", "state")

    def __init__(self, state: str, holders: list[Process], reason: str = "") -> None:
        self.state = state
        self.holders = holders
        self.reason = reason


class Dotlock:
    """A dotlock: its age in seconds, the pid that it names (0: none), and its owner.

    `is_alive`: is that process alive? None: unknown. `is_stale`: would a session break the lock?
    `is_lock`: is it certainly a lock file? If not, sessions leave it alone.
    """

    __slots__ = ("age", "is_alive", "is_lock", "is_stale", "path", "pid", "uid")

    def __init__(self, path: str, seen: Seen) -> None:
        content = seen.content or b""
        self.path = path
        self.age = time() - seen.touched
        self.uid = seen.status.st_uid
        self.is_lock = seen.is_lock
        self.pid = lockfile.pid_of(content) if seen.is_lock else 0
        self.is_alive = _lives(self.pid) if self.pid else None
        if self.is_alive is False and not lockfile.is_of_here(content):
            self.is_alive = None  # it may be alive on another host
        self.is_stale = seen.is_lock and (self.age > STALE_AFTER or self.is_alive is False)


def inode_of(path: str) -> Inode | None:
    """Return device and inode of a regular file; None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def holders_of(inodes: Iterable[Inode]) -> dict[Inode, Holders]:
    """Find the processes that hold a lock on one of these files, as far as we may see them."""
    found = {inode: Holders() for inode in inodes}
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file if "->" not in line]  # a lock that waits
    except OSError:
        return found
    for inode, holders in found.items():
        holders.has_flock = any(words[1] == "FLOCK" and _is_at(words, inode) for words in lines)
    if not any(_is_at(words, inode) for words in lines for inode in found):
        return found  # the search takes a while if there are many processes
    for name in os.listdir("/proc"):
        if name.isdigit():
            for inode, kinds in _locked_by(name, found):
                if "OFDLCK" in kinds or "POSIX" in kinds:
                    found[inode].fcntl.append(Process(int(name)))
                if "FLOCK" in kinds:
                    found[inode].flock.append(Process(int(name)))
    return found


def _is_at(words: list[str], inode: Inode) -> bool:
    """Is a line of /proc/locks about this file? A file system without a disk may have two device
    numbers."""
    device, number = inode
    for word in words:
        place = word.split(":")
        if len(place) == 3 and place[2] == str(number):
            major, minor = int(place[0], 16), int(place[1], 16)
            return os.makedev(major, minor) == device or major == os.major(device) == 0
    return False


def _locked_by(pid: str, wanted: Iterable[Inode]) -> list[tuple[Inode, set[str]]]:
    """Return the files that a process has locked, among those wanted, and the kinds of its
    locks."""
    locked: dict[Inode, set[str]] = {}
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []  # it is gone, or we may not look at it
    for descriptor in descriptors:
        try:
            status = os.stat(f"/proc/{pid}/fd/{descriptor}")
            inode = (status.st_dev, status.st_ino)
            if inode not in wanted:
                continue
            with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as file:
                kinds = {line.split()[2] for line in file if line.startswith("lock:")}
        except OSError:
            continue
        locked.setdefault(inode, set()).update(kinds)
    return list(locked.items())


def look(path: str, holders: list[Process]) -> Lock | None:
    """Look at the fcntl lock of a file; `holders` are those known already. None: there is no such
    file."""
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


def look_at_flock(holders: Holders) -> Lock:
    """Tell of the flock of a file that is there."""
    if holders.flock or holders.has_flock:
        return Lock(HELD, holders.flock)
    if holders.has_flock is None:
        return Lock(UNKNOWN, [], "/proc/locks cannot be read")
    return Lock(FREE, [])


def look_for_dotlock(spool: str) -> Dotlock | None:
    """Look for the dotlock beside a spool; None if there is none. Raises OSError."""
    path = spool + ".lock"
    seen = lockfile.look(path)
    return None if seen is None else Dotlock(path, seen)


def _lives(pid: int) -> bool | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return None  # no such pid is possible here
    return True
