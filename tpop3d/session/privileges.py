"""Becoming the mailbox's user: the one place where privileges are given up, for good."""

from __future__ import annotations

import os


class StillPrivileged(Exception):
    """The process is not who it should be. It must not go on."""


def become(uid: int, gid: int) -> str:
    """Become a user for good: groups, gid, uid, each read back, and no way back to root.

    Returns "" or, where nothing was changed, why this cannot be. The only group is `gid`: what a
    user may do through further groups, a mail server has no need of. Without root, the user must
    be who we are already. Raises `StillPrivileged` and OSError; the process must then end.
    """
    if uid == 0 or gid == 0:
        return "uid 0 and gid 0 own no mailbox here"
    if os.geteuid() != 0:
        if uid != os.geteuid():
            return f"not root, so cannot become uid {uid}"
        if gid != os.getegid() and gid not in os.getgroups():
            return f"not root, so cannot take gid {gid}"
        return ""
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or os.getgroups() != [gid]:
        raise StillPrivileged
    for regain in (os.setuid, os.seteuid, os.setgid):
        try:
            regain(0)
        except PermissionError:
            continue
        raise StillPrivileged
    return ""
