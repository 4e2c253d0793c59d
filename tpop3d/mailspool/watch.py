"""Whether a spool has changed, other than by growing, since it was last found good."""

from __future__ import annotations

import os

from tpop3d.mailspool import index as indexes
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.mailspool.scan import Listing


class Watch:
    """The spool that is open as `fd` and has a path. `status` is what it had when it was found
    good, and `was_settled` whether its times told every change then."""

    def __init__(self, path: str, fd: int) -> None:
        self.status: os.stat_result | None = None
        self.was_settled = False
        self._path = path
        self._fd = fd

    def saw(self, status: os.stat_result) -> None:
        """It is good, and has this status now."""
        self.status = status
        self.was_settled = indexes.is_settled(status)

    def is_touched(self) -> bool:
        """May anybody have written to it since? From now on it is looked at closely where its times
        would not tell. Raises OSError."""
        if not self.was_settled:
            self.status = None
        return self.status is None or _look(os.lstat(self._path)) != _look(self.status)

    def changed(self, listing: Listing) -> Refusal | None:
        """Refuse a spool that has changed other than by growing.

        This is cheap as long as nobody has touched it. Otherwise every message must begin where and
        as it did, and only new messages may follow the last one.
        """
        try:
            named = os.lstat(self._path)
            if self.status is not None and _look(named) == _look(self.status):
                return None
            status = os.fstat(self._fd)
            if (named.st_dev, named.st_ino) != (status.st_dev, status.st_ino):
                return Refusal("another file has its name")
            if status.st_size < listing.end:
                return Refusal("it became shorter")
            if refused := self._differs(listing, status.st_size):
                return refused
        except OSError as error:
            return Refusal(error.strerror or "it cannot be read")
        self.saw(status)
        return None

    def _differs(self, listing: Listing, size: int) -> Refusal | None:
        if (index := indexes.differing(self._fd, listing)) >= 0:
            return Refusal(f"message {index + 1} is another")
        if size > listing.end and len(listing):
            # A deliverer may be at work: it is enough that nothing contradicts a new message.
            grown = os.pread(self._fd, 64, listing.end).lstrip(b"\r\n")
            if not (grown.startswith(b"From ") or b"From ".startswith(grown)):
                return Refusal("its last message grew")
        return None


def _look(status: os.stat_result) -> tuple[int, ...]:
    """What tells at a glance that a file is the same, and that nobody has touched it."""
    return status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns, status.st_ctime_ns
