"""Sets the title of a process, such as `tpop3d: anna`, which ps(1) and top(1) show.

A process has two: its name (PR_SET_NAME, prctl(2)), of which the kernel keeps 15 octets, and its
command line, which is in the memory of the process (proc_pid_cmdline(5)). If the last octet of that
memory is not a NUL, the kernel takes it for a title, which ends with its first NUL.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = "tpop3d"
# The titles of processes that serve nobody, or nobody yet.
GATEKEEPER = "gatekeeper"
RELAY = "relay"
KEYHOLDER = "keyholder"
LOGIN = "login"
RECOVERY = "recovery"
PR_SET_NAME = 15  # prctl(2)
FIELDS = 4096  # octets: more than proc_pid_stat(5) has
ARG_START, ARG_END = 45, 46  # its fields 48 and 49, as indexes of a list that begins with field 3
MAX_ARGUMENTS = 1 << 17  # octets of a command line that we overwrite at most
END = b"."  # any octet but NUL

_place = -1  # the address of the command line; 0 if it cannot be known, -1 before we have asked
_arguments = b""  # the original command line


def show(what: str) -> None:
    """Set the title of this process; children keep it until they set their own.

    `what` is one of the constants above, or the name of the user as printable text.
    """
    title = f"{NAME}: {what}".encode("ascii", "replace")
    call, copy = _calls()
    call("prctl", PR_SET_NAME, title, 0, 0, 0)
    if _is_known() and len(_arguments) > len(NAME) + 2:
        copy(_place, title[: len(_arguments) - 2] + b"\0")
        copy(_place + len(_arguments) - 1, END)


def show_name() -> None:
    """Set the name of this process to that of the program, also if `python3 -m tpop3d` has started
    it. The command line, which says more, stays."""
    call, _ = _calls()
    call("prctl", PR_SET_NAME, NAME.encode(), 0, 0, 0)


def restore() -> None:
    """Restore the command line: syslog(3) takes the name of the program from it, and foreign code
    such as PAM's modules may run here."""
    if _place > 0:
        _, copy = _calls()
        copy(_place, _arguments)


def _is_known() -> bool:
    """Is the address of the command line known? The first call must come before anybody writes
    there, and before /proc is out of reach."""
    global _place, _arguments
    if _place < 0:
        _place = 0
        try:
            fields = _read("/proc/self/stat", FIELDS).rpartition(b")")[2].split()
            start, end = int(fields[ARG_START]), int(fields[ARG_END])
            arguments = _read("/proc/self/cmdline", MAX_ARGUMENTS)
        except (OSError, ValueError, IndexError):
            return False
        if start and len(arguments) == end - start < MAX_ARGUMENTS:
            _place, _arguments = start, arguments
    return _place > 0


def _read(path: str, most: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def _calls() -> tuple[Callable[..., None], Callable[[int, bytes], None]]:
    """Returns a function that calls libc, and one that copies octets to an address. They use as
    little of `ctypes` as `privileges` does."""
    import _ctypes

    this_program: Any = None  # dlopen(3): this program with its libraries
    library = _ctypes.dlopen(this_program, 0)
    number: Any = _ctypes._SimpleCData

    class Pointer(number):  # type: ignore[misc]
        _type_ = "P"

    def call(name: str, *arguments: object) -> None:
        _ctypes.call_function(_ctypes.dlsym(library, name), arguments)

    def copy(place: int, octets: bytes) -> None:
        call("memmove", Pointer(place), octets, len(octets))

    return call, copy
