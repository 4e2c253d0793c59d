"""Giving up privileges, for good: to become a mailbox's user, or to be locked in.

This is the one place where it is done.
"""

from __future__ import annotations

import os
import resource
from time import monotonic

from tpop3d.system import processes, signal
from tpop3d.system.io import close_all_but, make_directory, ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from tpop3d.system.refusal import Refusal

    Found = TypeVar("Found")

PR_SET_DUMPABLE = 4  # prctl(2)
PR_SET_NO_NEW_PRIVS = 38
MAX_DESCRIPTORS = 16  # of a gatekeeper
RESERVE = 4 << 20  # octets
NO_LIMIT = 1 << 62  # octets
OUT_OF_MEMORY = "needs more memory than session-memory"

# What a gatekeeper asks of the kernel once it is locked in: to talk, to wait, to remember.
SYSTEM_CALLS = (
    "read", "write", "sendto", "recvfrom", "sendmsg", "recvmsg", "poll", "ppoll", "select",
    "pselect6", "close", "dup", "fcntl", "fstat", "newfstatat", "lseek", "ioctl", "shutdown",
    "getsockname", "getpeername", "setsockopt", "getsockopt", "mmap", "munmap", "mremap",
    "madvise", "mprotect", "brk", "futex", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
    "sigaltstack", "restart_syscall", "clock_gettime", "gettimeofday", "getrandom", "getpid",
    "gettid", "exit", "exit_group",
)  # fmt: skip


STATUS = 8192  # octets of proc_pid_status(5), more than it has before its capabilities


class StillPrivileged(Exception):
    """The process is not who it should be. It must not go on."""


class Sandbox:
    """Where gatekeepers are locked in: user and group, and an empty directory.

    `uid` is None where we are not root, and nobody can be locked in. `load_filter` restricts the
    system calls, where the library for that is installed. `file_size` is how many octets a file
    may be made long: none, unless the "connection" is a file itself (`tpop3d --inetd > FILE`).
    `memory` is how many octets of data a process may have; None: any number.
    """

    __slots__ = ("directory", "file_size", "gid", "load_filter", "memory", "prctl", "uid")

    def __init__(self, uid: int | None, gid: int, directory: str) -> None:
        self.uid = uid
        self.gid = gid
        self.directory = directory
        self.file_size = 0
        self.memory: int | None = None
        # Loaded now: from inside nothing can be.
        self.load_filter = _system_call_filter()
        self.prctl = _prctl()


def become(
    uid: int, gid: int, further: int | None = None, *, is_asleep: bool = True
) -> Refusal | None:
    """Become a mailbox's user for good. Where this is refused, nothing was changed.

    The only groups are `gid` and `further`: a mail server does not need what other groups allow a
    user. A group that `is_asleep` is only the saved one: nothing is allowed by it until
    `take_group`. Without root, this process must be the user already. Raises `StillPrivileged`
    and OSError; the process must then end.
    """
    if refused := cannot_become(uid, gid, further):
        return refused
    if os.geteuid() == 0:
        if further is None or is_asleep:
            _switch(uid, gid, [gid], gid if further is None else further)
        else:
            _switch(uid, gid, sorted({gid, further}), gid)
    return None


def cannot_become(uid: int, gid: int, further: int | None = None) -> Refusal | None:
    """Why this process cannot become a mailbox's user; None if it can."""
    from tpop3d.system.refusal import PERMANENT, Refusal  # nobody becomes a user before a greeting

    if uid <= 0 or gid <= 0 or (further is not None and further <= 0):
        return Refusal("uid 0 and gid 0 own no mailbox here", PERMANENT)
    if os.geteuid() == 0:
        return None
    if uid != os.geteuid():
        return Refusal(f"not root, so cannot become uid {uid}", PERMANENT)
    needed = gid if further is None else further
    if needed != os.getegid() and needed not in os.getgroups():
        return Refusal(f"not root, so cannot take gid {needed}", PERMANENT)
    return None


def take_group(gid: int) -> Callable[[bool], None]:
    """A function that takes a group which is asleep (True), and lets it go again (False); see
    `become`. The process is the user already. Raises OSError.
    """
    _, own, saved = os.getresgid()
    if saved != gid or own == gid:
        return lambda is_wanted: None  # it is awake, or not ours to wake
    return lambda is_wanted: os.setegid(gid if is_wanted else own)


def for_a_moment(uid: int, gid: int, act: Callable[[], Found]) -> Found:
    """Do something as a mailbox's user, with this group alone; be root again when it returns.

    The effective ids decide whether a file may be reached (credentials(7)), on a file server, too;
    FUSE alone wants to see the user in all ids (see `apart`). The real and the saved ids stay
    root's: they are the way back, and they keep the user's other processes from sending signals
    and from tracing (kill(2), ptrace(2)). Without root this process is the user already. Raises
    what `act` raises; and `StillPrivileged` and OSError where the process did not become the user,
    or root again: it must then end.
    """
    if os.geteuid() != 0:
        return act()
    before = os.getresgid(), sorted(os.getgroups())
    try:
        os.setgroups([gid])
        os.setegid(gid)
        os.seteuid(uid)
        if (os.geteuid(), os.getegid(), os.getgroups()) != (uid, gid, [gid]):
            raise StillPrivileged
        return act()
    finally:
        os.seteuid(0)
        os.setegid(before[0][1])
        os.setgroups(before[1])
        if os.getresuid()[1:] != (0, 0) or (os.getresgid(), sorted(os.getgroups())) != before:
            raise StillPrivileged


