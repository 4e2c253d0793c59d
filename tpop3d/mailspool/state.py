"""The state directory: where a mailbox's session lock lives.

One subdirectory for each mailbox, owned by the mailbox's user, mode 0700. The privileged side
makes it before it becomes that user; what is in it is made by the user.
"""

from __future__ import annotations

import os
import stat

from tpop3d.directories import make_directory
from tpop3d.mailspool import refusal
from tpop3d.mailspool.refusal import Refusal, of_error

MAX_NAME = 200  # octets of a subdirectory's name; file systems take 255
PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@+")


def name_of(path: str, owner: int) -> str:
    """The name of the subdirectory for the spool `path` of the user `owner`.

    Symbolic links in the directory are resolved: /var/mail and /var/spool/mail are one place, and
    must have one lock. The owner is part of the name, so that nobody can take a name that belongs
    to another user's mailbox.
    """
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    escaped = "".join(
        [chr(c) if c in PLAIN else f"%{c:02X}" for c in os.fsencode(real).lstrip(b"/")]
    )
    if len(escaped) > MAX_NAME:
        from hashlib import sha256

        digest = sha256(os.fsencode(real)).hexdigest()
        escaped = escaped[: MAX_NAME - len(digest) - 1] + "%" + digest
    return f"{owner}.{escaped}"


def prepare(directory: str, path: str, owner: int, group: int) -> str | Refusal:
    """Make the subdirectory for a spool if it is missing; returns its path.

    Called as root, or as the owner. The state directory itself is made, too, where that is one
    step: its users pass through, and see nothing.
    """
    place = os.path.join(directory, name_of(path, owner))
    try:
        try:
            make_directory(place, 0o700)
        except FileNotFoundError:
            make_directory(directory, 0o711)
            make_directory(place, 0o700)
        status = os.lstat(place)
        if not stat.S_ISDIR(status.st_mode):
            return Refusal(refusal.PERMANENT, f"{place}: not a directory")
        if status.st_uid == owner:
            return place
        if status.st_uid != os.geteuid():
            return Refusal(refusal.PERMANENT, f"{place}: owned by uid {status.st_uid}")
        # Ours, just made or left so by a crash; nobody else can have put anything into it.
        os.chown(place, owner, group, follow_symlinks=False)
    except OSError as error:
        return of_error(error, f"state directory {place}")
    return place
