"""What can go wrong with a maildrop's files, and the refusals that are made of it.

One failure is an exception: in the middle of a message it is too late for a value.
"""

from __future__ import annotations

import stat

from tpop3d.system import reasons
from tpop3d.system.refusal import PERMANENT, TEMPORARY, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Done = TypeVar("Done")


class Truncated(Exception):
    """The spool has become shorter while it was read."""


def named_by(mode: int) -> str:
    """Name the type of a file that is not regular, by its st_mode (inode(7)); "" if it is."""
    names = {
        stat.S_IFREG: "",
        stat.S_IFLNK: "a symbolic link, which is not followed",
        stat.S_IFDIR: "a directory, not a file",
        stat.S_IFIFO: "a FIFO, not a regular file",
        stat.S_IFSOCK: "a socket, not a regular file",
        stat.S_IFCHR: "a character device, not a regular file",
        stat.S_IFBLK: "a block device, not a regular file",
    }
    return names.get(stat.S_IFMT(mode), "not a regular file")


def letting_go(act: Callable[[], Done]) -> Done:
    """Call `act`; if it runs out of memory, free what it has taken before MemoryError is raised.

    The traceback of the first MemoryError keeps all that alive. The interpreter may then lack the
    memory for a number that it needs to leave a `finally` or `except`, and tries for ever (CPython
    3.11 to 3.13).
    """
    try:
        return act()
    except MemoryError:
        pass
    raise MemoryError


def of_error(error: OSError, doing: str) -> Refusal:
    """Make a refusal of a failed system call; `doing` says in what. Only the administrator can mend
    permissions and paths, so these are PERMANENT."""
    import errno

    permanent = (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.EISDIR, errno.ENXIO, errno.ENOENT,
    )  # fmt: skip
    kind = PERMANENT if error.errno in permanent else TEMPORARY
    return Refusal(f"{doing}: {reasons.why(error)}", kind)
