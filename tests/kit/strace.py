"""What processes ask of the kernel, as strace writes it down."""

import re
from pathlib import Path

import pytest

import doors
from mailsite import need

LINE = re.compile(r"(?:(\d+) +)?(.*)")  # with -f each line begins with a pid


def parts_of(line: str) -> tuple[str | None, str]:
    found = LINE.fullmatch(line)
    assert found, line
    return found[1], found[2]


class Trace:
    """A trace that goes on while the server does; `lines` are pairs of pid and call.

    Without -f, which says to follow children, there is one process, and its pid is 0 here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[tuple[int, str]]:
        # The last one may not have its end yet.
        whole = self.path.read_text(errors="replace").rpartition("\n")[0]
        return [(int(pid or 0), call) for pid, call in map(parts_of, whole.splitlines())]


def traced(monkeypatch: pytest.MonkeyPatch, directory: Path, *options: str) -> Trace:
    """Let doors start the server under strace with these options; returns the trace.

    The process that a door starts is the server: signals are for it, and its end is waited for.
    """
    path = directory / "trace"
    command = [need("strace"), "-D", "-o", str(path), *options]
    monkeypatch.setattr(doors, "SERVER", [*command, *doors.SERVER])
    return Trace(path)
