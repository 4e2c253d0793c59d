"""Which drivers there are, and where their code is. None is imported before it is mentioned."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from tpop3d.auth.driver import Driver

BUILT_IN = {
    "passwd": "tpop3d.auth.passwd",
    "flatfile": "tpop3d.auth.flatfile",
}
ENTRY_POINTS = "tpop3d.auth"  # the group in which other packages announce theirs


def in_order(mentioned: Iterable[str]) -> list[str]:
    """The mentioned names in the order in which the drivers are asked: ours, then others."""
    names = dict.fromkeys(mentioned)
    return [name for name in BUILT_IN if name in names] + [
        name for name in names if name not in BUILT_IN
    ]


def find(name: str) -> type[Driver] | None:
    """The class of a driver, or None where nobody knows the name."""
    module = BUILT_IN.get(name)
    if module is not None:
        from importlib import import_module

        found: type[Driver] = import_module(module).driver
        return found
    # 20 ms, so only for names that are not ours.
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS, name=name):
        loaded: type[Driver] = entry.load()
        return loaded
    return None
