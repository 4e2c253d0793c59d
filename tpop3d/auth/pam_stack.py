"""Reads in a PAM service's file what happens if a directory does not answer (pam.d(5))."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d")  # directories of services: pam.d(5)
# Modules that ask another host about a password, which may not answer.
REMOTE = ("pam_ldap", "pam_sss", "pam_winbind", "pam_krb5", "pam_radius_auth")
MAX_DEPTH = 10  # levels of files that include others
# What each word for a control does if the module returns PAM_AUTHINFO_UNAVAIL.
WORDS = {"required": "bad", "requisite": "die", "sufficient": "ignore", "optional": "ignore"}
SILENCE = "authinfo_unavail"


def passed_over(service: str) -> list[str]:
    """Find modules that the service passes over if their host does not answer, so that a right
    password counts as wrong; returns them as `file:line: module`."""
    found = []
    for place, control, module in _lines(service.lower(), 0):
        name = os.path.basename(module).removesuffix(".so")
        if name in REMOTE and _action(control) == "ignore":
            found.append(f"{place}: {name}")
    return found


def _lines(service: str, depth: int) -> Iterator[tuple[str, str, str]]:
    """Yield the `auth` lines of a service and of the files that it includes: place, control,
    module."""
    path = next(filter(os.path.exists, (f"{place}/{service}" for place in PLACES)), "")
    if not path or depth > MAX_DEPTH:
        return
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError:
        return
    begun = ""
    for number, text in enumerate(lines, 1):
        line = begun + text
        if line.endswith("\\"):
            begun = f"{line[:-1]} "
            continue
        begun = ""
        kind, _, rest = line.partition("#")[0].strip().replace("\t", " ").partition(" ")
        control, rest = _control(rest.strip())
        module = rest.split()[0] if rest.split() else ""
        if kind == "@include" and control:
            yield from _lines(control, depth + 1)
        elif kind.removeprefix("-").lower() == "auth" and control in ("include", "substack"):
            yield from _lines(module, depth + 1)
        elif kind.removeprefix("-").lower() == "auth":
            yield f"{path}:{number}", control, module


def _control(text: str) -> tuple[str, str]:
    """Split the control off the beginning of a line; returns it, and the rest."""
    if text.startswith("["):
        control, _, rest = text.partition("]")
        return f"{control}]", rest
    control, _, rest = text.partition(" ")
    return control, rest


def _action(control: str) -> str:
    """The action of a control if its module says that nobody answers."""
    if not control.startswith("["):
        return WORDS.get(control.lower(), "")
    pairs = [one.partition("=") for one in control[1:-1].split()]
    actions = {value: action for value, _, action in pairs}
    return actions.get(SILENCE, actions.get("default", "bad"))
