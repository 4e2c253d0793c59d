"""Finds the code of drivers. A driver is imported only if the configuration mentions it."""

from __future__ import annotations

import sys

from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tpop3d.auth.driver import Driver

# Our drivers, in the order in which they are asked unless auth-drivers gives another.
BUILT_IN = {
    "pam": "tpop3d.auth.pam",
    "passwd": "tpop3d.auth.passwd",
    "mysql": "tpop3d.auth.mysql",
    "flatfile": "tpop3d.auth.flatfile",
}
PARTS = ("directives", "checks_apop", "authenticate")  # attributes that a driver must have
ENTRY_POINTS = "tpop3d.auth"  # the group in which other packages announce their drivers


def in_order(mentioned: Iterable[str]) -> list[str]:
    """Sort names of drivers into the default order of questions: ours first, then others."""
    names = dict.fromkeys(mentioned)
    return [name for name in BUILT_IN if name in names] + [
        name for name in names if name not in BUILT_IN
    ]


def preload(drivers: Iterable[Driver]) -> None:
    """Load the code that drivers' processes need, so that each need not load it again."""
    for driver in drivers:
        load: Callable[[], None] | None = getattr(driver, "preload", None)
        try:
            if load is not None:
                load()
        except (Exception, SystemExit) as error:
            # When this driver is asked later, it fails in the same way, and cannot say.
            logs.error(f"a driver does not load what it needs: {logs.describe(error)}")


_found: dict[str, type[Driver] | None] = {}


def find(name: str) -> type[Driver] | None:
    """Find the class of a driver; returns None if no package has a driver of this name.

    Raises ValueError, with a text for the administrator, if it cannot be loaded.
    """
    if name not in _found:
        _found[name] = _load(name)
    return _found[name]


def _load(name: str) -> type[Driver] | None:
    module = BUILT_IN.get(name)
    if module is not None:
        __import__(module)  # `importlib` is more than is needed
        built_in: type[Driver] = sys.modules[module].driver
        return built_in
    # This takes 20 ms, so it is only for names that are not ours.
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            loaded: type[Driver] = entry.load()
        except (Exception, SystemExit) as error:
            raise ValueError(f"the driver does not load: {logs.describe(error)}") from None
        missing = [part for part in PARTS if not hasattr(loaded, part)]
        if missing:
            raise ValueError(f"the driver has no {missing[0]}")
        return loaded
    return None
