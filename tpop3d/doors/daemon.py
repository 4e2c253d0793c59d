"""What a daemon does: it leaves the terminal, and writes a pid file (daemon(7))."""

from __future__ import annotations

import os
import stat

from tpop3d.system import signal
from tpop3d.system.refusal import PERMANENT, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PIDFILE_MODE = 0o644
READY = b"+"  # what a detached process tells its parent


def detach() -> Callable[[], None]:
    """Go on in the background; the parent exits when the returned function is called.

    If the child ends before that, the parent exits, too, with status 1.
    """
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        os._exit(0 if os.read(read_end, 1) == READY else 1)
    os.close(read_end)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")

    def tell() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        os.write(write_end, READY)
        os.close(write_end)

    return tell


def write_pidfile(path: str) -> Refusal | None:
    """Write our pid to a file that others may read and only we may change.

    Others may be able to write to the directory: no link of theirs leads us to another file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, PIDFILE_MODE)
    except OSError as error:
        why = "a pid file must not be a link" if os.path.islink(path) else error.strerror
        return Refusal(f"{path}: {why}", PERMANENT)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            why = "a pid file must be a file, with no other name"
            return Refusal(f"{path}: {why}", PERMANENT)
        if status.st_uid != os.geteuid():
            return Refusal(f"{path}: a pid file must not belong to another user", PERMANENT)
        os.fchmod(fd, PIDFILE_MODE)  # whatever the umask says, or it was before
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except OSError as error:
        return Refusal(f"{path}: {error.strerror}", PERMANENT)
    finally:
        os.close(fd)
    return None


def remove_pidfile(path: str) -> None:
    """Remove the file if it is still ours."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            is_ours = os.read(fd, 32).strip() == b"%d" % os.getpid()
        finally:
            os.close(fd)
        if is_ours:
            os.unlink(path)
    except OSError:
        pass
