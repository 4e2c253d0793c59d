"""A driver of another package: found by its entry point, and as good as a built-in one."""

import pytest

from authkit import (
    CANARY,
    at_door,
    converse,
    foreign_driver,
    recorded_syslog,
    text_of,
    tpop3d,
)
from mailsite import ENVIRONMENT, MAIL_USER
from tpop3d.config.reader import MASK

# It takes whoever knows the secret that stands in the configuration file.
DRIVER = f"""
from tpop3d.auth.driver import Account, Verdict
from tpop3d.config.directive import Directive, absolute_path

class Driver:
    directives = {{
        "password": Directive(str, secret=True),
        "spool": Directive(absolute_path, "/nonexistent"),
    }}
    checks_apop = False

    def __init__(self, settings):
        self.secret = settings["password"]
        self.spool = settings["spool"]
        if self.secret is None:
            raise ValueError("auth-vault-password must be given")

    def authenticate(self, login):
        if login.password != self.secret.read().encode():
            return Verdict.no("wrong password")
        spool = self.spool + "/" + login.local_part.decode()
        return Verdict.yes(
            Account(login.name, {MAIL_USER.pw_uid}, {MAIL_USER.pw_gid}, [spool])
        )
"""
MESSAGE = b"From ann@example.org Tue Mar  7 12:00:00 2000\nSubject: hello\n\nHello.\n"
SESSION = b"USER ann\r\nPASS %s\r\nSTAT\r\nQUIT\r\n"


@pytest.fixture
def vault(site):
    """A site where only the foreign driver is enabled."""
    site.add("ann", MESSAGE)
    foreign = site.path / "packages"
    foreign.mkdir()
    site.environment = foreign_driver(foreign, "vault", DRIVER)
    site.configure(
        {
            "auth-flatfile-enable": "no",
            "auth-vault-enable": "yes",
            "auth-vault-password": CANARY,
            "auth-vault-spool": site.spools,
            "auth-failure-delay-seconds": 0,
        }
    )
    return site


def session(site, password):
    return converse(site.conf, SESSION % password.encode(), env=site.environment)


def test_somebody_logs_in_with_it(vault):
    ended = session(vault, CANARY)
    assert [line[:3] for line in ended.lines] == [b"+OK"] * 5, ended.stderr
    assert ended.lines[3].startswith(b"+OK 1 ")
    assert b"driver=vault" in ended.stderr


def test_somebody_else_does_not(vault):
    ended = session(vault, "wrong")
    assert ended.lines[2].startswith(b"-ERR [AUTH]")
    assert b"driver=vault" in ended.stderr


def test_its_secret_is_read_when_it_is_needed(vault):
    assert session(vault, CANARY).lines[2].startswith(b"+OK")
    vault.configure({"auth-vault-password": "another"})
    assert session(vault, CANARY).lines[2].startswith(b"-ERR")
    assert session(vault, "another").lines[2].startswith(b"+OK")


def test_its_secret_is_masked(vault):
    done = tpop3d("--check-config", "-f", vault.conf, env=ENVIRONMENT | vault.environment)
    assert done.returncode == 0
    assert f"auth-vault-password: {MASK}\n".encode() in done.stdout
    assert CANARY.encode() not in done.stdout + done.stderr


def test_its_directives_are_checked(vault):
    vault.configure({"auth-vault-password": None, "auth-vault-spool": "relative"})
    done = tpop3d("--check-config", "-f", vault.conf, env=ENVIRONMENT | vault.environment)
    assert done.returncode == 2
    assert b"auth-vault-spool: must be an absolute path" in done.stderr
    vault.configure({"auth-vault-spool": "/x"})
    done = tpop3d("--check-config", "-f", vault.conf, env=ENVIRONMENT | vault.environment)
    assert done.returncode == 2
    assert b"auth-vault-enable: auth-vault-password must be given" in done.stderr
    vault.configure({"auth-vault-colour": "red"})
    done = tpop3d("--check-config", "-f", vault.conf, env=ENVIRONMENT | vault.environment)
    assert b"auth-vault-colour: unknown directive" in done.stderr


def test_without_the_package_its_directives_are_unknown(vault):
    done = tpop3d("--check-config", "-f", vault.conf)
    assert done.returncode == 2
    assert b"there is no driver 'vault'" in done.stderr


