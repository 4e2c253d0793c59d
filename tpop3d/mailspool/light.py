"""Two of the standard library's names, without what each of them brings along.

`array` wants one class of `collections.abc`, and gets all of `collections`, which costs each
session 3 ms. What that is a name for is there already, so it goes by that name while `array` is
imported. `md5` without OpenSSL saves 3 ms and 3 MB, for digests of a few octets.
"""

import _collections_abc
import sys

NAMES = ("collections", "collections.abc")

absent = [name for name in NAMES if name not in sys.modules]
sys.modules.update(dict.fromkeys(absent, _collections_abc))

from array import array  # noqa: E402

for name in absent:
    del sys.modules[name]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import md5
else:
    try:
        from _md5 import md5
    except ImportError:
        from hashlib import md5

__all__ = ["array", "md5"]
