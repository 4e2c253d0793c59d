"""Checks stored passwords, `{scheme}hash`; one table has a function for each scheme.

The schemes are those of the original tpop3d, and those of Dovecot by its names. Comparisons take
the same time wherever the first difference is.
"""

from __future__ import annotations

import binascii
from _operator import _compare_digest as same  # hmac.compare_digest, without OpenSSL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Checker = Callable[[bytes, bytes], bool]


class UnusableHash(Exception):
    """The stored hash cannot be checked: its scheme is unknown, or APOP finds no plaintext."""


class Missing(Exception):
    """The stored hash cannot be checked on this machine. The text names the missing package."""


def split(stored: bytes, default: str) -> tuple[str, bytes]:
    """Split a stored password into scheme and hash; the scheme is `default` if none is named.

    Raises `UnusableHash` if the hash is not in the encoding that it names (as in Dovecot's
    `{SHA256.hex}`).
    """
    if not stored.startswith(b"{"):
        return default, stored
    name, brace, rest = stored[1:].partition(b"}")
    if not brace:
        return default, stored
    scheme, dot, encoding = name.decode("ascii", "replace").lower().partition(".")
    if not dot:
        return scheme, rest
    try:
        octets = ENCODINGS[encoding](rest)
    except (KeyError, ValueError):
        raise UnusableHash("a password that is not encoded as it says") from None
    return scheme, binascii.b2a_base64(octets, newline=False) if scheme in DIGESTS else octets


def check(password: bytes, stored: bytes, default: str) -> bool:
    """Is this the password? Raises `UnusableHash` for an unknown scheme, and `Missing`."""
    scheme, rest = split(stored, default)
    checker = SCHEMES.get(scheme)
    if checker is None:
        raise UnusableHash("unknown password scheme")
    return checker(password, rest)


def check_apop(timestamp: bytes, digest: bytes, stored: bytes, default: str) -> bool:
    """Is `digest` the lower-case hex MD5 of timestamp and secret (RFC 1939 section 7)?

    Raises `UnusableHash` if the secret is not stored in plain text.
    """
    scheme, secret = split(stored, default)
    if SCHEMES.get(scheme) is not _plaintext:
        raise UnusableHash("APOP needs a {plaintext} password")
    if not secret:
        return False  # an empty secret is no secret
    return same(_digest("md5", timestamp + secret).hex().encode(), digest)


def crypt(password: bytes, setting: bytes) -> bytes:
    """Call crypt(3), with all methods of the system's library; returns b"" if it refuses."""
    try:
        word, salt = password.decode(), setting.decode()
    except UnicodeDecodeError:
        return _crypt_octets(password, setting)
    if "\0" in word or "\0" in salt:
        return b""
    # `crypt` imports re and random; its C part does not. Python 3.13 has neither of the two.
    try:
        from _crypt import crypt as library_crypt
    except ImportError:
        from crypt_r import crypt as library_crypt
    try:
        hashed: str | None = library_crypt(word, salt)
    except OSError:  # the library refuses the setting
        return b""
    return hashed.encode() if hashed else b""


def _crypt_octets(password: bytes, setting: bytes) -> bytes:
    """Call crypt(3) with octets that are not UTF-8: Python's bindings take only text."""
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


def _from_base64(text: bytes) -> bytes:
    """Decode base64, with or without padding. Raises ValueError."""
    bare = text.rstrip(b"=")
    padding = b"=" * (-len(bare) % 4)
    if text not in (bare, bare + padding):
        raise ValueError("more padding than completes the last group")
    return binascii.a2b_base64(bare + padding, strict_mode=True)


def _digest(name: str, octets: bytes) -> bytes:
    import hashlib

    return hashlib.new(name, octets, usedforsecurity=False).digest()


def _crypt(password: bytes, stored: bytes) -> bool:
    if not stored:
        return not password  # an account without a password; the switch may still refuse it
    hashed = crypt(password, stored)
    # libcrypt returns "*0" or "*1" for a no, and a file might even have these as hashes.
    return bool(hashed) and not hashed.startswith(b"*") and same(hashed, stored)


def _crypt_md5(password: bytes, stored: bytes) -> bool:
    return stored.startswith(b"$1$") and _crypt(password, stored)


