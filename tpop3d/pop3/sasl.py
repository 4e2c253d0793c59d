"""SASL PLAIN (RFC 4616) as POP3 carries it (RFC 5034)."""

from __future__ import annotations

import binascii

MECHANISMS = (b"PLAIN",)


def decode(response: bytes) -> bytes | None:
    """The octets of a base64 response, or None where it is no base64 (RFC 4648 section 4).

    Padding is what completes the last four characters, and no more (section 3.3). Bits there that
    belong to no octet may be set: section 3.5 lets a decoder choose, nothing here depends on how
    a password was spelled, and Dovecot takes them.
    """
    try:
        octets = binascii.a2b_base64(response, strict_mode=True) if response else b""
    except binascii.Error:
        return None
    # strict_mode forgives any number of "=" behind a whole group.
    return octets if len(response) == (len(octets) + 2) // 3 * 4 else None


def plain(message: bytes) -> tuple[bytes, bytes] | None:
    """The name and the password of a PLAIN message, or None where it is malformed.

    The authorization identity must be empty or the name itself: nobody acts for another here.
    """
    parts = message.split(b"\0")
    if len(parts) != 3:
        return None
    identity, name, password = parts
    if not name or identity not in (b"", name):
        return None
    if b"\r" in message or b"\n" in message:
        return None
    return name, password
