"""Explains why a system call was refused: the kernel's text, and the setting that forbids it.

The sandbox of a unit (systemd.exec(5)) is a mount namespace, so the kernel shows it
(proc_pid_mountinfo(5)). Nothing else forbids root anything, except a capability that it lacks.
"""

from __future__ import annotations

import errno
import os

HOMES = ("/home", "/root", "/run/user")  # the directories of ProtectHome=
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # capabilities(7)
# Names that systemd gives to the root of a mount which hides a directory, or is private.
INACCESSIBLE = "/systemd/inaccessible/"
PRIVATE = "/systemd-private-"
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


class Mount:
    """A mount: `root` is the directory of its file system that it shows at `point`."""

    __slots__ = ("is_read_only", "is_temporary", "point", "root")

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        kind, _, of_all = fields[fields.index("-") + 1 :][:3]
        self.root = _unescaped(fields[3])
        self.point = _unescaped(fields[4])
        # The mount alone is read-only, and not its file system: a unit makes mounts read-only.
        self.is_read_only = "ro" in fields[5].split(",") and "rw" in of_all.split(",")
        self.is_temporary = kind == "tmpfs"


def why(error: OSError, place: str = "") -> str:
    """The text of an error, and what may be its cause here, in one line.

    `place` is the directory that must be writable, if that is not the directory of the error's
    file.
    """
    path = error.filename if isinstance(error.filename, str) else place
    text = error.strerror or "it fails"
    forbidden = _forbidden(error.errno, path, place or os.path.dirname(path)) if path else ""
    if not forbidden and error.errno == errno.EACCES and os.geteuid() == 0:
        from tpop3d.system.privileges import has_capability

        if not (has_capability(CAP_DAC_OVERRIDE) or has_capability(CAP_DAC_READ_SEARCH)):
            forbidden = "root lacks CAP_DAC_OVERRIDE"
    return f"{text}: {forbidden}" if forbidden else text


def _forbidden(number: int | None, path: str, place: str) -> str:
    """The setting of a unit's sandbox that forbids a path; "" if there is none."""
    if number not in (errno.EROFS, errno.EACCES, errno.ENOENT):
        return ""
    try:
        unit, mount = _unit(), _mount_of(path)
    except (OSError, ValueError):
        return ""
    if not unit or mount is None:
        return ""
    if number == errno.EROFS and mount.is_read_only:
        is_home = any(place == home or place.startswith(f"{home}/") for home in HOMES)
        settings = "ProtectHome= or ReadWritePaths=" if is_home else "ReadWritePaths="
        return f"{settings} of {unit} must let {place} be written to"
    if INACCESSIBLE in mount.root:
        return f"ProtectHome= or InaccessiblePaths= of {unit} hides {mount.point}"
    if PRIVATE in mount.root:
        return f"PrivateTmp= gives {unit} a {mount.point} of its own"
    if mount.is_temporary and mount.point in HOMES:
        return f"ProtectHome=tmpfs gives {unit} an empty {mount.point}"
    return ""


def _unit() -> str:
    """The name of the unit of systemd's that this process is in (cgroups(7)), as an administrator
    edits it; "" if it is in none. Raises OSError."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        names = [name for line in file for name in line.rstrip("\n").split("/")]
    name = next((name for name in reversed(names) if name.endswith(".service")), "")
    base, is_instance, _ = name.partition("@")
    return f"{base}@.service" if is_instance else name


def _mount_of(path: str) -> Mount | None:
    """The mount that a path is on, with its links resolved as far as we can see. Raises OSError and
    ValueError."""
    real = os.path.realpath(path)
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            one = Mount(line.rstrip("\n"))
            if not f"{real}/".startswith(one.point.rstrip("/") + "/"):
                continue
            if found is None or len(one.point) >= len(found.point):
                found = one  # of two mounts at one point the later one is on top
    return found


def _unescaped(text: str) -> str:
    for escape, character in _ESCAPES:
        text = text.replace(escape, character)
    return text
