"""`tpop3d --test-login`: drivers that say no, cannot say, or nothing; PAM and MariaDB."""

import io
import os
import sys

import pytest

from authkit import CANARY, foreign_driver
from mailsite import ENVIRONMENT
from pamkit import ANN, SECRET
from pamkit import ENABLE as PAM
from samples import MESSAGES, spool_of
from tpop3d import cli
from tpop3d.commands import try_login
from tpop3d.system import logs
from trying import DRIVER, SPOOL, attempt


@pytest.fixture
def anna(site):
    site.add("anna", SPOOL)
    return site


def test_a_driver_that_does_not_answer(anna):
    code = "time.sleep(60)"
    env = ENVIRONMENT | foreign_driver(anna.path, "slow", DRIVER.format(code, ""))
    settings = {"auth-slow-enable": "yes", "auth-timeout-seconds": 1}
    anna.configure(settings | {"auth-drivers": "slow flatfile"})
    got = attempt(anna, env=env)
    assert got.status == 0  # another has said yes
    assert got.of("slow")[0].startswith("cannot say: driver gave no answer in 1 seconds (1.")
    got = attempt(anna, said=b"wrong\n", env=env)
    assert got.status == 4
    assert got.of("result") == ["the login cannot be checked"]


@pytest.mark.parametrize("code", ["raise ValueError(login.password)", "print(1 / 0)", "exit(0)"])
def test_a_driver_that_fails_and_no_password_is_shown(anna, code):
    env = ENVIRONMENT | foreign_driver(anna.path, "bad", DRIVER.format(code, ""))
    anna.configure({"auth-bad-enable": "yes"})
    got = attempt(anna, said=CANARY.encode() + b"\n", env=env)
    assert got.status == 4
    assert got.of("bad")[0].startswith("cannot say: driver failed: ")
    assert CANARY not in got.text + got.stderr


def test_who_wants_to_know_of_logins_is_not_told(anna):
    mark = anna.path / "mark"
    on_login = f"def on_login(self, login): open({str(mark)!r}, 'w')"
    code = DRIVER.format("return Verdict.no('x')", on_login)
    env = ENVIRONMENT | foreign_driver(anna.path, "told", code)
    anna.configure({"auth-told-enable": "yes"})
    got = attempt(anna, env=env)
    assert got.status == 0
    assert "is not told of this one" in got.of("told")[-1]
    assert not mark.exists()


# PAM and MariaDB


def try_here(monkeypatch, capfd, site, *arguments, user=ANN, said=SECRET):
    """In this process, where PAM has services of our own."""
    monkeypatch.setattr(logs, "open_log", lambda *_, **__: None)
    monkeypatch.setattr(os, "isatty", lambda fd: False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode() + b"\n")))
    status = cli.main(["--test-login", user, "-f", str(site.conf), *arguments])
    return status, capfd.readouterr().out


@pytest.fixture
def pam_site(site, pam):
    site.configure(PAM | {"auth-flatfile-mailbox": None, "plaintext-logins": "yes"})
    site.configure({"auth-pam-mailspool-dir": site.spools})
    site.spool(ANN).write_bytes(spool_of(MESSAGES))
    site.give_to_mail_user(site.spool(ANN))
    return site


def test_pam(pam_site, monkeypatch, capfd):
    status, output = try_here(monkeypatch, capfd, pam_site)
    assert status == try_login.SUCCEEDS, output
    assert "\npam       yes (" in f"\n{output}"
    assert f"opens: {len(MESSAGES)} messages" in output
    status, output = try_here(monkeypatch, capfd, pam_site, said="wrong")
    assert status == try_login.REFUSED
    assert "\npam       no: wrong password (" in f"\n{output}"
    assert SECRET not in output


def test_pam_knows_where_the_client_is(pam_site, pam, monkeypatch, capfd):
    pam.marking(*pam.matrix())
    assert try_here(monkeypatch, capfd, pam_site, "--from", "192.0.2.7")[0] == try_login.SUCCEEDS
    assert "PAM_RHOST=192.0.2.7\n" in pam.mark.read_text()
    assert try_here(monkeypatch, capfd, pam_site)[0] == try_login.SUCCEEDS
    assert "PAM_RHOST" not in pam.mark.read_text()


def test_root_is_refused_before_pam_is_asked(pam_site, pam, monkeypatch, capfd):
    pam.marking(*pam.matrix())
    status, output = try_here(monkeypatch, capfd, pam_site, user="root")
    assert status == try_login.REFUSED
    assert "no: root has no mailbox here" in output
    assert not pam.mark.exists()


def test_a_database(mail_site):
    got = attempt(mail_site, "ann@example.org")
    assert got.status == 0, got.text
    assert got.of("mysql")[0].startswith("yes (")
    got = attempt(mail_site, "ann@example.org", b"wrong\n")
    assert got.status == 3
    assert got.of("mysql")[0].startswith("no: wrong password (")
