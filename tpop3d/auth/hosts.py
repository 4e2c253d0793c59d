"""What is known of a driver's hosts: which of them let nobody in in time.

A listener remembers it (see `tpop3d.listener.hosts`) for the processes that it forks, each of which
asks once, and ends. What they find out they tell in messages of a fixed form: whoever asks a host
runs a library that takes what the host says, and is believed no more than that.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_HOSTS = 255
REPORT = struct.Struct("!BB?")  # number of the driver, of the host; is it silent?


class Hosts:
    """A driver's hosts, by number. `silent` are those that are not to be asked.

    Without a listener nobody remembers: then each process starts with none.
    """

    __slots__ = ("_driver", "_fd", "names", "silent")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.silent: set[int] = set()
        self._fd = -1
        self._driver = 0

    def report_to(self, fd: int, driver: int) -> None:
        """Tell whoever reads what is written to `fd`, as the driver of this number."""
        self._fd, self._driver = fd, driver

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that a process which asks the hosts needs."""
        return (self._fd,) if self._fd >= 0 else ()

    def note(self, host: int, *, is_silent: bool) -> None:
        """Take note of what was found out about a host."""
        if is_silent == (host in self.silent):
            return
        (self.silent.add if is_silent else self.silent.discard)(host)
        if self._fd >= 0:
            try:
                os.write(self._fd, REPORT.pack(self._driver, host, is_silent))
            except OSError:
                pass  # nobody reads it any more, or at once: the next process will find it out
