"""Before a session: for whom a maildrop is chosen, and who is refused with nothing changed."""

import os
import shutil

import pytest

from mailsite import MAIL_USER, open_directory
from tpop3d.auth.driver import Account
from tpop3d.session.choice import Choice
from tpop3d.session.session import enter, open_chosen, prepare
from tpop3d.system.refusal import PERMANENT, TEMPORARY, Refusal

ROOTS = {"uid": (0, 1000, None), "gid": (1000, 0, None), "the group of locks": (1000, 1000, 0)}


@pytest.mark.parametrize("which", ROOTS)
def test_for_root_nothing_is_made_and_nobody_becomes_root(tmp_path, which):
    uid, gid, lock_gid = ROOTS[which]
    account = Account(b"root", uid, gid, [str(tmp_path / "mbox")], lock_gid=lock_gid)
    before = os.getresuid(), os.getresgid(), os.getgroups()
    choice = prepare(account, str(tmp_path / "state"))
    refused = enter(account, choice)
    for one in (choice, refused):
        assert isinstance(one, Refusal)
        assert (one.reason, one.kind) == ("uid 0 and gid 0 own no mailbox here", PERMANENT)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
    assert os.listdir(tmp_path) == []


def test_a_maildrop_that_was_refused_is_not_opened(tmp_path):
    account = Account(b"ann", 1000, 1000, [str(tmp_path / "mbox")])
    refused = Refusal("is not there")
    assert refused.kind == TEMPORARY  # unless somebody knows better
    assert open_chosen(refused, account, None) is refused
    assert os.listdir(tmp_path) == []


def test_a_maildrop_whose_state_directory_was_refused_is_not_opened():
    place = open_directory()  # where another user can look for the mailbox
    try:
        uid, gid = os.geteuid() or MAIL_USER.pw_uid, os.getegid() or MAIL_USER.pw_gid
        account = Account(b"ann", uid, gid, [str(place / "mbox")])
        (place / "state").write_text("a file")
        choice = prepare(account, str(place / "state"))
        assert isinstance(choice, Choice)
        assert isinstance(choice.place, Refusal)
        assert open_chosen(choice, account, None) is choice.place
        assert os.listdir(place) == ["state"]
    finally:
        shutil.rmtree(place)