BROKEN = {
    "it does not import": "import no_such_module_here",
    "it raises when imported": f"raise RuntimeError({CANARY!r})",
    "it is no Python": "class",
    "it has no such class": "x = 1",
    "it declares nothing": "class Driver:\n    pass",
    "its start fails": f"""
class Driver:
    directives = {{}}
    checks_apop = False
    def __init__(self, settings):
        raise RuntimeError({CANARY!r})
""",
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_an_error_of_the_configuration(tmp_path, code):
    """The client gets one line, and the log says whose fault it is."""
    env = foreign_driver(tmp_path, "vault", code)
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(text_of(at_door(tmp_path)) + "auth-vault-enable: yes\n")
    done = tpop3d("--check-config", "-f", conf, env=ENVIRONMENT | env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{conf}:3: auth-vault-enable: ".encode())
    assert CANARY.encode() not in done.stderr
    ended = converse(conf, b"QUIT\r\n", env=env)
    assert ended.client.startswith(b"-ERR [SYS/PERM] ")
    assert ended.client.count(b"\r\n") == 1


MISBEHAVING = {
    "it returns nothing": "pass",
    "it raises": f"raise ValueError({CANARY!r})",
    "it says yes without an account": "return Verdict('yes')",
    "it gives no mailbox": "return Verdict.yes(Account(b'x', 12345, 12345, []))",
    "it gives root": "return Verdict.yes(Account(b'x', 0, 0, ['/nonexistent/x']))",
    "it gives no number": "return Verdict.yes(Account(b'x', 'nobody', 'nobody', ['/x']))",
    "it exits": "raise SystemExit('x')",
    "it exits at once": "os._exit(0)",
    "it crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
    "it hangs": "time.sleep(1000)",
    "it prints, and returns nothing": f"print({CANARY!r}, flush=True)",
}


@pytest.mark.parametrize("what", MISBEHAVING)
def test_a_misbehaving_driver_lets_nobody_in(tmp_path, what):
    code = f"""
import os, signal, time
from tpop3d.auth.driver import Account, Verdict
class Driver:
    directives = {{}}
    checks_apop = True
    def __init__(self, settings): pass
    def authenticate(self, login): {MISBEHAVING[what]}
"""
    foreign = foreign_driver(tmp_path, "vault", code)
    env, record = recorded_syslog(tmp_path)
    assert env == foreign
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(
        text_of(
            at_door(tmp_path)
            | {
                "auth-vault-enable": "yes",
                "auth-failure-delay-seconds": 0,
                "auth-timeout-seconds": 1,
            }
        )
    )
    ended = converse(conf, b"USER ann\r\nPASS x\r\nQUIT\r\n", env=env)
    assert [line[:3] for line in ended.lines[:2]] == [b"+OK"] * 2
    refusal = b"-ERR [SYS/PERM]" if what == "it gives root" else b"-ERR [SYS/TEMP]"
    assert ended.lines[2].startswith(refusal)
    log = record.read_text()
    assert CANARY not in log
    assert CANARY.encode() not in ended.client
    told = "maildrop refused" if what == "it gives root" else "driver undecided driver=vault"
    assert sum(line.startswith(told) for line in log.splitlines()) == 1


CHECKS = {
    "return ['/x: is wrong'], ['/y: is odd']": (2, "/x: is wrong\n"),
    "return [], ['/y: is odd']": (0, "warning: /y: is odd\n"),
    f"raise RuntimeError('{CANARY}')": (2, "auth-vault-enable: the check fails: RuntimeError at "),
    "raise SystemExit": (2, "auth-vault-enable: the check fails: SystemExit at "),
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_driver_may_check_what_it_will_want(tmp_path, check):
    env = ENVIRONMENT | foreign_driver(
        tmp_path, "vault", f"{DRIVER}\n    def check(self):\n        {check}\n"
    )
    file = tmp_path / "tpop3d.conf"
    file.touch(mode=0o600)
    lines = {"gatekeeper-user": "nobody", "auth-vault-enable": "yes", "auth-vault-password": "x"}
    file.write_text(text_of(lines))
    done = tpop3d("--check-config", "-f", file, env=env)
    status, told = CHECKS[check]
    assert done.returncode == status
    assert told in done.stderr.decode()
    assert CANARY.encode() not in done.stderr
