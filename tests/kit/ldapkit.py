"""The system's users in a real directory: slapd(8), asked by nslcd(8), behind nsswitch(5) and PAM.

All of it, and whoever asks for users, has an /etc and a /run of its own: a mount namespace.
Debian's packages are unpacked, not installed.
"""

import re
import shutil
import signal
import socket
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import doors
from mailsite import (
    CHECKOUT,
    ENVIRONMENT,
    IS_ROOT,
    MAIL_USER,
    Command,
    Process,
    Settings,
    Site,
    end,
    need,
    open_directory,
    piped,
    poll,
)
from systemdsite import SHA512_OF_SECRET

UNPACKED = CHECKOUT / ".unpacked"
FAIL2BAN = UNPACKED / "fail2ban"
PACKAGES = ("slapd", "nslcd", "libnss-ldapd", "libpam-ldapd", "nscd", "libnss-sss", "fail2ban")
HOST = "127.0.0.77"
BASE = "dc=example,dc=org"
GROUP = 7777  # the gid of "mailers", which only the directory knows
PATIENCE = 1  # seconds, of nslcd(8)
SCHEMAS = ("core", "cosine", "nis")
ENTRIES = f"""\
dn: {BASE}
objectClass: dcObject
objectClass: organization
o: example
dc: example

dn: uid=anna,{BASE}
objectClass: account
objectClass: posixAccount
objectClass: shadowAccount
uid: anna
cn: Anna
uidNumber: {MAIL_USER.pw_uid}
gidNumber: {MAIL_USER.pw_gid}
homeDirectory: /nonexistent
userPassword: secret

dn: uid=bert,{BASE}
objectClass: account
objectClass: posixAccount
objectClass: shadowAccount
uid: bert
cn: Bert
uidNumber: {MAIL_USER.pw_uid}
gidNumber: {MAIL_USER.pw_gid}
homeDirectory: /nonexistent
userPassword: secret

dn: cn=mailers,{BASE}
objectClass: posixGroup
cn: mailers
gidNumber: {GROUP}
"""
# Debian's common-auth and common-account, as pam-auth-update(8) makes them with libpam-ldapd.
SERVICE = """\
auth    [success=2 default=ignore]      pam_unix.so nullok
auth    [success=1 default=ignore]      {pam_ldap} minimum_uid=1000 use_first_pass
auth    requisite                       pam_deny.so
auth    required                        pam_permit.so
account [success=1 new_authtok_reqd=done default=ignore]        pam_unix.so
account requisite                       pam_deny.so
account required                        pam_permit.so
account [success=ok new_authtok_reqd=done ignore=ignore user_unknown=ignore \
authinfo_unavail=ignore default=bad]    {pam_ldap} minimum_uid=1000
"""
STRICT = "pop3"  # the service of `sample_for_directories`
LINES = "files systemd ldap"  # of passwd and group, as libnss-ldapd leaves them in Debian 12
# What makes /etc and /run the namespace's own. It lives as long as its stdin is open.
ENTER = """\
set -e
mount --make-rprivate /
mount --bind "$0/etc" /etc
mount --bind "$0/run" /run
echo ready
exec cat
"""


def require() -> None:
    """Skip where it cannot be had."""
    if not IS_ROOT:
        pytest.skip("only root may mount an nsswitch.conf")
    for package in PACKAGES:
        if not (UNPACKED / package).is_dir():
            pytest.skip(f"{package} is not unpacked")
    for program in ("unshare", "nsenter"):
        need(program)


def sample_for_directories() -> list[str]:
    """The lines of the sample for PAM that are for a directory, as whoever wants them has them."""
    lines = (CHECKOUT / "tpop3d/auth/tpop3d.pam").read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if "libpam-ldapd" in line)
    block = lines[first:]
    return [line[1:] for line in block[: block.index("\n")] if re.match(r"#(auth|account) ", line)]


def library(package: str, name: str) -> Path:
    """The path of what a package has in its library directory."""
    (path,) = UNPACKED.glob(f"{package}/**/{name}")
    return path


