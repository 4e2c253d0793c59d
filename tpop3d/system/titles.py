"""What ps(1) and top(1) show of a process: its title, as `tpop3d: anna`.

They know two: the name (PR_SET_NAME, prctl(2)), of which the kernel keeps 15 octets, and the
command line, which is memory of the process itself (proc_pid_cmdline(5)). Where that ends without a
NUL, the kernel takes it for a title, up to its first NUL.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = "tpop3d"
# Of processes that serve nobody, or nobody yet.
GATEKEEPER = "gatekeeper"
RELAY = "relay"
KEYHOLDER = "keyholder"
LOGIN = "login"
RECOVERY = "recovery"
PR_SET_NAME = 15  # prctl(2)
FIELDS = 4096  # octets: more than proc_pid_stat(5) has
ARG_START, ARG_END = 45, 46  # its fields 48 and 49, counted from the third on, which is the first
MAX_ARGUMENTS = 1 << 17  # octets of a command line that a title may be written over
END = b"."  # any but NUL

_place = -1  # in memory, of the command line; 0: it is not known
_arguments = b""  # which it was


def show(what: str) -> None:
    """Have this process, and those that it forks until they say another, be called after what it
    is for: one of the above, or the user whom it serves, as printable text."""
    title = f"{NAME}: {what}".encode("ascii", "replace")
    call, copy = _calls()
    call("prctl", PR_SET_NAME, title, 0, 0, 0)
    if _is_known() and len(_arguments) > len(NAME) + 2:
        copy(_place, title[: len(_arguments) - 2] + b"\0")
        copy(_place + len(_arguments) - 1, END)


def show_name() -> None:
    """Be called as the program is, whatever has started it: `python3 -m tpop3d`, say. The command
    line, which says more, is left as it is."""
    call, _ = _calls()
    call("prctl", PR_SET_NAME, NAME.encode(), 0, 0, 0)


def restore() -> None:
    """Have the command line be again what it was: syslog(3) takes the name of the program from it,
    and what runs here may be somebody else's, as PAM's modules."""
    if _place > 0:
        _, copy = _calls()
        copy(_place, _arguments)


def _is_known() -> bool:
    """Is it known where the command line is? It must be asked for before somebody writes there,
    and before /proc is out of reach."""
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
    """What calls a function of libc's, and what copies octets to a place in memory. Of `ctypes` as
    little as in `privileges`."""
    import _ctypes

    this_program: Any = None  # dlopen(3): and the libraries that it has
    library = _ctypes.dlopen(this_program, 0)
    number: Any = _ctypes._SimpleCData

    class Pointer(number):  # type: ignore[misc]
        _type_ = "P"

    def call(name: str, *arguments: object) -> None:
        _ctypes.call_function(_ctypes.dlsym(library, name), arguments)

    def copy(place: int, octets: bytes) -> None:
        call("memmove", Pointer(place), octets, len(octets))

    return call, copy
