"""Descriptors and directories: what several kinds of processes need."""

from __future__ import annotations

import os
import resource

FIRST = 3  # those below are stdin, stdout and stderr


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    first = FIRST
    for fd in sorted({fd for fd in keep if fd >= first}):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def make_directory(path: str, mode: int) -> None:
    """Make a directory of exactly this mode, unless it exists. Raises OSError.

    Its name is on the disk then: a file in it that is fsynced survives a power cut.
    """
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)  # whatever the umask says
    sync_directory(os.path.dirname(path) or ".")


def sync_directory(directory: str) -> None:
    """Have the names in a directory on the disk (fsync(2)). Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