class Directory:
    """The directory, and those who ask it; anna and bert are in it, with the password "secret"."""

    def __init__(self) -> None:
        self.path = open_directory()
        self.etc, self.run = self.path / "etc", self.path / "run"
        self._processes: dict[str, Process] = {}
        libraries = [
            library("libnss-ldapd", "libnss_ldap.so.2"),
            library("libnss-sss", "libnss_sss.so.2"),
            library("slapd", "libslapi-*.so.0"),
        ]
        places = ":".join(str(library.parent) for library in libraries)
        self.environment = ENVIRONMENT | {"LD_LIBRARY_PATH": places}
        subprocess.run(["cp", "-a", "/etc", self.etc], check=True)
        for name in ("nslcd", "nscd"):
            (self.run / name).mkdir(parents=True)
            (self.run / name).chmod(0o755)
        self.uri = f"ldapi://{str(self.path / 'ldapi').replace('/', '%2F')}"
        with socket.create_server((HOST, 0)) as reserved:  # nobody else takes ports of that address
            self.tcp = f"ldap://{HOST}:{reserved.getsockname()[1]}"
        self._furnish()
        self._holder = subprocess.Popen(
            [need("unshare"), "--mount", "/bin/sh", "-c", ENTER, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._output, self._held = piped(self._holder)
        assert self._output.readline() == b"ready\n"
        self._load()
        for name in ("slapd", "nslcd"):
            self.start(name)

    def _furnish(self) -> None:
        self.switch(LINES)
        (self.etc / "nslcd.conf").write_text(
            f"uri {self.uri}\nbase {BASE}\n"
            f"ignorecase yes\nbind_timelimit {PATIENCE}\ntimelimit {PATIENCE}\n"
            f"reconnect_sleeptime {PATIENCE}\nreconnect_retrytime {PATIENCE}\n"
        )
        (self.etc / "nscd.conf").write_text(
            "enable-cache passwd yes\npositive-time-to-live passwd 600\n"
            "negative-time-to-live passwd 600\nenable-cache group no\nenable-cache hosts no\n"
            "enable-cache services no\nenable-cache netgroup no\n"
        )
        module = str(library("libpam-ldapd", "pam_ldap.so"))
        (self.etc / "pam.d/tpop3d").write_text(SERVICE.format(pam_ldap=module))
        ours = "".join(sample_for_directories()).replace("pam_ldap.so", module)
        (self.etc / "pam.d" / STRICT).write_text(ours)
        with (self.etc / "shadow").open("a") as shadow:
            shadow.write(f"anna:{SHA512_OF_SECRET}:19000:0:99999:7:::\n")  # for auth-passwd

    def _load(self) -> None:
        """What slapd is started with."""
        schemas = [UNPACKED / f"slapd/etc/ldap/schema/{name}.schema" for name in SCHEMAS]
        (self.path / "db").mkdir()
        (self.path / "slapd.conf").write_text(
            "".join(f"include {one}\n" for one in schemas)
            + f"database ldif\nsuffix {BASE}\ndirectory {self.path}/db\n"
        )
        self._add(ENTRIES)

    def _add(self, entries: str) -> None:
        subprocess.run(
            [UNPACKED / "slapd/usr/sbin/slapd", "-T", "add", "-f", self.path / "slapd.conf"],
            input=entries.encode(),
            check=True,
            env=self.environment,
            capture_output=True,
        )

    def add(self, name: str) -> None:
        """Have one more user, with the password "secret"."""
        for program in ("nslcd", "slapd"):
            self.stop(program)
        entry = next(one for one in ENTRIES.split("\n\n") if "uid: bert" in one)
        self._add(entry.replace("bert", name).replace("Bert", name))
        # nslcd would call passwords wrong for a moment, for want of a connection to check them.
        for program in ("slapd", "nslcd"):
            self.start(program)

    def switch(self, passwd: str, group: str | None = None) -> None:
        """Give nsswitch.conf(5) these lines."""
        lines = f"passwd: {passwd}\ngroup: {group or passwd}\nshadow: files ldap\nhosts: files\n"
        new = self.etc / "nsswitch.conf.new"  # nslcd reads it, too
        new.write_text(lines)
        new.rename(self.etc / "nsswitch.conf")

    def command(self, *words: object) -> list[str]:
        """A command line that is run there."""
        mount = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        return [need("nsenter"), mount, "--", *map(str, words)]

    def start(self, name: str) -> None:
        """Start "slapd", "nslcd" or "nscd", and wait until it answers."""
        program = UNPACKED / name / "usr/sbin" / name
        place = {"slapd": self.path / "ldapi"}.get(name, self.run / name / "socket")
        place.unlink(missing_ok=True)
        arguments: dict[str, list[object]] = {
            "slapd": ["-d", "0", "-f", self.path / "slapd.conf", "-h", f"{self.uri} {self.tcp}"],
            "nslcd": ["--nofork"],
            "nscd": ["--foreground"],
        }
        self._processes[name] = subprocess.Popen(
            self.command(program, *arguments[name]),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        poll(place.exists, f"{name} to listen", 60)

    def send(self, name: str, number: int) -> None:
        """Send a signal to one of them."""
        self._processes[name].send_signal(number)

    def stop(self, name: str) -> None:
        """End one of them."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGCONT)
        end(process)

    def mend(self) -> None:
        """Have all as it was at first, with an nslcd that remembers no trouble."""
        for name in [name for name in ("nscd", "nslcd") if name in self._processes]:
            self.stop(name)
        self.switch(LINES)
        if "slapd" in self._processes:
            self.send("slapd", signal.SIGCONT)
        else:
            self.start("slapd")
        self.start("nslcd")
        poll(lambda: self.knows("anna"), "the directory to answer again", 60)

    def knows(self, name: str) -> bool:
        """Is there such a user?"""
        command = self.command("getent", "passwd", name)
        found = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        return found.returncode == 0

    def tpop3d(
        self, *arguments: object, stdin: int | None = subprocess.DEVNULL, input: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the server's command there, to its end."""
        return subprocess.run(
            self.command(*doors.SERVER, *arguments),
            stdin=stdin,
            input=input,
            env=self.environment,
            capture_output=True,
            timeout=120,
            check=False,
            cwd="/",
        )

    def fail2ban_regex(self, log: Path) -> list[str]:
        """The addresses that our filter finds in a log, each as often as it does."""
        configuration = self.path / "fail2ban"
        if not configuration.exists():
            shutil.copytree(FAIL2BAN / "etc/fail2ban", configuration)
            shutil.copy(
                CHECKOUT / "tpop3d/fail2ban/filter.d/tpop3d.conf", configuration / "filter.d"
            )
        done = subprocess.run(
            ["/usr/bin/python3", FAIL2BAN / "usr/bin/fail2ban-regex", "-c", configuration,
             "--usedns=no", "-o", "<ip>", log, "tpop3d"],
            env={"PYTHONPATH": str(FAIL2BAN / "usr/lib/python3/dist-packages")},
            stdout=subprocess.PIPE,
            text=True,
            check=False,  # it fails where it finds nothing
        )  # fmt: skip
        return done.stdout.split()

    def door(self, site: Site, settings: Settings) -> AbstractContextManager[doors.Door]:
        """A listener there."""
        logs = doors.Logs(site.path / "stderr")

        def command(port: int) -> Command:
            site.configure({"listen-address": f"127.0.0.1:{port}", **settings})
            variables = [f"{key}={value}" for key, value in self.environment.items()]
            return self.command("env", *variables, *doors.SERVER, "-d", "-f", site.conf)

        return doors.door_of(*doors.listening(command, logs, "listening on"), logs)

    def close(self) -> None:
        for name in list(self._processes):
            self.stop(name)
        self._held.close()
        self._holder.wait()
        self._output.close()
        shutil.rmtree(self.path)
