"""What processes ask of the kernel, as strace writes it down."""

import re

import doors
from mailsite import need

LINE = re.compile(r"(?:(\d+) +)?(.*)")  # with -f each line begins with a pid


def parts_of(line):
    return LINE.fullmatch(line).groups()


class Trace:
    """A trace that goes on while the server does; `lines` are pairs of pid and call.

    Without -f, which says to follow children, there is one process, and its pid is 0 here.
    """

    def __init__(self, path):
        self.path = path

    @property
    def lines(self):
        # The last one may not have its end yet.
        whole = self.path.read_text(errors="replace").rpartition("\n")[0]
        return [(int(pid or 0), call) for pid, call in map(parts_of, whole.splitlines())]


def traced(monkeypatch, directory, *options):
    """Let doors start the server under strace with these options; returns the trace.

    The process that a door starts is the server: signals are for it, and its end is waited for.
    """
    path = directory / "trace"
    command = [need("strace"), "-D", "-o", str(path), *options]
    monkeypatch.setattr(doors, "SERVER", [*command, *doors.SERVER])
    return Trace(path)
