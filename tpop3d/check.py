"""`tpop3d --check-config`: what the configuration comes to, or all that is wrong with it."""

from __future__ import annotations

import os
import sys

from tpop3d.config import load
from tpop3d.session.cell import gatekeeper_user


def check_config(file: str) -> int:
    """Print the configuration in effect, as a configuration file, secrets masked; returns 0.

    With errors: print each on stderr, with file, line and key, and return 2. Warnings go there,
    too.
    """
    config = load(file)
    problems = config if isinstance(config, list) else []
    if not isinstance(config, list) and os.geteuid() == 0:
        user = gatekeeper_user(config)
        problems = [f"{file}: {user}"] if isinstance(user, str) else []
    if problems or isinstance(config, list):
        for problem in problems:
            _print(problem, sys.stderr.fileno())
        return 2
    for warning in config.warnings:
        _print(f"warning: {warning}", sys.stderr.fileno())
    _print(f"# {file}: no errors. In effect:", sys.stdout.fileno())
    for key, value, is_default in config.effective:
        line = f"{key}: {value}".rstrip()
        if is_default:
            line += "    # default"
        elif line.endswith("\\"):
            line += " #"  # or the next line would continue it
        _print(line, sys.stdout.fileno())
    return 0


def _print(line: str, fd: int) -> None:
    """A line may hold octets of the file that are no text."""
    os.write(fd, os.fsencode(line) + b"\n")
