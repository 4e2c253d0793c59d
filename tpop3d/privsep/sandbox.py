"""Prepare the place where gatekeepers are locked in."""

from __future__ import annotations

import os
import stat

from tpop3d.config import Unanswered
from tpop3d.config.directive import Principal, user_id
from tpop3d.system.io import make_directory
from tpop3d.system.privileges import Sandbox, capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.settings import Config
    from tpop3d.system.refusal import Refusal

ALL_USERS = 1 << 16  # the number of uids that a system usually has
# The capabilities that root needs here (capabilities(7)): the number, and what it is for.
NEEDED = {
    "CAP_SYS_CHROOT": (18, "lock gatekeepers in"),
    "CAP_SETUID": (7, "become a mailbox's user"),
    "CAP_SETGID": (6, "leave its groups"),
    "CAP_KILL": (5, "end the processes of other users"),
    "CAP_CHOWN": (0, "make a user's state directory"),
}
EMPTY = "empty"  # in the state directory; no mailbox's directory there has such a name


def gatekeeper_user(config: Config) -> Principal | Refusal:
    """Look up the user that gatekeepers run as. If we are root, it must exist."""
    name = config.gatekeeper_user
    try:
        user = user_id(name)
    except Unanswered as error:
        from tpop3d.system.refusal import TEMPORARY, Refusal

        return Refusal(f"gatekeeper-user: {error}", TEMPORARY)
    except ValueError as error:
        return _refuse(
            f"gatekeeper-user: {error}; make it with systemd-sysusers and"
            " sysusers.d/tpop3d.conf, or:"
            f" useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin {name}"
        )
    if user.uid == 0 or user.gid == 0:
        return _refuse(f"gatekeeper-user: {name} must not be root, or in its group")
    return user


def refuse_unsafe_state(config: Config) -> Refusal | None:
    """Refuse a state directory that root must not use. One that does not exist yet is right.

    Whoever can write to it decides about the locks, journals and unique-ids of other users.
    """
    directory = config.state_directory
    try:
        status = os.stat(directory)
    except OSError:
        return None  # making it will fail, too, and say why
    if status.st_uid == 0 and not status.st_mode & 0o022:
        return None
    why = "must belong to root, and nobody else may write to it"
    return _refuse(
        f"state-directory: {directory}: {why}: chown root {directory}; chmod 711 {directory}"
    )


def refuse_lacking_root() -> Refusal | None:
    """Refuse to serve as a root that lacks one of the capabilities in `NEEDED`."""
    effective = capabilities()
    names = [name for name, (bit, _) in NEEDED.items() if not effective >> bit & 1]
    if not names:
        return None
    what = ", ".join(NEEDED[name][1] for name in names)
    where = "CapabilityBoundingSet= of a unit, or a container's cap_add, must have it"
    return _refuse(f"root lacks {', '.join(names)}, to {what}: {where}")


def _refuse(why: str) -> Refusal:
    """Refuse something that somebody has to mend."""
    from tpop3d.system.refusal import PERMANENT, Refusal

    return Refusal(why, PERMANENT)


def mapped_users() -> int:
    """Return how many users this user namespace has (user_namespaces(7)); `ALL_USERS` if the kernel
    does not tell."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return sum(int(line.split()[2]) for line in file)
    except (OSError, ValueError, IndexError):
        return ALL_USERS


def prepare_sandbox(config: Config) -> Sandbox | Refusal:
    """Prepare what gatekeepers are locked in with; make the empty directory if it is missing.

    Only root can lock a process in. Without root gatekeepers are ordinary processes.
    """
    if os.geteuid() != 0:
        return _limited(Sandbox(None, os.getegid(), ""), config)
    if (refused := refuse_lacking_root()) is not None:
        return refused
    user = gatekeeper_user(config)
    if not isinstance(user, Principal):
        return user
    directory = os.path.join(config.state_directory, EMPTY)
    try:
        make_directory(config.state_directory, 0o711)
        if (refused := refuse_unsafe_state(config)) is not None:
            return refused
        make_directory(directory, 0o555)
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            return _refuse(f"{directory}: must be a directory that only root can write to")
        if os.listdir(directory):
            return _refuse(f"{directory}: must be empty")
    except OSError as error:
        from tpop3d.system import reasons

        return _refuse(f"{directory}: {reasons.why(error, config.state_directory)}")
    return _limited(Sandbox(user.uid, user.gid, directory), config)


def _limited(sandbox: Sandbox, config: Config) -> Sandbox:
    sandbox.memory = config.session_memory
    return sandbox
