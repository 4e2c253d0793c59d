"""MD5 without OpenSSL, which costs each session 3 ms and 3 MB for digests of a few octets."""

__all__ = ["md5"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import md5
else:
    try:
        from _md5 import md5
    except ImportError:
        from hashlib import md5
