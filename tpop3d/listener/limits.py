"""How many connections are served at once: in all, and from one source; and what that takes."""

from __future__ import annotations

import resource
from time import monotonic

from tpop3d.system import logs, socket
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class LimitRules(Protocol):
        """How many connections there may be: directives, by their names."""

        max_children: int
        max_children_per_source: int | None


SILENCE = 10.0  # seconds between two log lines about one source, or one trouble
MAX_SOURCES = 1000  # whose last log line is remembered
DESCRIPTORS = 2  # that a connection takes: itself, and the channel to its gatekeeper
TLS_DESCRIPTORS = 3  # and to its relay
FURTHER = 64  # descriptors for all else
NOBODY = "unknown"  # in place of a peer that is still to be told
LOCAL = ("unix", NOBODY)  # peers without an address; the limit of a source is not for them


class Seldom:
    """Throttles log lines: for each of many keys, one line in a while."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def may(self, key: str) -> bool:
        """Has there been no line about `key` for some time? If so, there will be one now."""
        now = monotonic()
        if now - self._logged.get(key, -SILENCE) < SILENCE:
            return False
        if len(self._logged) >= MAX_SOURCES:
            self._logged.clear()
        self._logged[key] = now
        return True


class Limits:
    """The limits of a configuration, and what counts towards them now."""

    def __init__(self, rules: LimitRules) -> None:
        self._count = 0
        self._sources: dict[str, int] = {}
        self._seldom = Seldom()
        self.change(rules)

    def change(self, rules: LimitRules) -> None:
        """Keep the limits of another configuration from now on."""
        self._max = rules.max_children
        per_source = rules.max_children_per_source
        self._per_source = (self._max + 1) // 2 if per_source is None else per_source

    def refuse(self, peer: str) -> Refusal | None:
        """Why no connection from `peer` can be served now; None if one can."""
        if self._count >= self._max:
            return Refusal(f"max-children ({self._max})")
        if self._per_source and self._sources.get(source_of(peer), 0) >= self._per_source:
            return Refusal(f"max-children-per-source ({self._per_source})")
        return None

    def add(self, peer: str) -> None:
        """A connection from `peer` is being served."""
        self._count += 1
        source = source_of(peer)
        if source:
            self._sources[source] = self._sources.get(source, 0) + 1

    def remove(self, peer: str) -> None:
        """It is over."""
        self._count -= 1
        source = source_of(peer)
        if source:
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]

    def line(self, peer: str, refused: Refusal) -> str:
        """The log line about a refusal; "" if there was one about this source just now."""
        if not self._seldom.may(source_of(peer) or peer):
            return ""
        return logs.event("connection refused", rip=peer, limit=refused.reason)


def source_of(peer: str) -> str:
    """The source that an address belongs to: an IPv4 address itself, the first 64 bits of an IPv6
    address; "" where there is no address."""
    if ":" in peer:
        try:
            return socket.inet_pton(socket.AF_INET6, peer.partition("%")[0])[:8].hex()
        except OSError:
            return peer
    return "" if peer in LOCAL else peer


def provide_descriptors(connections: int, has_tls: bool) -> None:
    """Raise this process's limit of open files to what so many connections take, as far as it may
    be raised. Where that is not enough, the log says so."""
    wanted = connections * (TLS_DESCRIPTORS if has_tls else DESCRIPTORS) + FURTHER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logs.warning(
            f"max-children ({connections}) may need {wanted} open files, and {allowed} are allowed:"
            " raise LimitNOFILE= or ulimit -n"
        )
