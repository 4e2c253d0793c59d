"""What a lock file looks like, and what it says of who made it.

Nothing that is not certainly one is ever unlinked: `john.lock` may be the mailbox of a user of that
name. An empty file is none, nor is what cannot be read.

Ours say who made them, a line each: pid, host, boot, pid namespace. The pid comes first for
liblockfile, which reads no more. Of a lock that is not ours, or not of here, nobody can say that
its process is gone: it may be in another container, or on another host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

STALE_AFTER = 300.0  # seconds; the age at which liblockfile, too, breaks a dotlock
BOOT_ID = "/proc/sys/kernel/random/boot_id"  # random(4)
# The same, from whoever starts us where that cannot be read (systemd.exec(5), ProcSubset=pid).
BOOT_ID_VARIABLE = b"TPOP3D_BOOT_ID"
MAX = 256  # octets of a lock file, at most
# Of open(2): another's, or no regular file any more.
UNREADABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO)
READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class Seen:
    """What lies at a path. `content` is None of what is not a small regular file, or could not be
    read."""

    __slots__ = ("content", "status")

    def __init__(self, status: os.stat_result, content: bytes | None) -> None:
        self.status = status
        self.content = content

    @property
    def inode(self) -> tuple[int, int]:
        """Device and number."""
        return self.status.st_dev, self.status.st_ino

    @property
    def is_lock(self) -> bool:
        """Is it certainly a lock file?"""
        return self.content is not None and is_lock(self.content)

    @property
    def is_none(self) -> bool:
        """Is it certainly none? Nobody waits for it then."""
        if not stat.S_ISREG(self.status.st_mode):
            return False  # some lock with directories or symbolic links
        return self.status.st_size > MAX or b"\nFrom " in b"\n" + (self.content or b"")

    @property
    def touched(self) -> float:
        """When it was made or refreshed, by the file system's clock. Its mtime may have been set
        into the future, its ctime not."""
        return min(self.status.st_mtime, self.status.st_ctime)

    def is_still(self, other: Seen | None) -> bool:
        """Is the other the same file, and nobody has touched it?"""
        return (
            other is not None
            and self.inode == other.inode
            and self.content == other.content
            and self.status.st_mtime_ns == other.status.st_mtime_ns
        )


def look(path: str, alone: bool = False) -> Seen | None:
    """What lies there; None: nothing. `alone`: what somebody has open for writing counts as not
    readable (fcntl(2), leases). Raises OSError."""
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
    """Has somebody the file open for writing? False where nobody can say: it is another's, or the
    file system has no leases."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def is_lock(content: bytes) -> bool:
    """Is this what programs write into dotlocks, and nothing else?

    A number, perhaps more lines without blanks: ours; liblockfile's (and its `0`), procmail's `0`;
    `pid:host` of Dovecot and maildrop; sendmail's mail.local ends its `0` with a NUL.
    """
    first, _, rest = content.removesuffix(b"\0").partition(b"\n")
    pid, colon, host = first.partition(b":")
    if not pid.isdigit() or len(pid) > 10 or len(content) > MAX:
        return False
    lines = [host] if colon else []
    lines += rest.removesuffix(b"\n").split(b"\n") if rest else []
    return all(line and all(0x21 <= octet <= 0x7E for octet in line) for line in lines)


def pid_of(content: bytes) -> int:
    """The process that a lock file names; 0: none."""
    return int(content.partition(b"\n")[0].partition(b":")[0].removesuffix(b"\0"))


def is_dead(content: bytes) -> bool:
    """Is this a lock of ours, of this host, boot and pid namespace, whose process is gone?"""
    if not is_of_here(content):
        return False
    try:
        os.kill(pid_of(content), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # somebody else's, so alive; or no pid of this system
    return False


def is_of_here(content: bytes) -> bool:
    """Is this a lock of ours that says that it is of this host, boot and pid namespace?"""
    where = here()
    return is_lock(content) and where.count(b"\n") == 3 and content.partition(b"\n")[2] == where


def here() -> bytes:
    """What a lock of ours says behind the pid: host, boot and pid namespace, a line each; where
    one of them is not known, the host alone."""
    host = "".join(one if "!" <= one <= "~" else "?" for one in os.uname().nodename) or "?"
    boot = _boot()
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot = b""
    return b"%b\n%b\n%d\n" % (host.encode(), boot, namespace) if boot else b"%b\n" % host.encode()


def _boot() -> bytes:
    """What tells this running of the kernel from all others; b"" where it is not known."""
    try:
        fd = os.open(BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
        try:
            boot = os.read(fd, 64)
        finally:
            os.close(fd)
    except OSError:
        boot = os.environb.get(BOOT_ID_VARIABLE, b"")
    boot = boot.strip().replace(b"-", b"")  # systemd writes none
    return boot if boot.isalnum() and len(boot) == 32 else b""
