"""What the tests of `tpop3d --inspect` share."""

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import doors
from mailsite import ENVIRONMENT, Command, Site, poll
from spools import mbox
from tpop3d.mailspool.index import is_settled

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n", b"Subject: three\n\n3\n")


def inspect(
    site: Site, *arguments: str, user: str = "anna", before: Command = ()
) -> subprocess.CompletedProcess[str]:
    command = [*before, *doors.SERVER, "--inspect", site.spool(user), "-f", site.conf, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done


def seen(site: Site, status: int = 0, *, user: str = "anna", before: Command = ()) -> Any:
    """What the JSON says."""
    done = inspect(site, "--json", user=user, before=before)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def text(site: Site, status: int = 0, *, user: str = "anna", before: Command = ()) -> str:
    done = inspect(site, user=user, before=before)
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout


def line(site: Site, word: str, *, user: str = "anna", before: Command = ()) -> str:
    """What stands behind a word in the summary."""
    lines = text(site, user=user, before=before).partition("\n\n")[0].splitlines()
    return next(one[16:] for one in lines if one[2:16].strip() == word)


def large(site: Site) -> Path:
    site.add("anna", mbox(*[b"Subject: %d\n\n%b\n" % (n, b"x" * 3000) for n in range(100)]))
    path = site.spool("anna")
    os.utime(path, (0, 0))
    return path


def after_a_session(site: Site) -> Path:
    with doors.inetd(site) as wire:
        wire.login("anna")
        wire.ask_long("UIDL")
        wire.ask("QUIT")
    poll(lambda: not site.processes(), "the session to end")
    (place,) = site.state.glob("[0-9]*")
    return place


def settled(site: Site) -> bool:
    return is_settled(site.spool("anna").stat())


def snapshot(site: Site) -> dict[Path, tuple[tuple[int, ...], bytes]]:
    """All there is, with times, the atimes too, and contents."""
    found: dict[Path, tuple[tuple[int, ...], bytes]] = {}
    for root in (site.spools, site.state):
        for path in sorted(root.rglob("*")):
            status = path.lstat()
            times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
            content = b"" if stat.S_ISDIR(status.st_mode) else path.name.encode()
            found[path] = (times if path.parent == site.spools else times[1:], content)
    return found
