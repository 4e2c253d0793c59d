"""The real sssd(8) beside the directory of `ldapkit`, in the same mount namespace.

It looks for its parts where Debian has them, so the unpacked packages are laid over /usr there.
"""

import subprocess

import pytest

import ldapkit
from mailsite import Process, end, poll

PACKAGES = ("sssd-common", "sssd-krb5-common", "sssd-ldap", "libpam-sss", "libnss-sss")
LINES = "files systemd sss"  # of passwd and group, as libnss-sss leaves them in Debian 12
# Debian's common-auth and common-account, as pam-auth-update(8) makes them with libpam-sss.
SERVICE = """\
auth    [success=2 default=ignore]      pam_unix.so nullok
auth    [success=1 default=ignore]      pam_sss.so use_first_pass
auth    requisite                       pam_deny.so
auth    required                        pam_permit.so
account [success=1 new_authtok_reqd=done default=ignore]        pam_unix.so
account requisite                       pam_deny.so
account required                        pam_permit.so
account sufficient                      pam_localuser.so
account [default=bad success=ok user_unknown=ignore]            pam_sss.so
"""
CONFIGURATION = """\
[sssd]
services = nss, pam
domains = example
[nss]
[pam]
[domain/example]
id_provider = ldap
auth_provider = ldap
ldap_uri = {uri}
ldap_search_base = {base}
ldap_auth_disable_tls_never_use_in_production = true
ldap_network_timeout = 1
ldap_opt_timeout = 1
ldap_search_timeout = 1
offline_timeout = 1
offline_timeout_max = 1
offline_timeout_random_offset = 0
entry_cache_timeout = 600
"""
# What it has no files for is its own, too.
LAY_OVER = """\
set -e
mount -t overlay overlay -o "lowerdir=$0" /usr
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /var/log
mkdir -p /var/log/sssd /var/lib/sss
cd /var/lib/sss
mkdir -p db deskprofile gpo_cache mc pipes/private pubconf/krb5.include.d secrets
"""


def require() -> None:
    """Skip where it cannot be had."""
    ldapkit.require()
    for package in PACKAGES:
        if not (ldapkit.UNPACKED / package).is_dir():
            pytest.skip(f"{package} is not unpacked")


class Sssd:
    """It asks a `ldapkit.Directory`, and is asked by all others there, from its start on."""

    def __init__(self, directory: ldapkit.Directory) -> None:
        self._directory = directory
        self._process: Process | None = None
        places = [ldapkit.UNPACKED / package / "usr" for package in PACKAGES]
        lower = ":".join(map(str, [*places, "/usr"]))
        subprocess.run(directory.command("/bin/sh", "-c", LAY_OVER, lower), check=True)
        (directory.etc / "sssd/conf.d").mkdir(parents=True)
        configuration = directory.etc / "sssd/sssd.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(CONFIGURATION.format(uri=directory.tcp, base=ldapkit.BASE))
        module = str(ldapkit.library("libpam-sss", "pam_sss.so"))
        (directory.etc / "pam.d/tpop3d").write_text(SERVICE.replace("pam_sss.so", module))
        strict = "".join(ldapkit.sample_for_directories())
        strict = strict.replace("pam_ldap.so minimum_uid=1000", module)
        (directory.etc / "pam.d" / ldapkit.STRICT).write_text(strict)
        directory.switch(LINES)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            self._directory.command("/usr/sbin/sssd", "--interactive"),
            env=self._directory.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            poll(lambda: self._directory.knows("anna"), "sssd to answer", 60)
        except AssertionError:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and all that it has started."""
        assert self._process is not None
        end(self._process)

    close = stop
