"""Which modules a PAM service passes over where a directory does not answer."""

import pytest

from tpop3d.auth import pam_stack
from tpop3d.auth.pam_stack import passed_over

DEBIAN = """\
auth\t[success=2 default=ignore]\tpam_unix.so nullok
auth\t[success=1 default=ignore]\tpam_sss.so use_first_pass
auth\trequisite\t\t\tpam_deny.so
"""
RED_HAT = """\
auth        required                                     pam_env.so
auth        sufficient                                   pam_unix.so nullok
auth        sufficient                                   pam_sss.so forward_pass
auth        required                                     pam_deny.so
account     [default=bad success=ok user_unknown=ignore] pam_sss.so
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    monkeypatch.setattr(pam_stack, "PLACES", (str(etc), str(usr)))

    def write(name, text, place=etc):
        place.mkdir(exist_ok=True)
        (place / name).write_text(text)
        return place / name

    write.vendor = usr
    return write


def test_debians(write):
    common = write("common-auth", DEBIAN)
    write("tpop3d", "# mail\n@include common-auth # for all\n")
    assert passed_over("tpop3d") == passed_over("TPOP3D") == [f"{common}:2: pam_sss"]


@pytest.mark.parametrize("control", ["include", "substack"])
def test_red_hats(write, control):
    shared = write("password-auth", RED_HAT)
    write("tpop3d", f"auth {control} password-auth\naccount include password-auth\n")
    assert passed_over("tpop3d") == [f"{shared}:3: pam_sss"]


def test_a_file_of_the_distribution_is_overruled(write):
    vendors = write("pop3", "auth optional pam_krb5.so\n", write.vendor)
    assert passed_over("pop3") == [f"{vendors}:1: pam_krb5"]
    write("pop3", "auth required pam_krb5.so\n")
    assert passed_over("pop3") == []


@pytest.mark.parametrize(
    ("line", "is_passed_over"),
    [
        ("auth required pam_ldap.so", False),
        ("auth requisite pam_ldap.so", False),
        ("auth sufficient pam_ldap.so", True),
        ("-auth SUFFICIENT /lib/security/pam_ldap.so minimum_uid=1000", True),
        ("auth [success=1 default=ignore] pam_ldap.so", True),
        ("auth [success=1 authinfo_unavail=die default=ignore] pam_ldap.so", False),
        ("auth [success=ok authinfo_unavail=ignore default=bad] pam_ldap.so", True),
        ("auth [success=ok] pam_ldap.so", False),
        ("auth\t[success=1 \\\n default=ignore]\tpam_ldap.so", True),
        ("account sufficient pam_ldap.so", False),
        ("auth sufficient pam_unix.so", False),
        ("#auth sufficient pam_ldap.so", False),
        ("auth", False),
        ("auth sufficient", False),
        ("@include", False),
    ],
)
def test_a_line(write, line, is_passed_over):
    write("tpop3d", line)
    assert bool(passed_over("tpop3d")) == is_passed_over


def test_what_is_not_there_and_what_includes_itself(write):
    write("tpop3d", "@include tpop3d\n@include nothing\nauth include tpop3d\n")
    assert passed_over("tpop3d") == passed_over("nothing") == []
