"""Networks of IP addresses: how they are written, and who belongs to them."""

from __future__ import annotations

from tpop3d.system import socket

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MAPPED = b"\0" * 10 + b"\xff\xff"  # how an IPv6 address begins that stands for one of IPv4


class Networks:
    """Networks `address/bits`, or single addresses, of IPv4 and IPv6, separated by spaces.

    Raises ValueError, with a text for people, for what is none.
    """

    __slots__ = ("_networks",)

    def __init__(self, text: str) -> None:
        self._networks = [_network(word) for word in text.split()]

    def __contains__(self, address: str) -> bool:
        """Is a numeric address in one of them? What is no address is in none."""
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
    """Octets of its addresses, how many bits of them are free, and those before."""
    address, slash, bits = word.partition("/")
    octets = packed(address)
    if octets is None:
        raise ValueError(f"must be addresses, or networks as 192.0.2.0/24, not {word!r}")
    if octets.startswith(MAPPED):
        # No client has one: see `plain` in session.wire.
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
