"""The header of the PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt, section 2).

A balancer sends it before anything of the client's, and says who the client is. Only the form of
it is known here.
"""

from __future__ import annotations

from tpop3d.system import socket
from tpop3d.system.io import plain
from tpop3d.system.refusal import Refusal

TEXT = b"PROXY "
BINARY = b"\r\n\r\n\0\r\nQUIT\n"
MIN_TEXT = len(b"PROXY UNKNOWN\r\n")
MAX_TEXT = 107  # octets of a line, its end included
BINARY_START = len(BINARY) + 4  # version and command, family and protocol, two octets of length
UNKNOWN = b"UNKNOWN"
TEXT_FAMILIES = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}
FIELDS = 6  # of a line: PROXY, family, two addresses, two ports
VERSION = 2  # the upper half of an octet, and in the lower one of
LOCAL, PROXIED = 0, 1
STREAM = 1  # a protocol; the lower half of an octet
FAMILIES = {1: (socket.AF_INET, 4), 2: (socket.AF_INET6, 16)}  # the upper one; octets
MAX_FAMILY = 3  # unix sockets; 0 is any other
MAX_PROTOCOL = 2  # datagrams; 0 is any other
WRONG = "proxy header wrong"
NOT_ONE = "no PROXY header"


class Header:
    """What a whole header says: the client's address, and the address and port that the client
    connected to. `client` is "" where the balancer speaks for itself, or does not know the client.
    """

    __slots__ = ("client", "local")

    def __init__(self, client: str = "", local: tuple[str, int] = ("", 0)) -> None:
        self.client = client
        self.local = local


def parse(octets: bytes) -> Header | int | Refusal:
    """Parse the beginning of a connection, as far as it has been read.

    Returns the header when `octets` are exactly that; a refusal if no header begins so; otherwise
    the least number of octets that are missing. Whoever reads on by that number never reads
    anything behind the header.
    """
    if octets[: len(BINARY)] == BINARY[: len(octets)]:
        return _binary(octets)
    if octets[: len(TEXT)] == TEXT[: len(octets)]:
        return _text(octets)
    return _wrong(NOT_ONE)


def _wrong(reason: str) -> Refusal:
    return Refusal(reason, WRONG)


def _text(line: bytes) -> Header | int | Refusal:
    if len(line) < MIN_TEXT:
        return MIN_TEXT - len(line)
    is_whole = line.endswith(b"\r\n")
    if b"\n" in (line[:-2] if is_whole else line) or len(line) > MAX_TEXT - (not is_whole):
        return _wrong("a line without its end")
    if is_whole:
        return _line(line[:-2])
    fields = line.split(b" ")
    if len(fields) > FIELDS and fields[1] != UNKNOWN:
        return _wrong("too many fields")
    if line.endswith(b"\r"):
        return 1
    # Each further field is a space and an octet at least. The line may end with UNKNOWN.
    further = 0 if UNKNOWN.startswith(fields[1][:1]) else FIELDS - len(fields)
    return min(2 * further + 2, MAX_TEXT - len(line))


def _line(line: bytes) -> Header | Refusal:
    fields = line.split(b" ")
    if fields[1] == UNKNOWN:
        return Header()  # "the receiver must ignore anything presented before the CRLF"
    family = TEXT_FAMILIES.get(fields[1])
    if family is None or len(fields) != FIELDS:
        return _wrong("not of the form PROXY TCP4 or TCP6, two addresses, two ports")
    try:
        source, destination = (_address(family, field) for field in fields[2:4])
        _, port = (_port(field) for field in fields[4:6])
    except (OSError, ValueError):
        return _wrong("an impossible address or port")
    return Header(source, (destination, port))


def _address(family: int, field: bytes) -> str:
    """An address as people know it, however it was written. Raises OSError or ValueError."""
    return _shown(family, socket.inet_pton(family, field.decode("ascii")))


def _port(field: bytes) -> int:
    """Raises ValueError."""
    if not field.isdigit() or len(field) > 5 or (field[:1] == b"0" and len(field) > 1):
        raise ValueError
    if (port := int(field)) > 65535:
        raise ValueError
    return port


def _binary(octets: bytes) -> Header | int | Refusal:
    if len(octets) < BINARY_START:
        # A line that is one octet shorter begins otherwise: by then it is known what this is.
        return (BINARY_START if octets else MIN_TEXT) - len(octets)
    command, kind = octets[12], octets[13]
    if command >> 4 != VERSION or command & 15 not in (LOCAL, PROXIED):
        return _wrong("an unknown version or command")
    if kind >> 4 > MAX_FAMILY or kind & 15 > MAX_PROTOCOL:
        return _wrong("an unknown family or protocol")
    length = int.from_bytes(octets[14:BINARY_START], "big")
    if (missing := BINARY_START + length - len(octets)) > 0:
        return missing
    if command & 15 == LOCAL or kind >> 4 not in FAMILIES or kind & 15 != STREAM:
        return Header()
    family, size = FAMILIES[kind >> 4]
    if length < 2 * size + 4:
        return _wrong("too short for its addresses")
    # What follows the addresses (TLVs) is of no use here.
    place = BINARY_START + size
    source = _shown(family, octets[BINARY_START:place])
    destination = _shown(family, octets[place : place + size])
    port = octets[place + size + 2 : place + size + 4]
    return Header(source, (destination, int.from_bytes(port, "big")))


def _shown(family: int, octets: bytes) -> str:
    return plain(socket.inet_ntop(family, octets))
