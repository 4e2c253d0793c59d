"""The system's users in a directory that ignores letter case, or knows other names of them.

The directory is a module of ours for the real nsswitch(5), in a mount namespace of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import authkit
import pamkit
from mailsite import CHECKOUT, IS_ROOT, MAIL_USER, need

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root may mount an nsswitch.conf")

SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <nss.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

enum nss_status _nss_caseless_getpwnam_r(
    const char *name, struct passwd *found, char *buffer, size_t length, int *error)
{
    struct passwd *entry;
    FILE *file = fopen(FILE_NAME, "re");
    while (file && !fgetpwent_r(file, found, buffer, length, &entry))
        if (!strcasecmp(found->pw_name, name) || !strcasecmp(found->pw_gecos, name)) {
            fclose(file);
            return NSS_STATUS_SUCCESS;
        }
    if (file)
        fclose(file);
    *error = ENOENT;
    return NSS_STATUS_NOTFOUND;
}
"""
# Each line of stdin is a name; the answer to it is a line of stdout.
ASK = """
import sys
sys.path[:0] = [{tests!r}, {checkout!r}]
import authkit
from pathlib import Path
from tpop3d.auth import system_users as system
{prepare}
driver = authkit.config_of({settings!r}).drivers[{driver!r}]
for line in sys.stdin.buffer:
    verdict = driver.authenticate(authkit.login(line.rstrip(b"\\n"), password=b"open sesame"))
    account = verdict.account
    print(verdict.reason or [account.name, account.mailboxes, account.uid], flush=True)
"""
SHADOWED = "system.SHADOW = {shadow!r}"
# pam_matrix knows one spelling.
CONFDIR = """
import ctypes, os, pam
pam.PamAuthenticator()
start = ctypes.CDLL("libpam.so.0").pam_start_confdir
pam.PamAuthenticator.pam_start = staticmethod(
    lambda name, user, talk, pam: start(name, user, talk, os.fsencode({services!r}), pam)
)
"""
NAMES = [b"anna", b"Anna", b"ANNA", b"anna.smith", b"Anna.Smith", b"anne"]
UID = MAIL_USER.pw_uid
ANNA = f"[b'anna', ['/var/mail/anna'], {UID}]"


@pytest.fixture
def directory(tmp_path):
    """A command that runs another one where the directory is asked after /etc/passwd."""
    entries = tmp_path / "entries"
    entries.write_text(f"anna:x:{UID}:{MAIL_USER.pw_gid}:anna.smith:/nonexistent:/bin/false\n")
    source = tmp_path / "caseless.c"
    source.write_text(SOURCE.replace("FILE_NAME", f'"{entries}"'))
    library = tmp_path / "libnss_caseless.so.2"
    subprocess.run([need("gcc"), "-shared", "-fPIC", "-o", library, source], check=True)
    switch = tmp_path / "nsswitch.conf"
    switch.write_text("passwd: files caseless\ngroup: files\nshadow: files\n")
    script = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'
    return [need("unshare"), "--mount", "env", f"LD_LIBRARY_PATH={tmp_path}", "sh", "-c", script,
            switch]  # fmt: skip


def answers(directory, driver, prepare):
    settings = {
        "auth-flatfile-enable": None,
        "auth-flatfile-passwd-file": None,
        "auth-flatfile-mail-user": None,
        f"auth-{driver}-enable": "yes",
        "mailbox": "/var/mail/$(user)",
    }
    script = ASK.format(
        tests=str(Path(authkit.__file__).parent), checkout=str(CHECKOUT), prepare=prepare,
        settings=settings, driver=driver,
    )  # fmt: skip
    done = subprocess.run(
        [*directory, sys.executable, "-c", script],
        input=b"\n".join(NAMES),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(zip(NAMES, done.stdout.decode().splitlines(), strict=True))


def test_the_directorys_name_is_the_users_for_auth_passwd(directory, tmp_path):
    """Not the client's: that would be another mailbox, which is empty."""
    shadow = tmp_path / "shadow"
    command = [need("openssl"), "passwd", "-6", "open sesame"]
    hashed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    shadow.write_text(f"anna:{hashed}:19000:0:99999:7:::\n")
    found = answers(directory, "passwd", SHADOWED.format(shadow=str(shadow)))
    assert found.pop(b"anne") == "unknown user"
    assert set(found.values()) == {ANNA}


def test_the_directorys_name_is_the_users_for_auth_pam(directory, monkeypatch):
    """To PAM, too: who counts failures counts those of one user."""
    with pamkit.site(monkeypatch) as site:
        site.add("anna", "open sesame")
        os.chmod(site.passdb, 0o644)
        found = answers(directory, "pam", CONFDIR.format(services=str(site.services)))
    assert found.pop(b"anne") != ANNA
    assert set(found.values()) == {ANNA}
