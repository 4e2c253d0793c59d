"""What processes ask of the kernel, as strace writes it down."""

import re

import doors
from mailsite import need

LINE = re.compile(r"(\d+) +(.*)")


class Trace:
    """A trace that goes on while the server does; `lines` are pairs of pid and call."""

    def __init__(self, path):
        self.path = path

    @property
    def lines(self):
        # The last one may not have its end yet.
        whole = self.path.read_text(errors="replace").rpartition("\n")[0]
        return [(int(found[1]), found[2]) for found in map(LINE.match, whole.split("\n")) if found]


def traced(monkeypatch, directory, *options):
    """Let doors start the server under strace with these options; returns the trace.

    The process that a door starts is the server: signals are for it, and its end is waited for.
    """
    path = directory / "trace"
    command = [need("strace"), "-D", "-o", str(path), *options]
    monkeypatch.setattr(doors, "SERVER", [*command, *doors.SERVER])
    return Trace(path)
