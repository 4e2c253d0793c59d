"""The program's own files may be out of the mailbox's user's reach: a checkout in root's home."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

import doors
from mailsite import CHECKOUT, IS_ROOT
from samples import MESSAGES, on_the_wire, spool_of


@pytest.mark.skipif(not IS_ROOT, reason="only root has sessions of other users")
def test_a_session_imports_nothing_after_it_became_the_user(site, monkeypatch):
    site.add("anna", spool_of(MESSAGES))
    with tempfile.TemporaryDirectory() as directory:
        assert Path(directory).stat().st_mode & 0o777 == 0o700
        shutil.copytree(CHECKOUT / "tpop3d", Path(directory) / "tpop3d")
        monkeypatch.setitem(doors.ENVIRONMENT, "PYTHONPATH", directory)
        # Compiled modules must not come from elsewhere, and an error must be seen.
        monkeypatch.setattr(doors, "SERVER", [sys.executable, "-B", "-m", "tpop3d"])
        with doors.inetd(site) as wire:
            wire.login("anna")
            assert wire.ask_long("CAPA")[0].startswith(b"+OK")
            assert wire.ask_long("UIDL")[0].startswith(b"+OK")
            assert wire.ask_long("LIST")[0].startswith(b"+OK")
            assert wire.ask_long("TOP 1 1")[0].startswith(b"+OK")
            assert wire.ask_long("RETR 2")[1] == on_the_wire(MESSAGES[1])
            assert wire.ask("RETR 99").startswith(b"-ERR")
            site.spool("anna").write_bytes(b"garbage")
            assert wire.ask("RETR 1").startswith(b"-ERR [SYS/TEMP]")
            assert "internal error" not in wire.logs.text()
            wire.logs.wait_for("session user=anna")
