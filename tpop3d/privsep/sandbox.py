"""Preparing the place where gatekeepers are locked in."""

from __future__ import annotations

import os
import stat

from tpop3d.config.directive import Passing, Unanswered, user_id
from tpop3d.system.files import make_directory
from tpop3d.system.privileges import Sandbox, capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config.directive import Principal
    from tpop3d.settings import Config

ALL_USERS = 1 << 16  # that files and users of a system have, as a rule
# What root does here that it may not be allowed: the number of the capability, and what it is for.
NEEDED = {
    "CAP_SYS_CHROOT": (18, "lock gatekeepers in"),
    "CAP_SETUID": (7, "become a mailbox's user"),
    "CAP_SETGID": (6, "leave its groups"),
    "CAP_KILL": (5, "end the processes of other users"),
    "CAP_CHOWN": (0, "make a user's state directory"),
}
EMPTY = "empty"  # in the state directory, where no mailbox's subdirectory has such a name


def gatekeeper_user(config: Config) -> Principal | str:
    """The user that speaks with clients, who must exist wherever we are root; or what is wrong."""
    name = config.gatekeeper_user
    try:
        user = user_id(name)
    except Unanswered as error:
        return Passing(f"gatekeeper-user: {error}")
    except ValueError as error:
        return (
            f"gatekeeper-user: {error}; make it with systemd-sysusers and"
            " sysusers.d/tpop3d.conf, or:"
            f" useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin {name}"
        )
    if user.uid == 0 or user.gid == 0:
        return f"gatekeeper-user: {name} must not be root, or in its group"
    return user


def unsafe_state(config: Config) -> str:
    """Why root must not use the state directory; "" where it may, or it is not there yet.

    Whoever can write to it has others' locks, journals and unique-ids made as he likes.
    """
    directory = config.state_directory
    try:
        status = os.stat(directory)
    except OSError:
        return ""  # making it will tell
    if status.st_uid == 0 and not status.st_mode & 0o022:
        return ""
    why = "must belong to root, and nobody else may write to it"
    return f"state-directory: {directory}: {why}: chown root {directory}; chmod 711 {directory}"


def lacking() -> str:
    """What root must be allowed and is not here, in one line; "" if nothing."""
    effective = capabilities()
    names = [name for name, (bit, _) in NEEDED.items() if not effective >> bit & 1]
    if not names:
        return ""
    what = ", ".join(NEEDED[name][1] for name in names)
    where = "CapabilityBoundingSet= of a unit, or a container's cap_add, must have it"
    return f"root lacks {', '.join(names)}, to {what}: {where}"


def mapped_users() -> int:
    """How many users there are in this user namespace (user_namespaces(7)); as many as there can
    be, where the kernel does not tell."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return sum(int(line.split()[2]) for line in file)
    except (OSError, ValueError, IndexError):
        return ALL_USERS


def prepare_sandbox(config: Config) -> Sandbox | str:
    """Make the empty directory if it is missing; returns why it cannot be, if so.

    Without root nobody can be locked in, and gatekeepers are ordinary processes.
    """
    if os.geteuid() != 0:
        return _limited(Sandbox(None, os.getegid(), ""), config)
    if why := lacking():
        return why
    user = gatekeeper_user(config)
    if isinstance(user, str):
        return user
    directory = os.path.join(config.state_directory, EMPTY)
    try:
        make_directory(config.state_directory, 0o711)
        if why := unsafe_state(config):
            return why
        make_directory(directory, 0o555)
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            return f"{directory}: must be a directory that only root can write to"
        if os.listdir(directory):
            return f"{directory}: must be empty"
    except OSError as error:
        from tpop3d.system import reasons

        return f"{directory}: {reasons.why(error, config.state_directory)}"
    return _limited(Sandbox(user.uid, user.gid, directory), config)


def _limited(sandbox: Sandbox, config: Config) -> Sandbox:
    sandbox.memory = config.session_memory
    return sandbox
