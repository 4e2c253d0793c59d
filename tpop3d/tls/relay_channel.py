"""What a relay and the monitor say to each other: messages of a fixed form, with hard limits.

One message is one packet of a SOCK_SEQPACKET socketpair. The relay is ready; the monitor gives it
one connection; the relay tells how the handshake went. The end of file is the end of the relay.
Every octet from a relay is hostile to the monitor: what is not of this form is a `Violation`.
"""

from __future__ import annotations

import struct

from tpop3d.system import socket
from tpop3d.system.io import PacketSocket, Violation, packet_pair

MAX_TEXT = 300  # octets
_ORDER = struct.Struct("!cBdd")  # kind, which certificates, seconds for the handshake, patience
_TEXT = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,:;()<>=/-+!@#$~%'"
)
UNKNOWN = ord("_")  # in place of what is in no text
READY = b"R"
SECURED = b"S"
FAILED = b"F"  # by the client, or between it and us
BROKEN = b"B"  # by our own fault


class RelayOrder:
    """Secure this connection. `fds`: the client's, in and out, and a socket on which the session is
    spoken without TLS. `index`: which certificates. `seconds`: for the handshake. `patience`: how
    many seconds a client may take nothing of what there is for it, after the session's end."""

    __slots__ = ("fds", "index", "patience", "seconds")

    def __init__(
        self, fds: tuple[int, int, int], index: int, seconds: float, patience: float
    ) -> None:
        self.fds = fds
        self.index = index
        self.patience = patience
        self.seconds = seconds


class Ready:
    """The relay has its certificates, and is locked in."""


class Secured:
    """The handshake is made: with this version of TLS, and this cipher."""

    __slots__ = ("cipher", "version")

    def __init__(self, version: str, cipher: str) -> None:
        self.version = version
        self.cipher = cipher


class Failed:
    """There will be no TLS, or no more of it, and this is why. `is_ours`: the trouble is not the
    client's doing, nor between it and us."""

    __slots__ = ("is_ours", "reason")

    def __init__(self, reason: str, is_ours: bool = False) -> None:
        self.reason = reason
        self.is_ours = is_ours


class RelayChannel(PacketSocket):
    """One end of the socketpair."""

    __slots__ = ()

    # The monitor's side

    def give_order(self, order: RelayOrder) -> None:
        """Hand a connection over. Raises OSError, also where the other side does not read."""
        message = _ORDER.pack(b"O", order.index, order.seconds, order.patience)
        self.send_packet(message, *order.fds)

    def give_no_more(self) -> None:
        """There is no order for it, or no further one; what it says is still received."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has ended

    def receive(self) -> Ready | Secured | Failed | None:
        """The relay's next message, None at the end of file. Does not wait.

        Raises `Violation`; BlockingIOError where there is no message.
        """
        buffer = bytearray(MAX_TEXT + 2)
        try:
            length, rights, flags, _ = self._socket.recvmsg_into([buffer], 0, socket.MSG_DONTWAIT)
        except ConnectionError:
            return None
        if not length:
            return None
        kind, text = bytes(buffer[:1]), bytes(buffer[1:length])
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or rights or not _TEXT.issuperset(text):
            raise Violation("an impossible message of a relay")
        if kind == READY and not text:
            return Ready()
        if kind in (FAILED, BROKEN) and text:
            return Failed(text.decode(), is_ours=kind == BROKEN)
        version, _, cipher = text.decode().partition(" ")
        if kind != SECURED or not version or not cipher or " " in cipher:
            raise Violation("a message of a relay of no known kind")
        return Secured(version, cipher)

    # The relay's side

    def take_order(self) -> RelayOrder | None:
        """The connection to serve; None when there will be none."""
        message, fds = self.receive_packet(_ORDER.size, 3)
        if not message:
            return None
        _, index, seconds, patience = _ORDER.unpack(message)
        return RelayOrder((fds[0], fds[1], fds[2]), index, seconds, patience)

    def tell(self, kind: bytes, text: str = "") -> None:
        """Say something. A monitor that is gone need not hear it."""
        known = text.encode("ascii", "replace")[:MAX_TEXT]
        octets = bytes(c if c in _TEXT else UNKNOWN for c in known)
        try:
            self._socket.send(kind + octets, socket.MSG_NOSIGNAL)
        except OSError:
            pass


def pair() -> tuple[RelayChannel, RelayChannel]:
    """Two ends: the monitor's and the relay's."""
    ours, theirs = packet_pair()
    return RelayChannel(ours), RelayChannel(theirs)
