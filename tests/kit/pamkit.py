"""PAM for tests, without root: services in a directory of our own, asked by the real driver."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import authkit
from mailsite import MAIL_USER, PATIENCE, Settings, need, open_directory
from tpop3d.auth import isolation, system_users
from tpop3d.auth.driver import Verdict
from tpop3d.pop3.authorization import Attempt
from tpop3d.privsep.channel import ReceivedLogin
from tpop3d.privsep.monitor import Monitor

if TYPE_CHECKING:
    from tpop3d.auth.driver import Driver

ANN = MAIL_USER.pw_name  # a user of the system who is not root
BOB = "no-such-user-here"  # whom PAM knows and the system does not
SECRET = "open sesame"
SERVICE = "tpop3d"
ENABLE: dict[str, object] = {
    "auth-flatfile-enable": None,
    "auth-flatfile-passwd-file": None,
    "auth-flatfile-mail-user": None,
    "auth-pam-enable": "yes",
}
LIBPAM = "libpam.so.0"


class Received(ReceivedLogin):
    """A login request as the monitor has it, which came on no channel."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt


class Site:
    """The services, and the users of pam_matrix; `ask` asks the driver as the switch does."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.services = directory / "services"
        self.services.mkdir()
        self.passdb = directory / "passdb"
        self.mark = directory / "mark"  # left by `marking`
        self.shadow = directory / "shadow"
        self.shadow.write_text(f"{ANN}:$6$x$y:19000:0:99999:7:::\n")
        self.add(ANN, SECRET)
        self.add(BOB, SECRET)
        self.service(*self.matrix())

    def add(self, user: str, password: str | bytes, service: str = SERVICE) -> None:
        with self.passdb.open("ab") as file:
            file.write(b":".join(map(os.fsencode, (user, password, service))) + b"\n")

    def service(self, *lines: str, name: str = SERVICE) -> None:
        (self.services / name).write_text("".join(f"{line}\n" for line in lines))

    def matrix(self, *options: str) -> tuple[str, str]:
        words = " ".join([f"{wrapper('pam_matrix')} passdb={self.passdb}", *options])
        return f"auth required {words}", f"account required {words}"

    def script(self, *commands: str, options: str = "") -> str:
        """The line for pam_exec(8) with a script."""
        path = self.path / f"script{len(list(self.path.glob('script*')))}"
        path.write_text("".join(f"{line}\n" for line in ("#!/bin/sh", *commands)))
        path.chmod(0o755)
        return f"pam_exec.so {options} {path}"

    def marking(self, *lines: str) -> None:
        """The service, if none, of `lines`, that shows when it is asked."""
        self.service(f"auth optional {self.script(f'env >{self.mark}')}", *lines)

    def driver(self, **settings: object) -> "Driver":
        return authkit.config_of(ENABLE, **settings).drivers["pam"]

    def ask(
        self,
        user: str = ANN,
        password: str | bytes = SECRET,
        seconds: float = PATIENCE,
        client: str = "192.0.2.1",
        **settings: object,
    ) -> Verdict:
        """The verdict of the driver in a process of its own."""
        octets = os.fsencode(password)
        login = authkit.login(os.fsencode(user), password=octets, client=client)
        return isolation.ask(self.driver(**settings), login, seconds)

    def decided(
        self,
        user: str,
        password: str | bytes = SECRET,
        settings: Settings | None = None,
        peer: str = "192.0.2.1",
    ) -> tuple[str, str]:
        """The switch's answer to a connection from `peer`, and whose it is."""
        monitor = Monitor(
            authkit.config_of({**ENABLE, **(settings or {})}), peer, ("192.0.2.2", 110)
        )
        attempt = Attempt("USER", os.fsencode(user), os.fsencode(password))
        verdict = monitor.decide(Received(attempt))
        return verdict.answer, verdict.driver


