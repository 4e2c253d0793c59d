"""Stored passwords: `{scheme}hash`, each scheme a function in one table.

The schemes are the original's. Comparisons take the same time wherever the difference is.
"""

from __future__ import annotations

import binascii
from _operator import _compare_digest as same  # hmac's own, without loading OpenSSL for it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Unusable(Exception):
    """The stored hash cannot be checked: an unknown scheme, or APOP and no plaintext."""


def split(stored: bytes, default: str) -> tuple[str, bytes]:
    """The scheme and the hash of a stored password; `default` where it names no scheme."""
    if stored.startswith(b"{"):
        scheme, brace, rest = stored[1:].partition(b"}")
        if brace:
            return scheme.decode("ascii", "replace").lower(), rest
    return default, stored


def check(password: bytes, stored: bytes, default: str) -> bool:
    """Is it the password? Raises `Unusable` for a scheme that nobody knows."""
    scheme, rest = split(stored, default)
    checker = SCHEMES.get(scheme)
    if checker is None:
        raise Unusable("unknown password scheme")
    return checker(password, rest)


def check_apop(timestamp: bytes, digest: bytes, stored: bytes, default: str) -> bool:
    """Is `digest` the lower-case hex MD5 of timestamp and secret (RFC 1939 section 7)?"""
    scheme, secret = split(stored, default)
    if scheme != "plaintext":
        raise Unusable("APOP needs a {plaintext} password")
    return same(_hex_digest("md5", timestamp + secret), digest)


def crypt(password: bytes, setting: bytes) -> bytes:
    """crypt(3), with whatever methods the system's library knows; b"" where it refuses."""
    try:
        word, salt = password.decode(), setting.decode()
    except UnicodeDecodeError:
        return _crypt_octets(password, setting)
    if "\0" in word or "\0" in salt:
        return b""
    # `crypt` drags in re and random; its C part does not. Python 3.13 has neither.
    try:
        from _crypt import crypt as library_crypt
    except ImportError:
        from crypt_r import crypt as library_crypt
    try:
        hashed: str | None = library_crypt(word, salt)
    except OSError:  # a setting that the library does not take
        return b""
    return hashed.encode() if hashed else b""


def _crypt_octets(password: bytes, setting: bytes) -> bytes:
    """crypt(3) for octets that are no UTF-8: Python's bindings take text only."""
    if b"\0" in password + setting:
        return b""
    import ctypes

    try:
        library = ctypes.CDLL("libcrypt.so.1")
    except OSError:
        library = ctypes.CDLL("libcrypt.so.2")  # without the pre-2018 functions
    library.crypt.restype = ctypes.c_char_p
    hashed: bytes | None = library.crypt(password, setting)
    return hashed or b""


def _hex_digest(name: str, octets: bytes) -> bytes:
    import hashlib

    return hashlib.new(name, octets, usedforsecurity=False).hexdigest().encode()


def _crypt(password: bytes, stored: bytes) -> bool:
    if not stored:
        return not password  # an account without a password; the switch may refuse it still
    hashed = crypt(password, stored)
    # "*0" and "*1" are libcrypt's way to say no, and might even be what is stored.
    return bool(hashed) and not hashed.startswith(b"*") and same(hashed, stored)


def _crypt_md5(password: bytes, stored: bytes) -> bool:
    return stored.startswith(b"$1$") and _crypt(password, stored)


def _md5(password: bytes, stored: bytes) -> bool:
    """Hex, or base64 with or without padding."""
    digest = _hex_digest("md5", password)
    if len(stored) == 32:
        return same(digest, stored.lower())
    base64 = binascii.b2a_base64(binascii.unhexlify(digest), newline=False)
    return same(base64.rstrip(b"="), stored.rstrip(b"="))


def _sha1(password: bytes, stored: bytes) -> bool:
    return same(_hex_digest("sha1", password), stored.lower())


def _plaintext(password: bytes, stored: bytes) -> bool:
    return same(password, stored)


def _mysql(password: bytes, stored: bytes) -> bool:
    """MySQL's PASSWORD() as it was before 4.1: two 31-bit sums, or the first of them."""
    first, second, add = 1345345333, 0x12345671, 7
    for c in password:
        if c in b" \t":
            continue
        first ^= ((first & 63) + add) * c + (first << 8) & 0xFFFFFFFFFFFFFFFF
        second = second + ((second << 8) ^ first) & 0xFFFFFFFFFFFFFFFF
        add += c
    hashed = b"%08x%08x" % (first & 0x7FFFFFFF, second & 0x7FFFFFFF)
    return len(stored) in (8, 16) and same(hashed[: len(stored)], stored.lower())


SCHEMES: dict[str, Callable[[bytes, bytes], bool]] = {
    "crypt": _crypt,
    "crypt_md5": _crypt_md5,
    "md5": _md5,
    "sha1": _sha1,
    "plaintext": _plaintext,
    "mysql": _mysql,
}
