"""The state directory: it holds the session lock, journal, ids and index of each mailbox.

Each mailbox has a subdirectory with mode 0700, owned by the mailbox's user. Root creates the
subdirectory before it becomes that user; the files in it are created by the user.
"""

from __future__ import annotations

import os
import stat

from tpop3d.mailspool.failures import of_error
from tpop3d.system.io import make_directory
from tpop3d.system.refusal import PERMANENT, Refusal

MAX_NAME = 200  # octets of a subdirectory's name; file systems take 255
PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@+")


def real_path(path: str) -> str:
    """Resolve the symbolic links in the directory of a spool's path.

    /var/mail and /var/spool/mail are one place, and must have one session lock. Call this as the
    mailbox's user, who may see directories that root does not.
    """
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def name_of(real: str, owner: int) -> str:
    """The name of the subdirectory for the spool of the user `owner` (a uid) with this `real_path`.

    The owner is part of the name, so that nobody can take the name of another user's mailbox. The
    name is one word, whatever the path is.
    """
    escaped = "".join(
        [chr(c) if c in PLAIN else f"%{c:02X}" for c in os.fsencode(real).lstrip(b"/")]
    )
    if len(escaped) > MAX_NAME:
        from hashlib import sha256

        digest = sha256(os.fsencode(real)).hexdigest()
        escaped = escaped[: MAX_NAME - len(digest) - 1] + "%" + digest
    return f"{owner}.{escaped}"


def prepare(directory: str, name: str, owner: int, group: int) -> str | Refusal:
    """Create the subdirectory with this name (see `name_of`) if it is missing; returns its path.

    Is called as root, or as the owner. The state directory itself is created, too, if only it is
    missing and not its parent: with mode 0711, so users pass through it and cannot list it. `group`
    is the group that creates dotlocks. It gives nobody any right here; `--recover` reads it back.
    """
    place = os.path.join(directory, name)
    try:
        try:
            make_directory(place, 0o700)
        except FileNotFoundError:
            make_directory(directory, 0o711)
            make_directory(place, 0o700)
        status = os.lstat(place)
        if not stat.S_ISDIR(status.st_mode):
            return Refusal(f"{place}: not a directory", PERMANENT)
        if status.st_uid not in (owner, os.geteuid()):
            return Refusal(f"{place}: owned by uid {status.st_uid}", PERMANENT)
        # A subdirectory of root's was just created, or left so by a crash: nobody else can have put
        # anything into it.
        if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (owner, group):
            os.chown(place, owner, group, follow_symlinks=False)
    except OSError as error:
        return of_error(error, f"state directory {place}")
    return place
