"""Making directories that several processes may want at the same moment."""

from __future__ import annotations

import os


def make_directory(path: str, mode: int) -> None:
    """Make a directory of exactly this mode, unless it exists. Raises OSError.

    Its name is on the disk then: a file in it that is fsynced survives a power cut.
    """
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)  # whatever the umask says
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