def wrapper(module: str) -> Path:
    """The path of a module of pam_wrapper's, or a skipped test."""
    places = [Path("/usr/lib"), Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-*")]
    paths = [place / f"pam_wrapper/{module}.so" for place in places]
    found = [path for path in paths if path.exists()]
    return found[0] if found else pytest.skip("libpam-wrapper is not installed")


@contextmanager
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A `Site`; PAM looks for services nowhere else until the test has ended."""
    library = pytest.importorskip("pam", reason="python-pam is not installed in this Python")
    library.PamAuthenticator()
    start = getattr(ctypes.CDLL(LIBPAM), "pam_start_confdir", None)
    if start is None:
        pytest.skip("this PAM has no pam_start_confdir(3)")
    directory = open_directory()
    site = Site(directory)

    def pam_start(service: bytes, user: bytes, conversation: object, handle: object) -> Any:
        return start(service, user, conversation, os.fsencode(site.services), handle)

    monkeypatch.setattr(library.PamAuthenticator, "pam_start", staticmethod(pam_start))
    monkeypatch.setattr(system_users, "SHADOW", str(site.shadow))
    yield site
    shutil.rmtree(directory)


# A module for what Debian's own modules do not do. It says what its arguments tell it to.
SOURCE = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef struct pam_handle pam_handle_t;
int pam_get_authtok(pam_handle_t *, int, const char **, const char *);
int pam_prompt(pam_handle_t *, int, char **, const char *, ...);
int pam_fail_delay(pam_handle_t *, unsigned);
int pam_get_item(const pam_handle_t *, int, const void **);
struct message { int style; const char *text; };
struct conversation { int (*call)(int, const struct message **, void **, void *); void *data; };

int pam_sm_authenticate(pam_handle_t *pam, int flags, int argc, const char **argv)
{
    const char *what = argv[0], *word = "", *answer = "";
    if (!strcmp(what, "abort"))
        abort();
    if (!strcmp(what, "segv"))
        raise(SIGSEGV);
    if (!strcmp(what, "exit"))
        exit(0);
    if (!strcmp(what, "print")) {
        puts("printed");
        fputs("printed", stderr);
        fflush(stdout);
        write(1, "written", 7);
        write(2, "written", 7);
    }
    if (!strcmp(what, "say")) {
        pam_prompt(pam, 4, NULL, "gr\xfc\xdf" "e, %s", "\xff\xfe");
        pam_prompt(pam, 3, NULL, "\x80\x81%05000d", 1);
        pam_prompt(pam, 2, (char **)&answer, "\xfe: ");
    }
    if (!strcmp(what, "ask-twice") && pam_prompt(pam, 1, (char **)&answer, "Code: "))
        return 19;
    if (!strcmp(what, "expect-nothing")) { /* no place for the response, which is odd indeed */
        struct message message = {4, "hello"}, *messages = &message;
        const struct conversation *back;
        pam_get_item(pam, 5, (const void **)&back);
        back->call(1, (const struct message **)&messages, NULL, back->data);
    }
    if (!strcmp(what, "delay"))
        return pam_fail_delay(pam, 60000000) ? 4 : 7;
    if (!strcmp(what, "not-null"))
        return flags & 1 ? 7 : 0; /* PAM_DISALLOW_NULL_AUTHTOK */
    if (pam_get_authtok(pam, 6, &word, NULL))
        return 20;
    if (!strcmp(what, "length"))
        return strlen(word) == atol(argv[1]) ? 0 : 7;
    return strcmp(word, "open sesame") ? 7 : 0;
}
int pam_sm_setcred(pam_handle_t *pam, int flags, int argc, const char **argv)
{
    abort(); /* credentials are none of ours */
}
int pam_sm_acct_mgmt(pam_handle_t *pam, int flags, int argc, const char **argv)
{
    return 0;
}
"""


def compiled(directory: Path) -> Path:
    """The path of that module."""
    source, module = directory / "odd.c", directory / "pam_odd.so"
    source.write_text(SOURCE)
    command = [need("gcc"), "-w", "-shared", "-fPIC", "-o"]
    subprocess.run([*command, module, source, f"-l:{LIBPAM}"], check=True, capture_output=True)
    return module
