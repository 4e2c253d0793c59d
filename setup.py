"""Packaging. Tool settings are in pyproject.toml."""

import re
import shutil
import sysconfig
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent


def version() -> str:
    """Read, not imported: a build environment need not be able to run the server."""
    text = (here / "tpop3d" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit("setup.py: no __version__ in tpop3d/__init__.py")
    return found[1]


def files(pattern: str) -> list[str]:
    """The files of the checkout that match."""
    found = [path for path in here.glob(pattern) if path.is_file()]
    return sorted(str(path.relative_to(here)) for path in found)


def beside_the_package() -> list[tuple[str, list[str]]]:
    """Directories under the prefix, and the files that belong there."""
    examples = "share/doc/tpop3d/examples"
    places = [
        ("share/man/man5", files("man/*.5")),
        ("share/man/man8", files("man/*.8")),
        ("share/doc/tpop3d", ["README"]),
        ("lib/systemd/system", files("systemd/*.s*")),
        ("lib/sysusers.d", files("systemd/sysusers.d/*")),
        ("lib/tmpfiles.d", files("systemd/tmpfiles.d/*")),
        (examples, [*files("tpop3d/samples/*"), *files("tpop3d/auth/*.pam")]),
        (examples, files("tpop3d/auth/*.sql")),
        (f"{examples}/xinetd", files("xinetd/*")),
    ]
    filters = [here / "tpop3d/fail2ban", *here.glob("tpop3d/fail2ban/**/")]
    for directory in dict.fromkeys(filters):
        name = directory.relative_to(here / "tpop3d")
        places.append((f"{examples}/{name}", files(f"tpop3d/{name}/*")))
    return [(place, found) for place, found in places if found]


class BuildModules(build_py):
    """Builds them anew: what an older version has left in build/ would be installed, too."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "tpop3d"), ignore_errors=True)
        super().run()


# The one that setuptools uses: where it is to be imported from differs between versions.
InstallData = Distribution().get_command_class("install_data")


class InstallFiles(InstallData):
    """Installs them, and writes into them where the command will be.

    pip builds with the interpreter that it installs for, whose scripts are where the command goes.
    """

    def copy_file(self, source, target, *arguments, **options):
        copied = super().copy_file(source, target, *arguments, **options)
        path = Path(copied[0])
        text = path.read_text(encoding="utf-8")
        command = f"{sysconfig.get_path('scripts')}/tpop3d"
        if source.startswith(("systemd/", "xinetd/")) and "/usr/local/bin/tpop3d" in text:
            path.write_text(text.replace("/usr/local/bin/tpop3d", command), encoding="utf-8")
        return copied


SYSTEMD = ["systemd-python"]
PAM = ["python-pam"]
MYSQL = ["mysqlclient"]  # Debian's, 1.4.6, will do without TLS; for TLS it must be 2.1
ARGON2 = ["argon2-cffi"]
SECCOMP = ["pyseccomp"]

setup(
    name="tpop3d",
    version=version(),
    description="A fast and secure POP3 server for mbox mailspools",
    long_description=(here / "README").read_text(encoding="utf-8"),
    long_description_content_type="text/plain",
    license="GPL-2.0-or-later",
    python_requires=">=3.11",
    # The top-level folders systemd/, xinetd/ and tests/ are not packages.
    packages=find_packages(include=["tpop3d", "tpop3d.*"]),
    package_data={"tpop3d": ["py.typed"]},
    data_files=beside_the_package(),
    cmdclass={"build_py": BuildModules, "install_data": InstallFiles},
    scripts=["tpop3d/bin/tpop3d"],
    # crypt(3) left the standard library with Python 3.13.
    install_requires=['crypt_r; python_version >= "3.13"'],
    extras_require={
        "systemd": SYSTEMD,
        "pam": PAM,
        "mysql": MYSQL,
        "argon2": ARGON2,
        "seccomp": SECCOMP,
        "all": SYSTEMD + PAM + MYSQL + ARGON2 + SECCOMP,
        "test": ["pytest", "pytest-xdist", "hypothesis", "trustme", "ruff", "mypy"],
    },
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Communications :: Email :: Post-Office :: POP3",
        "Typing :: Typed",
    ],
)
