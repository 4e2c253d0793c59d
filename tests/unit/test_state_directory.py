"""The state directory: one place a mailbox, nobody else's."""

import os
import stat

import pytest

from mailsite import IS_ROOT
from tpop3d.mailspool.state_directory import name_of, prepare, real_path
from tpop3d.system.refusal import PERMANENT, Refusal

ME = os.geteuid(), os.getegid()
ANNA = name_of("/srv/mail/anna", ME[0])


def test_a_name_tells_the_owner_and_the_path():
    assert name_of("/srv/mail/anna", 1000) == "1000.srv%2Fmail%2Fanna"


@pytest.mark.parametrize(
    ("one", "other"),
    [("/a/b", "/a%2Fb"), ("/a/b", "/a_b"), ("/a/\udcff", "/a/\udcfe"), ("/a/B", "/a/b")],
)
def test_different_paths_have_different_names(one, other):
    assert name_of(one, 1) != name_of(other, 1)


def test_the_same_spool_by_another_directory_name_has_the_same_name(tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "link").symlink_to("spool")
    direct = real_path(str(tmp_path / "spool/anna"))
    assert real_path(str(tmp_path / "link/anna")) == direct
    assert real_path(str(tmp_path / "spool/../spool/anna")) == direct
    assert name_of(direct, 1) != name_of(direct, 2)


def test_long_paths_have_names_that_a_file_system_takes():
    names = {name_of("/" + "d/" * 200 + "x" * 200 + str(n), 1) for n in range(20)}
    assert len(names) == 20
    assert all(len(name) < 255 for name in names)


def test_it_is_made_with_its_parent_for_its_owner_alone(tmp_path):
    old = os.umask(0o022)
    try:
        place = prepare(str(tmp_path / "state"), ANNA, *ME)
    finally:
        os.umask(old)
    assert isinstance(place, str)
    status = os.stat(place)
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == ME[0]
    assert stat.S_IMODE(os.stat(tmp_path / "state").st_mode) == 0o711
    assert prepare(str(tmp_path / "state"), ANNA, *ME) == place


def test_a_parent_that_is_missing_twice_is_for_people_to_mend(tmp_path):
    refused = prepare(str(tmp_path / "no/such"), ANNA, *ME)
    assert isinstance(refused, Refusal)
    assert refused.kind == PERMANENT
    assert "no/such" in refused.reason


def test_something_else_in_its_place_is_refused(tmp_path):
    (tmp_path / name_of("/srv/mail/anna", ME[0])).symlink_to("/tmp")
    refused = prepare(str(tmp_path), ANNA, *ME)
    assert isinstance(refused, Refusal)
    assert refused.kind == PERMANENT
    assert "not a directory" in refused.reason


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
def test_root_makes_it_for_the_mailboxs_user(tmp_path):
    place = prepare(str(tmp_path), ANNA, 65534, 65534)
    assert isinstance(place, str)
    assert os.stat(place).st_uid == 65534
    # A crash between making it and giving it away is mended; a stranger's is refused.
    os.chown(place, 0, 0)
    assert prepare(str(tmp_path), ANNA, 65534, 65534) == place
    assert os.stat(place).st_uid == 65534
    os.chown(place, 1, 1)
    refused = prepare(str(tmp_path), ANNA, 65534, 65534)
    assert isinstance(refused, Refusal)
    assert refused.kind == PERMANENT


def test_its_name_is_on_the_disk_before_it_is_used(tmp_path, monkeypatch):
    """Otherwise a journal in it would not survive a power cut."""
    real, synced = os.fsync, []

    def fsync(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    prepare(str(tmp_path / "state"), ANNA, *ME)
    assert synced == [str(tmp_path), str(tmp_path / "state")]
    prepare(str(tmp_path / "state"), ANNA, *ME)
    assert len(synced) == 2
