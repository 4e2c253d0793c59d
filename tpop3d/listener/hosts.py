"""What the listener remembers of hosts that drivers ask. A host that does not answer is not asked
by each login, but by a process of its own, now and then."""

from __future__ import annotations

import os
from errno import EAGAIN

from tpop3d.auth import isolation
from tpop3d.auth.hosts import REPORT
from tpop3d.system import logs, processes, signal, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from tpop3d.auth.driver import Driver
    from tpop3d.auth.hosts import Hosts
    from tpop3d.listener.event_loop import Loop

RETRY = 5.0  # seconds until a silent host is tried again
MOST = 60.0  # seconds that a trial may take; a driver has limits of its own
REPORTS = 64  # read before anything else is looked at


class SilentHosts:
    """The silent hosts of one configuration's drivers. `known` are those of the one before."""

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        loop: Loop,
        log_throttled: Callable[[str], None],
        known: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self._loop = loop
        self._log_throttled = log_throttled
        self._by_number: list[tuple[str, Any, Hosts]] = []
        self._trials: dict[int, tuple[int, int]] = {}  # driver and host by pid
        self._is_to_try = False
        self._fds: tuple[int, ...] = ()  # where we read, and where processes write
        for name, driver in drivers.items():
            if (hosts := getattr(driver, "hosts", None)) is not None:
                self._by_number.append((name, driver, hosts))
        if not self._by_number:
            return
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            end.setblocking(False)
        self._fds = ends[0].detach(), ends[1].detach()
        loop.add_reader(self._fds[0], self._on_message)
        for number, (_, _, hosts) in enumerate(self._by_number):
            hosts.report_to(self._fds[1], number)
        for name, _, hosts in self._by_number:
            hosts.silent.update(n for n, host in enumerate(hosts.names) if (name, host) in known)
        if self.known():
            self._try_later()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that a login process needs for its reports; no other process has them."""
        return self._fds[1:]

    def known(self) -> frozenset[tuple[str, str]]:
        """The silent hosts, each by its driver's name and its own."""
        return frozenset(
            (name, hosts.names[n]) for name, _, hosts in self._by_number for n in hosts.silent
        )

    def retire(self) -> None:
        """Take no more reports, and try no host. Connections from before a reload keep the drivers
        of that time: for these no host is silent, and they report nothing."""
        for pid in self._trials:
            os.kill(pid, signal.SIGKILL)
        if self._fds:
            self._loop.remove_reader(self._fds[0])
        for fd in self._fds:
            os.close(fd)
        for _, _, hosts in self._by_number:
            hosts.silent.clear()
            hosts.report_to(-1, 0)
        self._fds = ()
        self._by_number = []

    def reap(self, pid: int) -> bool:
        """Take note of a process that has ended: was it one that has tried a host?"""
        return self._trials.pop(pid, None) is not None

    def _on_message(self) -> None:
        """Take reports. Messages of another form are none."""
        for _ in range(REPORTS):
            try:
                message = os.read(self._fds[0], REPORT.size + 1)
            except OSError as error:
                if error.errno != EAGAIN:
                    self._log_throttled(f"reports of hosts: {error.strerror}")
                return
            if len(message) != REPORT.size:
                self._log_throttled("reports of hosts: one is malformed")
                return
            driver, host, is_silent = REPORT.unpack(message)
            if driver < len(self._by_number) and host < len(self._by_number[driver][2].names):
                self._note(driver, host, is_silent)

    def _note(self, driver: int, host: int, is_silent: bool) -> None:
        name, _, hosts = self._by_number[driver]
        if is_silent == (host in hosts.silent):
            return  # several have found it out
        if is_silent:
            hosts.silent.add(host)
            logs.error(logs.event("host silent", driver=name, host=hosts.names[host]))
            self._try_later()
        else:
            hosts.silent.discard(host)
            logs.notice(logs.event("host answers", driver=name, host=hosts.names[host]))

    def _try_later(self) -> None:
        """Call `_try` later, once, however often this is asked for."""
        if not self._is_to_try:
            self._is_to_try = True
            self._loop.call_later(RETRY, self._try)

    def _try(self) -> None:
        """Try each silent host that no process is trying."""
        self._is_to_try = False
        for number, (_, driver, hosts) in enumerate(self._by_number):
            for host in hosts.silent:
                if (number, host) not in self._trials.values():
                    self._start_trial(number, driver, host)
            if hosts.silent:
                self._try_later()

    def _start_trial(self, number: int, driver: Any, host: int) -> None:

        def work() -> None:
            isolation.serve(lambda: driver.try_host(host), MOST, self.descriptors)

        try:
            self._trials[processes.spawn(work)] = (number, host)
        except OSError as error:
            self._log_throttled(f"no further process: {error.strerror}")
