"""File descriptors that a process was born with, and has no business with."""

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
