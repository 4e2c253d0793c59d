"""Headers of the PROXY protocol, as balancers send them."""

import socket
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TCP4, TCP6, UDP4, UNIX, UNSPEC = 0x11, 0x21, 0x12, 0x31, 0x00
PROXY, LOCAL = 0x21, 0x20
CLIENT, PLACE = "192.0.2.7", ("203.0.113.5", 110)


def line(client: str = CLIENT, place: tuple[str, int] = PLACE, port: int = 56324) -> bytes:
    """Version 1."""
    family = "TCP6" if ":" in client else "TCP4"
    return f"PROXY {family} {client} {place[0]} {port} {place[1]}\r\n".encode()


def binary(
    client: str = CLIENT, place: tuple[str, int] = PLACE, port: int = 56324, more: bytes = b""
) -> bytes:
    """Version 2, with `more` behind the addresses."""
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, one) for one in (client, place[0]))
    content = addresses + struct.pack("!HH", port, place[1]) + more
    return raw(PROXY, TCP6 if ":" in client else TCP4, content)


def raw(command: int, kind: int, content: bytes = b"", length: int | None = None) -> bytes:
    """Version 2, whatever it means."""
    length = len(content) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, kind, length) + content


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


# That a client used TLS, with a certificate: of a balancer that ends it.
SSL = tlv(0x20, struct.pack("!BI", 7, 0) + tlv(0x21, b"TLSv1.3") + tlv(0x22, b"anna"))
