"""The content of lock files: what is certainly one, and which process made it.

Only a file that is certainly a lock file may be unlinked: `john.lock` may be the mailbox of a user
of that name. An empty file is not certainly one, and neither is a file that cannot be read.

Our lock files have up to four lines: pid, host, boot, pid namespace. The pid is first for
liblockfile, which reads nothing else. Only for a lock of ours from this host, boot and pid
namespace can we say that its process is gone. The process of any other may be in another container
or on another host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

STALE_AFTER = 300.0  # seconds; the age at which liblockfile, too, breaks a dotlock
BOOT_ID = "/proc/sys/kernel/random/boot_id"  # random(4)
# The variable with the boot's id, where that file cannot be read (systemd.exec(5), ProcSubset=pid).
BOOT_ID_VARIABLE = b"TPOP3D_BOOT_ID"
MAX = 256  # octets that a lock file has at most
# Errors of open(2): we may not read the file, or it is no regular file any more.
UNREADABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO)
READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class Seen:
    """A file as it was seen at a path. `content` is None if the file is not regular, is too large
    for a lock file, or cannot be read."""

    __slots__ = ("content", "status")

    def __init__(self, status: os.stat_result, content: bytes | None) -> None:
        self.status = status
        self.content = content

    @property
    def inode(self) -> tuple[int, int]:
        """The device and the inode number."""
        return self.status.st_dev, self.status.st_ino

    @property
    def is_lock(self) -> bool:
        """Is it certainly a lock file?"""
        return self.content is not None and is_lock(self.content)

    @property
    def is_none(self) -> bool:
        """Is it certainly no lock file? Then nobody need wait for it."""
        if not stat.S_ISREG(self.status.st_mode):
            return False  # some programs lock with directories or symbolic links
        return self.status.st_size > MAX or b"\nFrom " in b"\n" + (self.content or b"")

    @property
    def touched(self) -> float:
        """When it was made or refreshed, in seconds of the file system's clock. Its mtime may have
        been set into the future; its ctime cannot be."""
        return min(self.status.st_mtime, self.status.st_ctime)

    def is_still(self, other: Seen | None) -> bool:
        """Is `other` the same file, with the same content, and not written since?"""
        return (
            other is not None
            and self.inode == other.inode
            and self.content == other.content
            and self.status.st_mtime_ns == other.status.st_mtime_ns
        )


def look(path: str, alone: bool = False) -> Seen | None:
    """Look at the file at a path; returns None if there is none. Raises OSError.

    `alone`: treat a file as unreadable if somebody has it open for writing (fcntl(2), leases).
    """
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX:
            return Seen(status, None)
        try:
            fd = os.open(path, READING)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return Seen(status, None)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (alone and _is_being_written(fd)):
            return Seen(status, None)
        content = os.read(fd, MAX + 1)
        return Seen(status, content if len(content) <= MAX else None)
    finally:
        os.close(fd)


def _is_being_written(fd: int) -> bool:
    """Has somebody else the file open for writing?

    False if that cannot be told: the file is another user's, or the file system has no leases.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def is_lock(content: bytes) -> bool:
    """Is this content what programs write into dotlocks, and nothing else?

    Ours and liblockfile's is a pid (or liblockfile's `0`), perhaps with more lines without blanks.
    procmail writes `0`, mail.local of sendmail `0` and a NUL, Dovecot and maildrop `pid:host`.
    """
    first, _, rest = content.removesuffix(b"\0").partition(b"\n")
    pid, colon, host = first.partition(b":")
    if not pid.isdigit() or len(pid) > 10 or len(content) > MAX:
        return False
    lines = [host] if colon else []
    lines += rest.removesuffix(b"\n").split(b"\n") if rest else []
    return all(line and all(0x21 <= octet <= 0x7E for octet in line) for line in lines)


def pid_of(content: bytes) -> int:
    """The pid in the content of a lock file; 0: it names no process."""
    return int(content.partition(b"\n")[0].partition(b":")[0].removesuffix(b"\0"))


def is_dead(content: bytes) -> bool:
    """Is this a lock of ours, from this host, boot and pid namespace, whose process is gone?"""
    if not is_of_here(content):
        return False
    try:
        os.kill(pid_of(content), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # the process lives, as another user; or this is no pid of this system
    return False


def is_of_here(content: bytes) -> bool:
    """Is this a lock of ours that names this host, boot and pid namespace?"""
    where = here()
    return is_lock(content) and where.count(b"\n") == 3 and content.partition(b"\n")[2] == where


def here() -> bytes:
    """The lines of our locks behind the pid: host, boot and pid namespace; only the host if the
    boot or the namespace is not known."""
    host = "".join(one if "!" <= one <= "~" else "?" for one in os.uname().nodename) or "?"
    boot = _boot()
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot = b""
    return b"%b\n%b\n%d\n" % (host.encode(), boot, namespace) if boot else b"%b\n" % host.encode()


def _boot() -> bytes:
    """The id of this boot as 32 hex digits (random(4)); b"" if it is not known."""
    try:
        fd = os.open(BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
        try:
            boot = os.read(fd, 64)
        finally:
            os.close(fd)
    except OSError:
        boot = os.environb.get(BOOT_ID_VARIABLE, b"")
    boot = boot.strip().replace(b"-", b"")  # systemd writes no hyphens
    return boot if boot.isalnum() and len(boot) == 32 else b""
