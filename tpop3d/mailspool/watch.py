"""Tells whether a spool has changed, other than by growing, since it was last found good."""

from __future__ import annotations

import os

from tpop3d.mailspool import index as indexes
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.mailspool.scan import Listing


class Watch:
    """Watches the spool that is open as `fd` and has the name `path`.

    `status` is its status when it was last found good; None: a close look is due. `was_settled`:
    did its times tell every later change then (see `index.is_settled`)?
    """

    def __init__(self, path: str, fd: int) -> None:
        self.status: os.stat_result | None = None
        self.was_settled = False
        self._path = path
        self._fd = fd

    def saw(self, status: os.stat_result) -> None:
        """Take note that the spool is good and has this status."""
        self.status = status
        self.was_settled = indexes.is_settled(status)

    def is_touched(self) -> bool:
        """May anybody have written to the spool since it was found good? Raises OSError.

        If its times would not tell, the answer is yes, and the next `changed` looks closely.
        """
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
            # A deliverer may be at work: the beginning of a From_ line is enough.
            grown = os.pread(self._fd, 64, listing.end).lstrip(b"\r\n")
            if not (grown.startswith(b"From ") or b"From ".startswith(grown)):
                return Refusal("its last message grew")
        return None


def _look(status: os.stat_result) -> tuple[int, ...]:
    """The fields of a status that are the same as long as nobody has touched a file."""
    return status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns, status.st_ctime_ns
