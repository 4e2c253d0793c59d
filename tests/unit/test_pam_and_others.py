"""auth-pam beside another driver: neither locks out the other's users."""

import pytest

from mailsite import MAIL_USER
from pamkit import ANN, SECRET
from tpop3d.auth.driver import CANNOT_SAY, YES


@pytest.fixture
def flatfile(pam):
    """The directives for a flatfile driver with two users, one of them PAM's as well."""
    path = pam.path / "flatfile"
    path.write_text(f"flat:{{plaintext}}{SECRET}\n{ANN}:{{plaintext}}another\n")
    return {"auth-flatfile-enable": "yes", "auth-flatfile-passwd-file": path} | {
        "auth-flatfile-mail-user": MAIL_USER.pw_name
    }


def test_pam_that_is_down_does_not_lock_out_others(pam, flatfile):
    pam.service("auth required pam_debug.so auth=authinfo_unavail")
    assert pam.decided("flat", SECRET, flatfile) == (YES, "flatfile")
    # Nobody is told that a password is wrong which PAM may take.
    assert pam.decided("flat", "wrong", flatfile) == (CANNOT_SAY, "pam")
    assert pam.decided(ANN, SECRET, flatfile) == (CANNOT_SAY, "pam")


def test_others_that_are_down_do_not_lock_out_pams_users(pam, flatfile):
    flatfile["auth-flatfile-passwd-file"].unlink()
    for order in ("pam flatfile", "flatfile pam"):
        assert pam.decided(ANN, SECRET, flatfile | {"auth-drivers": order}) == (YES, "pam")
        assert pam.decided(ANN, "wrong", flatfile | {"auth-drivers": order})[0] == CANNOT_SAY


def test_the_first_yes_wins_in_the_configured_order(pam, flatfile):
    pam.marking(*pam.matrix())
    flatfile_first = flatfile | {"auth-drivers": "flatfile pam"}
    assert pam.decided(ANN, "another", flatfile_first) == (YES, "flatfile")
    assert not pam.mark.exists()
    assert pam.decided(ANN, SECRET, flatfile_first) == (YES, "pam")
    for pam_first in (flatfile, flatfile | {"auth-drivers": "pam flatfile"}):
        pam.mark.unlink()
        assert pam.decided(ANN, "another", pam_first) == (YES, "flatfile")
        assert pam.mark.exists()
        assert pam.decided(ANN, SECRET, pam_first) == (YES, "pam")
