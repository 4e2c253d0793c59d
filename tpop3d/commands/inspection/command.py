"""The option `--inspect`: take the settings, become the owner of the mailspool, print the
report."""

from __future__ import annotations

import os
import sys

from tpop3d import DEFAULT_FILE
from tpop3d.commands.inspection import report
from tpop3d.commands.inspection.mailbox import Settings, look
from tpop3d.config.directive import size, size_text
from tpop3d.configuration import WrongConfiguration, load
from tpop3d.settings import DIRECTIVES
from tpop3d.system.privileges import OUT_OF_MEMORY, become, limit_memory, use_reserve

OK = 0
NO_GROUP = 65534  # instead of root's group, which nobody takes; the owner needs no group
FAILED = 1  # there is no mailspool to be read, or the configuration has errors


def inspect(path: str, file: str, as_json: bool) -> int:
    """Print all that is known of the mailspool `path`; returns the exit code."""
    try:
        settings = _settings(file)
    except WrongConfiguration as error:
        for problem in error.problems:
            print(f"tpop3d: {problem}", file=sys.stderr)
        return FAILED
    try:
        return _print(os.path.abspath(path), settings, as_json)
    except MemoryError:
        pass  # behind this line the memory is free again
    use_reserve()
    print(f"tpop3d: {path}: {OUT_OF_MEMORY}: {size_text(settings.memory)}", file=sys.stderr)
    return FAILED


def _print(path: str, settings: Settings, as_json: bool) -> int:
    def become_owner(uid: int, gid: int) -> None:
        _become_owner(uid, gid)
        limit_memory(settings.memory)

    mailbox = look(path, settings, become_owner)
    lines = report.as_json(mailbox) if as_json else report.as_text(mailbox)
    out = sys.stdout
    if out is None:  # it was closed when we started
        return FAILED
    # A terminal that has only ASCII gets escapes.
    out.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        for line in lines:
            out.write(line + "\n")
        out.flush()
    except BrokenPipeError:
        # Nobody reads on (`| head`). The interpreter flushes stdout at its end, and must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return OK if mailbox.listing is not None else FAILED


def _settings(file: str) -> Settings:
    """Take the settings from the configuration, or from the defaults if the file in its usual place
    is missing or unreadable. Raises `WrongConfiguration`."""
    if file == DEFAULT_FILE and not os.access(file, os.R_OK):
        if os.path.exists(file):
            print(f"tpop3d: {file} cannot be read; this is by the defaults", file=sys.stderr)
        memory = size(_default("session-memory"))
        return Settings(_default("state-directory"), _default("uidl-style"), True, memory)
    config = load(file)
    return Settings(
        config.state_directory, config.uidl_style, config.mailspool_index, config.session_memory
    )


def _default(key: str) -> str:
    return DIRECTIVES[key].default or ""


def _become_owner(uid: int, gid: int) -> None:
    """Become the owner if we are root: the owner can have put anything into the mailspool, so root
    must not read it. Root reads its own files itself."""
    if os.geteuid() == 0 and uid != 0 and (refused := become(uid, gid or NO_GROUP)):
        raise AssertionError(refused.reason)
