"""Whatever a user puts into his own state directory, a session does not wait for it, and ends with
an answer; at worst he is refused, and the log says why."""

import os
import shutil

import pytest

import doors
from mailsite import MAIL_USER
from spools import mbox, messages_of
from tpop3d.mailspool import index as indexes
from tpop3d.mailspool.uidl_styles import STYLES

BASE = b"X-IMAPbase: 1500000000 0000000009\n"
CONTENTS = [b"%bX-UID: %d\n\n%b\n" % (BASE * (n == 1), n, b"x" * 40_000) for n in range(1, 10)]
SPOOL = mbox(*CONTENTS)
KEPT = [one for number, one in enumerate(messages_of(SPOOL), 1) if number not in (1, 4)]
NAMES = [
    "lock", "index", "index.new", "journal", "journal.new", "uidvalidity", "uidvalidity.new",
    "ids", "ids.new", "ids.next",
]  # fmt: skip


def sparse(path):
    with open(path, "wb") as file:
        os.truncate(file.fileno(), 1 << 43)


def full_directory(path):
    os.makedirs(f"{path}/more")


def link(path):
    target = path.parent.parent / "target"
    target.write_bytes(b"target")
    shutil.chown(target, MAIL_USER.pw_uid, MAIL_USER.pw_gid)
    os.symlink(target, path)


def link_to_a_fifo(path):
    os.mkfifo(path.parent.parent / "fifo", 0o666)
    os.symlink(path.parent.parent / "fifo", path)


ODD = [os.mkfifo, os.mkdir, full_directory, link, link_to_a_fifo, sparse]


def session(site, *commands):
    """The last line of all, and what was logged, of a session that says QUIT at its end."""
    with doors.inetd(site) as wire:
        assert wire.line().startswith(b"+OK")
        assert wire.ask("USER anna").startswith(b"+OK")
        last = wire.ask("PASS secret")
        for command in (*commands, "QUIT") if last.startswith(b"+OK") else ():
            last = wire.ask_long(command)[0] if command == "UIDL" else wire.ask(command)
        assert wire.line() == b""
        wire.logs.wait_for("session .*user=anna .*end=")
    return last, wire.logs.text()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", ODD)
def test_nobody_waits(site, name, make):
    assert len(SPOOL) > indexes.WORTH
    site.add("anna", SPOOL)
    site.configure({"uidl-style": STYLES[2]})
    assert session(site, "UIDL")[0].startswith(b"+OK")
    (place,) = [one for one in site.state.iterdir() if one.name.endswith("anna")]
    path = place / name
    if path.exists():
        path.unlink()
    make(path)
    if not path.is_symlink():
        shutil.chown(path, MAIL_USER.pw_uid, MAIL_USER.pw_gid)
    last, logged = session(site, "UIDL", "DELE 1", "DELE 4")
    assert "internal error" not in logged
    left = site.spool("anna").read_bytes()
    if last.startswith(b"+OK"):
        assert left == b"".join(KEPT)
    else:
        assert left == SPOOL
        assert f"{name}: not a regular file" in logged or f"{name} is in the way" in logged
    if make is link:
        assert (site.state / "target").read_bytes() == b"target"
