"""Packaging. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent


def version() -> str:
    """Read, not imported: a build environment need not be able to run the server."""
    text = (here / "tpop3d" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit("setup.py: no __version__ in tpop3d/__init__.py")
    return found[1]


SYSTEMD = ["systemd-python"]
PAM = ["python-pam"]
MYSQL = ["mysqlclient"]
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
    # Beside what they belong to, and to be copied: a database schema, a PAM service, and what
    # fail2ban needs.
    package_data={
        "tpop3d": ["py.typed", "fail2ban/*/*.conf"],
        "tpop3d.auth": ["vmail-sql.sql", "tpop3d.pam"],
    },
    entry_points={"console_scripts": ["tpop3d = tpop3d.cli:main"]},
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
