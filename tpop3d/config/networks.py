"""Networks of IP addresses: how they are written, and which addresses they contain."""

from __future__ import annotations

from tpop3d.system import socket

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MAPPED = b"\0" * 10 + b"\xff\xff"  # begins an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2)


class Networks:
    """Networks `address/bits`, or single addresses, of IPv4 and IPv6, separated by spaces.

    Raises ValueError with a text for people if one is wrong.
    """

    __slots__ = ("_networks",)

    def __init__(self, text: str) -> None:
        self._networks = [_network(word) for word in text.split()]

    def __contains__(self, address: str) -> bool:
        """Is this a numeric address in one of the networks?"""
        octets = packed(address.partition("%")[0])  # without the interface of a link-local one
        if octets is None:
            return False
        value = int.from_bytes(octets, "big")
        return any(
            len(octets) == length and value >> rest == prefix
            for length, rest, prefix in self._networks
        )


def packed(address: str) -> bytes | None:
    """The 4 or 16 octets of a numeric address; None for anything else."""
    for family in FAMILIES:
        try:
            return socket.inet_pton(family, address)
        except (OSError, ValueError):  # ValueError: it has a NUL, or is no text that can be sent
            continue
    return None


def _network(word: str) -> tuple[int, int, int]:
    """Parse a network; returns the length of its addresses in octets, how many low bits are free,
    and the value of the high bits."""
    address, slash, bits = word.partition("/")
    octets = packed(address)
    if octets is None:
        raise ValueError(f"must be addresses, or networks as 192.0.2.0/24, not {word!r}")
    if octets.startswith(MAPPED):
        # Addresses of clients are never written so: see `plain` in system/io.py.
        raise ValueError(f"{word}: must be written as IPv4")
    width = 8 * len(octets)
    if not slash:
        bits = str(width)
    if not (bits.isascii() and bits.isdecimal() and len(bits) <= 3 and int(bits) <= width):
        raise ValueError(f"{word}: behind the slash must stand a number of bits, to {width}")
    rest = width - int(bits)
    value = int.from_bytes(octets, "big")
    if value & ((1 << rest) - 1):
        first = (value >> rest << rest).to_bytes(len(octets), "big")
        shown = socket.inet_ntop(FAMILIES[len(octets) > 4], first)
        raise ValueError(f"{word}: is no network; {shown}/{bits} would be, and {address} one host")
    return len(octets), rest, value >> rest