def _plain_digest(name: str, size: int) -> Checker:
    """Make a checker of digests of `size` octets without salt: in hex, or in base64 with or without
    padding.

    A hash that begins with "$" is one of crypt(3): tables whose default is {md5} have such hashes.
    """

    def check_digest(password: bytes, stored: bytes) -> bool:
        if stored.startswith(b"$"):
            return _crypt(password, stored)
        digest = _digest(name, password)
        if len(stored) == 2 * size:
            return same(digest.hex().encode(), stored.lower())
        base64 = binascii.b2a_base64(digest, newline=False)
        return same(base64.rstrip(b"="), stored.rstrip(b"="))

    return check_digest


def _salted_digest(name: str, size: int) -> Checker:
    """Make a checker of base64(digest + salt). The digest has `size` octets, and is that of the
    password and the salt (userPassword of RFC 2307, as OpenLDAP extends it)."""

    def check_digest(password: bytes, stored: bytes) -> bool:
        try:
            octets = _from_base64(stored)
        except ValueError:
            return False
        return same(_digest(name, password + octets[size:]), octets[:size])

    return check_digest


def _argon2(password: bytes, stored: bytes) -> bool:
    """Check an Argon2 hash, which crypt(3) does not know, in the variant it names (RFC 9106)."""
    try:
        from argon2 import exceptions, low_level
    except ImportError:
        raise Missing("argon2-cffi is missing: pip install 'tpop3d[argon2]'") from None
    kinds = {b"argon2id": low_level.Type.ID, b"argon2i": low_level.Type.I}
    kind = kinds.get(stored[1:].partition(b"$")[0])
    if kind is None or not stored.startswith(b"$"):
        return False
    try:
        return low_level.verify_secret(stored, password, kind)
    except (exceptions.Argon2Error, exceptions.InvalidHash):
        return False


def _plaintext(password: bytes, stored: bytes) -> bool:
    return same(password, stored)


def _mysql(password: bytes, stored: bytes) -> bool:
    """Check a hash of PASSWORD() in MySQL before 4.1: two 31-bit sums, or the first of them."""
    first, second, add = 1345345333, 0x12345671, 7
    for c in password:
        if c in b" \t":
            continue
        first ^= ((first & 63) + add) * c + (first << 8) & 0xFFFFFFFFFFFFFFFF
        second = second + ((second << 8) ^ first) & 0xFFFFFFFFFFFFFFFF
        add += c
    hashed = b"%08x%08x" % (first & 0x7FFFFFFF, second & 0x7FFFFFFF)
    return len(stored) in (8, 16) and same(hashed[: len(stored)], stored.lower())


_md5 = _plain_digest("md5", 16)
_sha1 = _plain_digest("sha1", 20)
SCHEMES: dict[str, Checker] = {
    "crypt": _crypt,
    "crypt_md5": _crypt_md5,
    "md5": _md5,
    "sha1": _sha1,
    "plaintext": _plaintext,
    "mysql": _mysql,
    # The following are Dovecot's.
    "des-crypt": _crypt,
    "md5-crypt": _crypt,
    "sha256-crypt": _crypt,
    "sha512-crypt": _crypt,
    "blf-crypt": _crypt,
    "plain-md5": _md5,
    "ldap-md5": _md5,
    "sha": _sha1,
    "sha256": _plain_digest("sha256", 32),
    "sha512": _plain_digest("sha512", 64),
    "smd5": _salted_digest("md5", 16),
    "ssha": _salted_digest("sha1", 20),
    "ssha256": _salted_digest("sha256", 32),
    "ssha512": _salted_digest("sha512", 64),
    "argon2i": _argon2,
    "argon2id": _argon2,
    "plain": _plaintext,
    "clear": _plaintext,
    "cleartext": _plaintext,
}
PLAINTEXT = [name for name, checker in SCHEMES.items() if checker is _plaintext]  # APOP needs one
# Schemes whose hashes are octets: they are in hex or base64 even if no suffix says so.
DIGESTS = {
    *("md5", "plain-md5", "ldap-md5", "smd5"),
    *("sha1", "sha", "sha256", "sha512", "ssha", "ssha256", "ssha512"),
}
ENCODINGS = {"hex": binascii.a2b_hex, "b64": _from_base64, "base64": _from_base64}
