"""Why a system call was refused, for people: what the kernel says, and what forbids it here.

A unit's sandbox (systemd.exec(5)) is a mount namespace, so it is the kernel that knows of it:
proc_pid_mountinfo(5). Root is forbidden nothing but by that, and for want of a capability.
"""

from __future__ import annotations

import errno
import os

HOMES = ("/home", "/root", "/run/user")  # what ProtectHome= is about
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # capabilities(7)
# Of such a mount, what it shows of its file system, by what systemd makes it.
INACCESSIBLE = "/systemd/inaccessible/"
PRIVATE = "/systemd-private-"
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


class Mount:
    """A mount: `root` is what it shows of its file system, `point` where it is."""

    __slots__ = ("is_read_only", "is_temporary", "point", "root")

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        kind, _, of_all = fields[fields.index("-") + 1 :][:3]
        self.root = _unescaped(fields[3])
        self.point = _unescaped(fields[4])
        # The mount alone, and not the file system, which nobody's unit makes so.
        self.is_read_only = "ro" in fields[5].split(",") and "rw" in of_all.split(",")
        self.is_temporary = kind == "tmpfs"


def why(error: OSError, place: str = "") -> str:
    """What an error says, and what here may be the cause of it, in one line.

    `place` is the directory that would have to be writable, where that is not the one which holds
    the file that the error is about.
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
    """What of a unit's sandbox forbids this path; "" where we are in none, or it does not."""
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
    """The unit of systemd's that this process is in (cgroups(7)), as one edits it; "": in none."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        names = [name for line in file for name in line.rstrip("\n").split("/")]
    name = next((name for name in reversed(names) if name.endswith(".service")), "")
    base, is_instance, _ = name.partition("@")
    return f"{base}@.service" if is_instance else name


def _mount_of(path: str) -> Mount | None:
    """The mount on which a path is, as far as one can see where it leads."""
    real = os.path.realpath(path)
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            one = Mount(line.rstrip("\n"))
            if not f"{real}/".startswith(one.point.rstrip("/") + "/"):
                continue
            if found is None or len(one.point) >= len(found.point):
                found = one  # of two at one place the later one is above
    return found


def _unescaped(text: str) -> str:
    for escape, character in _ESCAPES:
        text = text.replace(escape, character)
    return text
