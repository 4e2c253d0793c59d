"""Arrays without all of `collections`, which costs each session 3 ms.

`array` wants one class of `collections.abc`. What that is a name for is there, so it goes by that
name while `array` is imported.
"""

import _collections_abc
import sys

NAMES = ("collections", "collections.abc")

absent = [name for name in NAMES if name not in sys.modules]
sys.modules.update(dict.fromkeys(absent, _collections_abc))

from array import array  # noqa: E402

for name in absent:
    del sys.modules[name]

__all__ = ["array"]
