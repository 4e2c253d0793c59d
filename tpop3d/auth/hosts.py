"""Knows which hosts of a driver are silent: they do not let us in in time.

A listener remembers them (see `tpop3d.listener.hosts`) for the processes that it forks, each of
which asks once and exits. These report what they find out in messages of a fixed form. They are
trusted no further, for they run a library that reads what a host sends.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_HOSTS = 255
REPORT = struct.Struct("!BB?")  # number of the driver, number of the host; is it silent?


class Hosts:
    """The hosts of a driver, by number. `silent` has the numbers of those that are not asked.

    Without a listener nobody remembers them, and each process begins with none.
    """

    __slots__ = ("_driver", "_fd", "names", "silent")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.silent: set[int] = set()
        self._fd = -1
        self._driver = 0

    def report_to(self, fd: int, driver: int) -> None:
        """Write reports to `fd`, as the driver with this number."""
        self._fd, self._driver = fd, driver

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that a process needs to report."""
        return (self._fd,) if self._fd >= 0 else ()

    def note(self, host: int, *, is_silent: bool) -> None:
        """Note whether a host is silent, and report it if that is news."""
        if is_silent == (host in self.silent):
            return
        (self.silent.add if is_silent else self.silent.discard)(host)
        if self._fd >= 0:
            try:
                os.write(self._fd, REPORT.pack(self._driver, host, is_silent))
            except OSError:
                pass  # the listener is gone or busy: the next process will find out the same
