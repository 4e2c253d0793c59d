"""How many connections are served at once: in all, and from one source."""

from __future__ import annotations

import _socket
from time import monotonic

from tpop3d import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config

SILENCE = 10.0  # seconds between two log lines about one source
MAX_SOURCES = 1000  # whose last log line is remembered
LOCAL = ("unix", "unknown")  # peers without an address, to which the limit of a source is none


class Limits:
    """The limits of a configuration, and what counts towards them now."""

    def __init__(self, config: Config) -> None:
        self._count = 0
        self._sources: dict[str, int] = {}
        self._logged: dict[str, float] = {}
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
        now = monotonic()
        source = source_of(peer) or peer
        if now - self._logged.get(source, -SILENCE) < SILENCE:
            return ""
        if len(self._logged) >= MAX_SOURCES:
            self._logged.clear()
        self._logged[source] = now
        return logs.event("connection refused", rip=peer, limit=refused)


def source_of(peer: str) -> str:
    """Whom an address belongs to: of IPv6, its first 64 bits; "" where there is no address."""
    if ":" in peer:
        try:
            return _socket.inet_pton(_socket.AF_INET6, peer.partition("%")[0])[:8].hex()
        except OSError:
            return peer
    return "" if peer in LOCAL else peer
