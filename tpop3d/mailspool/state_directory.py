"""The state directory: where a mailbox's session lock lives.

One subdirectory for each mailbox, owned by the mailbox's user, mode 0700. The privileged side
makes it before it becomes that user; what is in it is made by the user.
"""

from __future__ import annotations

import os
import stat

from tpop3d.mailspool.failures import of_error
from tpop3d.system.files import make_directory
from tpop3d.system.refusal import PERMANENT, Refusal

MAX_NAME = 200  # octets of a subdirectory's name; file systems take 255
PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@+")


def real_path(path: str) -> str:
    """The path of a spool, with symbolic links in its directory resolved: /var/mail and
    /var/spool/mail are one place, and must have one lock. To be asked as its user, who may see
    what root does not."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def name_of(real: str, owner: int) -> str:
    """The name of the subdirectory for the spool of the user `owner` with the `real_path`.

    The owner is part of the name, so that nobody can take a name that belongs to another user's
    mailbox. It is one word, whatever the path is.
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
    """Make the subdirectory of this name (see `name_of`) if it is missing; returns its path.

    Called as root, or as the owner. The state directory itself is made, too, where that is one
    step: its users pass through, and see nothing. `group` is the one that dotlocks are made with:
    nobody is allowed anything by it here, and `--recover` learns it so.
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
        # If it is ours, it was just made, or a crash has left it so: nobody else can have put
        # anything into it.
        if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (owner, group):
            os.chown(place, owner, group, follow_symlinks=False)
    except OSError as error:
        return of_error(error, f"state directory {place}")
    return place
