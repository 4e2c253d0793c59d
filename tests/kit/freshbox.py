"""A new Debian system: what README tells an administrator to type is typed into it.

It has no network, but what apt and pip would fetch. The packages are on this machine, or in the
Debian 13 of trixie.py, whose /usr it has; pip finds its own where tests/run has put it.
"""

import grp
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import trixie
from mailsite import CHECKOUT, need
from systemdbox import SystemdBox
from systemdsite import OTHER_PYTHON, SHA512_OF_SECRET

README = (CHECKOUT / "README").read_text()
WHEELS = Path(sys.prefix) / "wheels"
SOURCES = "/usr/local/src/tpop3d"
SOURCE = ("setup.py", "pyproject.toml", "README", "COPYING", "man", "systemd", "xinetd", "tpop3d")
PIP_CONF = "[global]\nno-index = true\nfind-links = /usr/local/src/wheels\nno-cache-dir = true\n"
ANN = 4711
THIS = Path("/")
# Debian 12's, as systemd-sysv-generator(8) makes it, which does not run in the box.
XINETD = """\
[Service]
Type=forking
GuessMainPID=no
RemainAfterExit=yes
KillMode=process
ExecStart=/etc/init.d/xinetd start
ExecStop=/etc/init.d/xinetd stop
ExecReload=/etc/init.d/xinetd reload

[Install]
WantedBy=multi-user.target
"""
# Where an installation may leave something,
PLACES = ("etc", "opt", "usr/local", "var", "root", "home")
# and what changes without it, or is the sources': apt's locks, systemd's notes on itself, and the
# backups that useradd(8) and its like make.
OTHERS = re.compile(
    r"usr/local/src|opt/python|var/lib/(apt|dpkg|systemd)|var/(cache|log)/"
    r"|etc/((passwd|group|g?shadow)-|\.(pwd|updated))"
)


def commands(after: str) -> list[str]:
    """The first indented lines after some text."""
    section = README.partition(f"\n{after}")[2]
    block = re.search(r"(?:^    .*\n)+", section, re.MULTILINE)
    assert block, after
    return [line.strip() for line in block[0].splitlines()]


def require(system: Path = THIS) -> None:
    """Skip unless the packages are there."""
    if not WHEELS.is_dir():
        pytest.skip("tests/run has not fetched what pip wants")
    if system == trixie.ROOT:
        trixie.require()
        return
    for program in ("apt", "pip", "make-ssl-cert", "man", "xinetd"):
        need(program)


def copy_source(to: Path) -> None:
    """The checkout as an administrator has it, without what tests leave in it."""
    for name in SOURCE:
        path = CHECKOUT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, to / name, ignore=ignored)
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)


class FreshBox(SystemdBox):
    """The system; ann is a user of it, with the password "secret"."""

    def install(self) -> None:
        etc, local = self.directory / "etc", self.directory / "local"
        copy_source(local / "src/tpop3d")
        shutil.copytree(WHEELS, local / "src/wheels")
        (etc / "pip.conf").write_text(PIP_CONF)
        self._furnish_packages()
        lines = {name: (self.system / "etc" / name).read_text() for name in ("passwd", "group")}
        for name, text in lines.items():
            kept = [line for line in text.splitlines(True) if line.split(":")[0] != "tpop3d"]
            (etc / name).write_text("".join(kept))
        with (etc / "passwd").open("a") as passwd:
            passwd.write(f"ann:x:{ANN}:{ANN}::/home/ann:/bin/sh\n")
        with (etc / "group").open("a") as group:
            group.write(f"ann:x:{ANN}:\n")
        (etc / "shadow").write_text(f"ann:{SHA512_OF_SECRET}:19000:0:99999:7:::\n")
        (etc / "shadow").chmod(0o640)
        (etc / "gshadow").touch(mode=0o640)
        (self.directory / "home/ann").mkdir(mode=0o700)
        os.chown(self.directory / "home/ann", ANN, ANN)
        spools = self.directory / "var/mail"
        spools.mkdir()
        os.chown(spools, 0, grp.getgrnam("mail").gr_gid)
        spools.chmod(0o2775)
        self.boot()
        self._furnish_python()
        self.systemctl("enable", "--now", "xinetd.service")
        # What happened here when ssl-cert was installed; /etc is not this machine's.
        self.do("make-ssl-cert", "generate-default-snakeoil")

    def _furnish_packages(self) -> None:
        """What the packages have elsewhere than in /usr, and apt's list of them."""
        dpkg = self.directory / "var/lib/dpkg"
        dpkg.mkdir(parents=True)
        shutil.copy(self.system / "var/lib/dpkg/status", dpkg)
        for name in ("apt/apt.conf.d", "apt/preferences.d", "ssl/certs", "ssl/private", "xinetd.d"):
            (self.directory / "etc" / name).mkdir(parents=True)
        for name in ("init.d", "default", "systemd/system"):
            (self.directory / "etc" / name).mkdir(parents=True)
        authorities = "ssl/certs/ca-certificates.crt"  # which pip wants to be there
        services = ("xinetd.conf", "init.d/xinetd", "default/xinetd")
        for name in (authorities, *services, "manpath.config"):
            shutil.copy(self.system / "etc" / name, self.directory / "etc" / name)
        if not (self.system / "usr/lib/systemd/system/xinetd.service").exists():
            (self.directory / "etc/systemd/system/xinetd.service").write_text(XINETD)

    def _furnish_python(self) -> None:
        """As python3, the Python that runs the tests."""
        if OTHER_PYTHON and self.system == THIS:
            # It looks for its library, if that is shared, where it was installed first.
            self.path("/etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
            self.do("ldconfig")
            command = self.path("/usr/local/bin/python3")
            version = "{}.{}".format(*sys.version_info[:2])
            command.write_text(f'#!/bin/sh\nexec /opt/python/bin/python{version} "$@"\n')
            command.chmod(0o755)

    def type(self, command: str) -> str:
        """Type a line, as root, in the directory of the sources; it must succeed."""
        return self.do("/bin/sh", "-ec", f"cd {SOURCES}\n{command}")

    def tree(self) -> dict[str, bytes | str | None]:
        """All that is there where an installation may leave something: names and contents."""
        found: dict[str, bytes | str | None] = {}
        for place in PLACES:
            for directory, directories, files in os.walk(self.path(place)):
                above = directory.partition("/root/")[2]
                directories[:] = [name for name in directories if not _is_others(above, name)]
                for name in directories + files:
                    if not _is_others(above, name):
                        found[f"{above}/{name}"] = _content(Path(directory, name))
        return found


def _is_others(directory: str, name: str) -> bool:
    return bool(OTHERS.match(f"{directory}/{name}"))


def _content(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() else None
