"""Two names of the standard library, without the imports that they cost.

`array` registers itself with one class of `collections.abc`, and imports all of `collections` for
it, which costs each session 3 ms. The module behind that name (`_collections_abc`) is loaded
already, so it stands in for both while `array` is imported. `md5` without OpenSSL saves 3 ms and
3 MB; it digests a few octets at a time here.
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