def apart(
    uid: int, gid: int, further: int | None, act: Callable[[], bytes], seconds: float
) -> bytes:
    """Do something in a process that becomes a mailbox's user for good, with both groups; returns
    its octets, which must fit into a pipe.

    Returns b"" where none come within `seconds`: the user's other processes may stop and kill that
    process. Raises OSError where there can be no further process.
    """
    read_end, write_end = os.pipe()

    def work() -> None:
        if become(uid, gid, further, is_asleep=False) is None:
            os.write(write_end, act())

    try:
        pid = processes.spawn(work)
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    deadline = monotonic() + seconds
    answer = b""
    while has_said := bool(ready(deadline - monotonic(), read_end)):
        if not (octets := os.read(read_end, 65536)):
            break
        answer += octets
    os.close(read_end)
    os.kill(pid, signal.SIGKILL)
    # What hangs in the kernel does not end; it is nobody's to wait for then.
    os.waitpid(pid, 0 if has_said else os.WNOHANG)
    return answer if has_said else b""


def confine(sandbox: Sandbox, keep: tuple[int, ...]) -> None:
    """Lock this process in: all that it may still do is talk on the descriptors in `keep`.

    Raises `StillPrivileged` and OSError; the process must then end.
    """
    null = os.open(os.devnull, os.O_RDWR)
    if sandbox.uid is not None:
        _enter(sandbox.directory)
        _switch(sandbox.uid, sandbox.gid, [], sandbox.gid)
    # No exec gives privileges, and nobody may look at this process's memory.
    sandbox.prctl(PR_SET_NO_NEW_PRIVS, 1)
    sandbox.prctl(PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sandbox.file_size, sandbox.file_size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sandbox.memory is not None:
        limit_memory(sandbox.memory)
    if sandbox.uid is not None:
        # Of an ordinary user's processes there may be many already.
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # Up to here the log can be written to.
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_all_but(keep)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))
    if sandbox.load_filter is not None:
        sandbox.load_filter()


def limit_memory(octets: int) -> None:
    """Limit this process's data to so many octets (RLIMIT_DATA), unless its limit is lower already:
    it gets a MemoryError instead of the machine's last page."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    soft, most = [one if one != resource.RLIM_INFINITY else NO_LIMIT for one in before]
    hard = min(octets + RESERVE, most)
    resource.setrlimit(resource.RLIMIT_DATA, (max(min(soft, hard - RESERVE), 0), hard))


def use_reserve() -> None:
    """Raise the limit of `limit_memory` a little: for last words."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _enter(directory: str) -> None:
    """Have nothing but an empty directory."""
    try:
        os.chroot(directory)
    except FileNotFoundError:
        # Somebody has cleared the state directory, most of which is there only to save time.
        make_directory(os.path.dirname(directory), 0o711)
        make_directory(directory, 0o555)
        os.chroot(directory)
    except OSError as error:
        raise _naming(error, "chroot", "CAP_SYS_CHROOT") from None
    os.chdir("/")


def _naming(error: OSError, call: str, capability: str) -> OSError:
    """An error that names the call which the kernel has refused, and what root needs for it."""
    needed = f" takes {capability}" if isinstance(error, PermissionError) else ""
    return OSError(error.errno, f"{error.strerror} ({call}(2){needed})")


def _switch(uid: int, gid: int, groups: list[int], saved: int) -> None:
    """Groups, gid, uid: set, read back, and no way back to root. `saved` is the saved gid."""
    gids = gid, gid, saved
    for set_ids, ids, capability in (
        (os.setgroups, (groups,), "CAP_SETGID"),
        (os.setresgid, gids, "CAP_SETGID"),
        (os.setresuid, (uid,) * 3, "CAP_SETUID"),
    ):
        try:
            set_ids(*ids)
        except OSError as error:
            raise _naming(error, set_ids.__name__, capability) from None
    if os.getresuid() != (uid,) * 3 or os.getresgid() != gids or os.getgroups() != groups:
        raise StillPrivileged
    for regain in (os.setuid, os.seteuid, os.setgid):
        try:
            regain(0)
        except PermissionError:
            continue
        raise StillPrivileged


def _prctl() -> Callable[[int, int], None]:
    """Make a call for prctl(2), which Python lacks, with what `ctypes` is made of: `ctypes` itself
    would cost each connection 3 ms before its greeting."""
    import _ctypes

    this_program: Any = None  # dlopen(3): and the libraries that it has
    address = _ctypes.dlsym(_ctypes.dlopen(this_program, 0), "prctl")

    def prctl(option: int, value: int) -> None:
        if _ctypes.call_function(address, (option, value, 0, 0, 0)):
            raise OSError(0, f"prctl({option}) is refused")

    return prctl


def _system_call_filter() -> Callable[[], object] | None:
    """Make a call that restricts this process to `SYSTEM_CALLS`; None without a library for it.

    Debian's binding comes first: pyseccomp needs ctypes, and with that as long as all the rest.
    """
    for library in ("seccomp", "pyseccomp"):
        try:
            seccomp = __import__(library)
        except ImportError:
            continue
        if hasattr(seccomp, "SyscallFilter"):  # others have used the name
            break
    else:
        return None
    rules = seccomp.SyscallFilter(defaction=seccomp.KILL)
    for name in SYSTEM_CALLS:
        try:
            rules.add_rule(seccomp.ALLOW, name)
        except (OSError, RuntimeError, ValueError):
            continue  # this architecture has no such call
    load: Callable[[], object] = rules.load
    return load


def has_capability(number: int) -> bool:
    """Has this process a capability, by its number? Yes, where the kernel does not tell."""
    return bool(capabilities() >> number & 1)


def capabilities() -> int:
    """The effective capabilities(7) of this process, as bits; all bits, if they are not known."""
    try:
        fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        status = os.read(fd, STATUS)
        os.close(fd)
        return int(status.partition(b"\nCapEff:")[2].split(b"\n", 1)[0], 16)
    except (OSError, ValueError):
        return -1
