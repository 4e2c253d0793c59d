"""The program's own files may be out of the mailbox's user's reach: a checkout in root's home."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import doors
from mailsite import CHECKOUT, ENVIRONMENT, IS_ROOT, MAIL_USER, need
from samples import MESSAGES, on_the_wire, spool_of

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root has sessions of other users")


@pytest.mark.parametrize(
    "option", [["--test-login", "anna"], ["--inspect", "{}"], ["--inspect", "{}", "--json"]]
)
@as_root
def test_what_looks_at_a_maildrop_imports_nothing_as_its_user(site, option):
    """Neither of ours nor of the standard library."""
    site.add("anna", spool_of(MESSAGES))
    trace = site.path / "trace"
    words = [word.format(site.spool("anna")) for word in option]
    done = subprocess.run(
        [need("strace"), "-f", "-o", trace, *doors.SERVER, *words, "-f", site.conf],
        env=ENVIRONMENT, cwd="/", input=b"secret\n", capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done
    calls = trace.read_text().splitlines()
    users = {call.split()[0] for call in calls if f"setresuid({MAIL_USER.pw_uid}, " in call}
    assert len(users) == 1
    became = next(n for n, call in enumerate(calls) if f"setresuid({MAIL_USER.pw_uid}, " in call)
    later = [call for call in calls[became:] if call.split()[0] in users]
    assert any(str(site.path) in call for call in later)
    assert [call for call in later if "/tpop3d/" in call or "/python3" in call] == []


@as_root
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
            wire.logs.wait_for("session .*user=anna")
