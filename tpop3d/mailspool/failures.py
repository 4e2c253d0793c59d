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
    """The spool became shorter while it was read."""


def named_by(mode: int) -> str:
    """What is no regular file, by its name, out of st_mode (inode(7)); "" for a regular file."""
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
    """Do something; where that wants more memory than there is, what has taken it is let go of
    before MemoryError is raised.

    Otherwise its traceback holds all that, and the interpreter may find no room for a number which
    it needs to leave a `finally` or `except`: it then tries for ever (CPython 3.11 to 3.13).
    """
    try:
        return act()
    except MemoryError:
        pass
    raise MemoryError


def of_error(error: OSError, doing: str) -> Refusal:
    """The refusal that a failed system call makes. Who may do what is for people to mend."""
    import errno

    permanent = (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.EISDIR, errno.ENXIO, errno.ENOENT,
    )  # fmt: skip
    kind = PERMANENT if error.errno in permanent else TEMPORARY
    return Refusal(f"{doing}: {reasons.why(error)}", kind)
