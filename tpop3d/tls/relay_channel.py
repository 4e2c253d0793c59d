"""The messages between relay and monitor: they have fixed forms and hard limits.

One message is one packet of a SOCK_SEQPACKET socketpair (unix(7)). A relay serves one connection:

    monitor                                        relay
    ---------------------------------------------  --------------------------------------------
    may give an order                          <-  Ready: it has its keys, and is locked in
    RelayOrder, with the client's descriptors  ->  shakes hands with the client
    and one end of a socketpair
    hands the other end to a gatekeeper, as    <-  Secured: version and cipher; then it passes
    the client's connection                        octets on, between client and socketpair
    may log why TLS has broken                 <-  Failed, if TLS breaks while octets pass
    end of file                                <-  exits when the session has closed its end,
                                                   and the client has taken all, is gone, or
                                                   has taken nothing for too long

In place of Ready or Secured there may be a Failed: no keys, or a handshake that fails. `is_ours`
tells whether the trouble is our own (BROKEN) or the client's and the network's (FAILED). A monitor
need not have read Ready before it gives an order. Without an order the relay ends when the monitor
closes the channel.

The relay trusts the monitor, and waits for its order. The monitor sends and receives without
blocking, and takes every octet from the relay for hostile: what does not have exactly one of these
forms, or comes with a descriptor, is a `Violation`. Texts have only characters that cannot harm the
log.
"""

from __future__ import annotations

import struct

from tpop3d.system import socket
from tpop3d.system.io import PacketSocket, Violation, packet_pair

MAX_TEXT = 300  # octets of a text from a relay
_ORDER = struct.Struct("!cBdd")  # kind, index of the certificates, seconds, patience
_TEXT = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,:;()<>=/-+!@#$~%'"
)
UNKNOWN = ord("_")  # replaces an octet that no text may have
READY = b"R"
SECURED = b"S"
FAILED = b"F"  # the client or the network is at fault
BROKEN = b"B"  # we are at fault


class RelayOrder:
    """An order to secure a connection. `fds` are the client's descriptors, in and out, and a socket
    for POP3 without TLS. `index` is that of the certificates to use. `seconds`: the time for the
    handshake. `patience`: the seconds for which a client may take no octets after the session's
    end."""

    __slots__ = ("fds", "index", "patience", "seconds")

    def __init__(
        self, fds: tuple[int, int, int], index: int, seconds: float, patience: float
    ) -> None:
        self.fds = fds
        self.index = index
        self.patience = patience
        self.seconds = seconds


class Ready:
    """A report: the relay has its certificates, and is locked in."""


class Secured:
    """A report: the handshake is done, with this version of TLS and this cipher."""

    __slots__ = ("cipher", "version")

    def __init__(self, version: str, cipher: str) -> None:
        self.version = version
        self.cipher = cipher


class Failed:
    """A report: there will be no TLS, or no more of it; `reason` says why. `is_ours`: is the
    trouble our own, and neither the client's nor the network's?"""

    __slots__ = ("is_ours", "reason")

    def __init__(self, reason: str, is_ours: bool = False) -> None:
        self.reason = reason
        self.is_ours = is_ours


class RelayChannel(PacketSocket):
    """One end of the channel; each side has methods of its own."""

    __slots__ = ()

    # The monitor's side

    def give_order(self, order: RelayOrder) -> None:
        """Hand a connection over, without waiting. Raises OSError, also if the relay does not
        read."""
        message = _ORDER.pack(b"O", order.index, order.seconds, order.patience)
        self.send_packet(message, *order.fds)

    def give_no_more(self) -> None:
        """Tell the relay that no order follows. Its messages can still be received."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the relay has ended

    def receive(self) -> Ready | Secured | Failed | None:
        """The relay's next message; None at the end of file. Does not wait.

        Raises `Violation`, BlockingIOError if there is no message, and other OSErrors.
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
        """Wait for the connection to serve; returns None if there will be none."""
        message, fds = self.receive_packet(_ORDER.size, 3)
        if not message:
            return None
        _, index, seconds, patience = _ORDER.unpack(message)
        return RelayOrder((fds[0], fds[1], fds[2]), index, seconds, patience)

    def tell(self, kind: bytes, text: str = "") -> None:
        """Send a message of this kind, and a text of at most `MAX_TEXT` octets. If the monitor is
        gone, nothing happens."""
        known = text.encode("ascii", "replace")[:MAX_TEXT]
        octets = bytes(c if c in _TEXT else UNKNOWN for c in known)
        try:
            self._socket.send(kind + octets, socket.MSG_NOSIGNAL)
        except OSError:
            pass


def pair() -> tuple[RelayChannel, RelayChannel]:
    """Make a channel; returns the monitor's end and the relay's. Raises OSError."""
    ours, theirs = packet_pair()
    return RelayChannel(ours), RelayChannel(theirs)
