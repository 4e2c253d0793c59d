"""`tpop3d --inspect` changes nothing, and root reads nothing with it that another could write."""

import os

import pytest

from inspecting import after_a_session, inspect, large, seen, snapshot, text
from mailsite import IS_ROOT, MAIL_USER, need
from test_recover import interrupted


def test_nothing_is_changed(site, monkeypatch):
    large(site)
    place = after_a_session(site)
    os.utime(site.spool("anna"), ns=(1, 1))  # an atime that any reading would bring up to date
    before = snapshot(site)
    text(site)
    seen(site)
    assert snapshot(site) == before
    assert place in before


CHANGING = (
    "creat(", "unlink", "rename", "link(", "linkat(", "symlink", "mkdir", "rmdir", "truncate",
    "chmod", "chown", "fchmod", "fchown", "utime", "F_SETLK", "F_OFD_SETLK", "flock(",
    "O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "pwrite",
)  # fmt: skip


def test_no_system_call_could_change_anything(site, monkeypatch):
    interrupted(site, "anna", monkeypatch)
    trace = site.path / "trace"
    done = inspect(site, before=[need("strace"), "-f", "-o", trace])
    assert done.returncode == 0, done.stderr
    calls = trace.read_text().splitlines()
    of_ours = [call for call in calls if str(site.path) in call or "LK" in call]
    assert any("O_NOATIME" in call for call in of_ours)
    assert any("F_OFD_GETLK" in call for call in of_ours)
    assert [call for call in of_ours if any(word in call for word in CHANGING)] == []


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes somebody")
def test_root_becomes_the_owner_before_anything_is_read(site, monkeypatch):
    interrupted(site, "anna", monkeypatch)
    trace = site.path / "trace"
    done = inspect(site, before=[need("strace"), "-f", "-o", trace])
    assert done.returncode == 0, done.stderr
    calls = trace.read_text().splitlines()
    switched = next(n for n, call in enumerate(calls) if f"setresuid({MAIL_USER.pw_uid}," in call)
    places = (f'"{site.spools}/', f'"{site.state}/')
    opened = [
        n for n, call in enumerate(calls)
        if "openat(" in call and any(place in call for place in places)
    ]  # fmt: skip
    assert opened
    assert min(opened) > switched
