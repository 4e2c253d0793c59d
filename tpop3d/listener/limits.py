"""How many connections are served at once: in all, and from one source; and what that takes."""

from __future__ import annotations

import resource
from time import monotonic

from tpop3d.system import logs, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.settings import Config

SILENCE = 10.0  # seconds between two log lines about one source, or one trouble
MAX_SOURCES = 1000  # whose last log line is remembered
DESCRIPTORS = 2  # that a connection takes: itself, and the channel to its gatekeeper
TLS_DESCRIPTORS = 3  # and to its relay
FURTHER = 64  # descriptors for all else
NOBODY = "unknown"  # in place of a peer that is still to be told
LOCAL = ("unix", NOBODY)  # peers without an address, to which the limit of a source is none


class Seldom:
    """Whose turn it is to be logged: once in a while for each of many keys."""

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

    def __init__(self, config: Config) -> None:
        self._count = 0
        self._sources: dict[str, int] = {}
        self._seldom = Seldom()
        self.change(config)

    def change(self, config: Config) -> None:
        """Keep the limits of another configuration from now on."""
        self._max = config.max_children
        per_source = config.max_children_per_source
        self._per_source = (self._max + 1) // 2 if per_source is None else per_source

    def refuse(self, peer: str) -> str:
        """Why no connection from `peer` can be served now; "" if one can."""
        if self._count >= self._max:
            return f"max-children ({self._max})"
        if self._per_source and self._sources.get(source_of(peer), 0) >= self._per_source:
            return f"max-children-per-source ({self._per_source})"
        return ""

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

    def line(self, peer: str, refused: str) -> str:
        """What to log of a refusal; "" if there was a line about this source just now."""
        if not self._seldom.may(source_of(peer) or peer):
            return ""
        return logs.event("connection refused", rip=peer, limit=refused)


def source_of(peer: str) -> str:
    """Whom an address belongs to: of IPv6, its first 64 bits; "" where there is no address."""
    if ":" in peer:
        try:
            return socket.inet_pton(socket.AF_INET6, peer.partition("%")[0])[:8].hex()
        except OSError:
            return peer
    return "" if peer in LOCAL else peer


def provide_descriptors(connections: int, has_tls: bool) -> None:
    """Raise this process's limit on open files to what so many connections take, as far as it may
    be raised; where that is not enough, the log says so."""
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
