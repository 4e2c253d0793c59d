"""Debian 13, on whatever tests run on: the root that tests/run has made with mmdebstrap.

freshbox.FreshBox boots its systemd; `command` has one program of it run, on this machine's network.
"""

from pathlib import Path

import pytest

from mailsite import CHECKOUT, IS_ROOT, need

ROOT = CHECKOUT / ".unpacked/trixie"
# Nothing is written to it: two tests may be in it at once.
ENTER = """\
root=$1 checkout=$2
shift 2
mount -n --bind "$root" "$root"
mount -n -o remount,bind,ro "$root"
mount -n -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -n -t proc proc "$root/proc"
mount -n --rbind /dev "$root/dev"
mount -n --rbind "$checkout" "$root/mnt"
cd "$root"
exec chroot . "$@"
"""


def require() -> None:
    """Skip unless the root is there, and can be entered."""
    if not IS_ROOT:
        pytest.skip("only root can enter a Debian 13")
    if not ROOT.is_dir():
        pytest.skip("tests/run has made no Debian 13")
    need("unshare")


def command(*arguments: str | Path) -> list[str | Path]:
    """What runs a program of it, for `subprocess`: with the checkout in /mnt, an empty /tmp, and
    all else read-only."""
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "sh"]
    return [*enter, ROOT, CHECKOUT, *arguments]
