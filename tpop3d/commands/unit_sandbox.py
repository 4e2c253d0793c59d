"""What the sandboxes of our units forbid (systemd.exec(5)), as systemd tells it, drop-ins included.

This is for commands that run outside of the units. Inside, the kernel tells: see system/reasons.py.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

from tpop3d.privsep.sandbox import NEEDED
from tpop3d.system.reasons import HOMES

# The services by the name that `systemctl edit` takes, and the units that start them.
UNITS = {
    "tpop3d@.service": ("tpop3d.socket",),
    "tpop3d-tls@.service": ("tpop3d-tls.socket",),
    "tpop3d-listener.service": (
        "tpop3d-listener.socket",
        "tpop3d-listener-tls.socket",
        "tpop3d-listener.service",
    ),
    "tpop3d.service": ("tpop3d.service",),
}
BOOTED = "/run/systemd/system"  # sd_booted(3)
PATIENCE = 10.0  # seconds for systemctl(1)
# What happens to a path. If two settings are about the same path, the greater effect holds.
WRITABLE, READ_ONLY, ANOTHER, HIDDEN = range(4)
ALWAYS_WRITABLE = ("/dev", "/proc", "/sys", *HOMES)  # ProtectSystem= spares them
SYSTEM = {
    "yes": ("/usr", "/boot", "/efi"),
    "full": ("/usr", "/boot", "/efi", "/etc"),
    "strict": ("/",),
}
HOME = {"yes": HIDDEN, "read-only": READ_ONLY, "tmpfs": ANOTHER}
# Settings with paths. Those that mount something have the path as their second word.
LISTS = {
    "ReadWritePaths": WRITABLE,
    "BindPaths": WRITABLE,
    "ReadOnlyPaths": READ_ONLY,
    "BindReadOnlyPaths": READ_ONLY,
    "TemporaryFileSystem": ANOTHER,
    "InaccessiblePaths": HIDDEN,
}
PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState", "ProtectSystem", "ProtectHome",
              "PrivateTmp", "StateDirectory", "CapabilityBoundingSet", *LISTS)  # fmt: skip


def _path_of(setting: str, word: str) -> str:
    """The path in a word of a setting: of "SOURCE:DESTINATION:OPTIONS" what a unit sees, of
    "PATH:OPTIONS" the path."""
    path = word.lstrip("-+")
    parts = path.split(":")
    if setting.startswith("Bind"):
        return parts[1] if len(parts) > 1 else parts[0]
    return parts[0] if setting == "TemporaryFileSystem" else path


class Unit:
    """A service: what it does with paths, and the setting that does it."""

    def __init__(self, name: str, properties: dict[str, str], is_used: bool) -> None:
        self.name = name
        self.is_used = is_used
        allowed = properties.get("CapabilityBoundingSet", "").upper().split()
        self.lacking = [name for name in NEEDED if name not in allowed]
        self._rules: list[tuple[str, int, str]] = []
        system, home = properties.get("ProtectSystem", ""), properties.get("ProtectHome", "")
        for path in SYSTEM.get(system, ()):
            self._add(path, READ_ONLY, f"ProtectSystem={system}")
        for path in ALWAYS_WRITABLE:
            self._add(path, WRITABLE, "")
        for path in HOMES if home in HOME else ():
            self._add(path, HOME[home], f"ProtectHome={home}")
        if properties.get("PrivateTmp", "no") != "no":
            for path in ("/tmp", "/var/tmp"):
                self._add(path, ANOTHER, "PrivateTmp=yes")
        for name in properties.get("StateDirectory", "").split():
            self._add(f"/var/lib/{name}", WRITABLE, "")
        for setting, effect in LISTS.items():
            for word in shlex.split(properties.get(setting, "")):
                path = _path_of(setting, word)
                self._add(path, effect, f"{setting}={path}")

    def _add(self, path: str, effect: int, setting: str) -> None:
        self._rules.append((os.path.realpath(path), effect, setting))

    def forbids(self, path: str, is_written: bool) -> tuple[int, str]:
        """Return what happens to a path that is read, or written to, and the setting that does it.

        WRITABLE means that nothing is forbidden.
        """
        real = f"{os.path.realpath(path).rstrip('/')}/"
        found = [one for one in self._rules if real.startswith(f"{one[0].rstrip('/')}/")]
        if not found:
            return WRITABLE, ""
        _, effect, setting = max(found, key=lambda one: (len(one[0]), one[1]))
        if effect == READ_ONLY and not is_written:
            return WRITABLE, ""
        return effect, setting


class Sandboxes:
    """The sandboxes of the units that are in use, or of all installed ones if none is.

    Without systemd there is none.
    """

    def __init__(self, units: list[Unit] | None = None) -> None:
        known = _known() if units is None else units
        used = [one for one in known if one.is_used]
        self.are_used = bool(used)
        self._units = used or known

    def forbid(self, path: str, is_written: bool) -> list[str]:
        """Return a line for each setting that forbids the server to read a path, or to write to
        it."""
        names: dict[tuple[int, str], list[str]] = {}
        for unit in self._units:
            effect, setting = unit.forbids(path, is_written)
            if effect != WRITABLE:
                names.setdefault((effect, setting), []).append(unit.name)
        return [_line(path, *what, units) for what, units in names.items()]

    def lack(self) -> list[str]:
        """Return a line for each service that lacks a capability which root needs."""
        return [
            f"{unit.name} lacks {', '.join(unit.lacking)} (CapabilityBoundingSet=)"
            for unit in self._units
            if unit.lacking
        ]


def _line(path: str, effect: int, setting: str, units: list[str]) -> str:
    who, each = ", ".join(units), "" if len(units) > 1 else "s"
    if effect == READ_ONLY and not setting.startswith("ProtectHome="):
        mend = f"systemctl edit {' '.join(units)}, and there, in [Service]: ReadWritePaths={path}"
        return f"{who} may not write to {path} ({setting}): {mend}"
    if effect == READ_ONLY:
        return f"{who} may not write to {path} ({setting})"
    if effect == ANOTHER:
        return f"{who} see{each} something else than {path} ({setting})"
    return f"{who} do{'es' if each else ''} not see {path} ({setting})"


def _known() -> list[Unit]:
    """Ask systemd for our services; none without systemd, or if it does not answer."""
    program = shutil.which("systemctl")
    if program is None or not os.path.isdir(BOOTED):
        return []
    # Only an instance of a template has properties.
    asked = {name.replace("@.", "@check."): name for name in UNITS}
    starters = [one for names in UNITS.values() for one in names]
    try:
        done = subprocess.run(
            [program, "show", f"--property={','.join(PROPERTIES)}", *asked, *starters],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    answer = os.fsdecode(done.stdout)
    blocks = [_properties(block) for block in answer.split("\n\n")]
    all_of = {one["Id"]: one for one in blocks if one.get("LoadState") == "loaded" and "Id" in one}
    return [
        Unit(name, all_of[unit], any(_is_used(all_of.get(one, {})) for one in UNITS[name]))
        for unit, name in asked.items()
        if unit in all_of
    ]


def _properties(block: str) -> dict[str, str]:
    pairs = [line.partition("=") for line in block.splitlines()]
    return {key: value for key, _, value in pairs}


def _is_used(properties: dict[str, str]) -> bool:
    """Is a unit enabled, or running?"""
    return properties.get("UnitFileState", "").startswith("enabled") or (
        properties.get("ActiveState") in ("active", "activating", "reloading")
    )
