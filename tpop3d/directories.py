"""Making directories that several processes may want at the same moment."""

from __future__ import annotations

import os


def make_directory(path: str, mode: int) -> None:
    """Make a directory of exactly this mode, unless it exists. Raises OSError."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    os.chmod(path, mode)  # whatever the umask says
