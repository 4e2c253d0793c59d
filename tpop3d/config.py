"""The configuration: its file format, its directives, and what they come to.

Lines `key: value`; `#` starts a comment; a trailing backslash continues the line. Every error is
found and told with file, line and key, and nothing is served with half a configuration.
"""

from __future__ import annotations

import os

from tpop3d import logs
from tpop3d.directives import (
    Address,
    Directive,
    absolute_path,
    addresses,
    boolean,
    from_zero,
    mailbox,
    one_of,
    positive,
    separators,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tpop3d.auth.driver import Driver
    from tpop3d.auth.templates import Mailbox

DEFAULT_FILE = "/etc/tpop3d.conf"


MASK = "********"  # what is shown for a secret

DIRECTIVES: dict[str, Directive] = {
    "listen-address": Directive(addresses, ""),
    "max-children": Directive(positive, "16"),
    "login-seconds": Directive(positive, "60"),
    "timeout-seconds": Directive(positive, "600"),
    "lock-timeout-seconds": Directive(positive, "10"),
    "auth-failure-delay-seconds": Directive(from_zero, "3"),
    "append-domain": Directive(boolean, "no"),
    "strip-domain": Directive(boolean, "no"),
    "domain-separators": Directive(separators, "@%!:"),
    "lowercase-user": Directive(boolean, "no"),
    "apop-only": Directive(boolean, "no"),
    "permit-empty-password": Directive(boolean, "no"),
    "mailbox": Directive(mailbox, "bsd:/var/mail/$(user)"),
    "mailspool-no-dotfile-locking": Directive(boolean, "no"),
    "no-commit-on-early-close": Directive(boolean, "no"),
    "state-directory": Directive(absolute_path, "/var/lib/tpop3d"),
    "log-facility": Directive(one_of(*logs.FACILITIES), "mail"),
    "log-level": Directive(one_of(*logs.LEVELS), "info"),
    "log-stderr": Directive(boolean, "no"),
}


class Config:
    """The values of all directives: `timeout-seconds` is `timeout_seconds`. Holds no secret."""

    listen_address: list[Address]
    max_children: int
    login_seconds: int
    timeout_seconds: int
    lock_timeout_seconds: int
    auth_failure_delay_seconds: int
    append_domain: bool
    strip_domain: bool
    domain_separators: str
    lowercase_user: bool
    apop_only: bool
    permit_empty_password: bool
    mailbox: Mailbox
    mailspool_no_dotfile_locking: bool
    no_commit_on_early_close: bool
    state_directory: str
    log_facility: str
    log_level: str
    log_stderr: bool
    drivers: dict[str, Driver]  # those that are enabled, by name, in the order they are asked
    effective: list[tuple[str, str, bool]]  # key, value as text, is it the default?

    def local_domain(self, host: str, port: int) -> bytes:
        """The domain of logins made at a local address: that of its `listen-address`, or b""."""
        for address in self.listen_address:
            if address.port == port and address.host in (host, "0.0.0.0", "::"):
                return os.fsencode(address.domain)
        return b""


class Secret:
    """A directive's value that is read from the file when it is needed, and kept nowhere."""

    __slots__ = ("_file", "_key")

    def __init__(self, file: str, key: str) -> None:
        self._file = file
        self._key = key

    def read(self) -> str:
        """The value as it stands in the file now. Raises OSError, and KeyError if it is gone."""
        lines, _ = _lines(_content(self._file), self._file)
        return lines[self._key][1]


def load(file: str) -> Config | list[str]:
    """Read a configuration file; returns the errors, each with file, line and key, if any."""
    try:
        content = _content(file)
    except OSError as error:
        return [f"{file}: {error.strerror}"]
    return read(content, file)


def _content(file: str) -> str:
    with open(file, "rb") as opened:
        return os.fsdecode(opened.read())


def read(content: str, file: str) -> Config | list[str]:
    """What `load` does, for the content of a file that is named `file` in errors."""
    lines, errors = _lines(content, file)
    config = Config()
    config.effective = []
    values = _values(DIRECTIVES, "", lines, file, errors, config.effective)
    for key, value in values.items():
        setattr(config, key.replace("-", "_"), value)
    config.drivers = _drivers(lines, file, errors, config)
    errors += [f"{file}:{number}: {key}: unknown directive" for key, (number, _) in lines.items()]
    if not errors:
        errors += _contradictions(config, file)
    return errors or config


def _lines(content: str, file: str) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """The file's keys, each with its line number and value, and what is wrong with its form."""
    lines: dict[str, tuple[int, str]] = {}
    errors: list[str] = []
    pending = ""
    first = 0
    for number, physical in enumerate(content.split("\n"), 1):
        first = first or number
        pending += physical.rstrip("\r")
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        line, start = pending.partition("#")[0].strip(), first
        pending, first = "", 0
        if not line:
            continue
        key, colon, value = line.partition(":")
        key = key.strip()
        if not colon or not key or " " in key:
            errors.append(f"{file}:{start}: {key.split(' ')[0]}: must be 'key: value'")
        elif key in lines:
            errors.append(f"{file}:{start}: {key}: given before, in line {lines[key][0]}")
        else:
            lines[key] = start, value.strip()
    if pending:
        errors.append(f"{file}:{first}: the last line is continued, and nothing follows")
    return lines, errors


def _values(
    directives: Mapping[str, Directive],
    prefix: str,
    lines: dict[str, tuple[int, str]],
    file: str,
    errors: list[str],
    effective: list[tuple[str, str, bool]],
) -> dict[str, Any]:
    """The value of each directive; takes those that are given out of `lines`."""
    values: dict[str, Any] = {}
    for name, directive in directives.items():
        key = prefix + name
        number, text = lines.pop(key, (0, directive.default))
        values[name] = None
        if text is None:
            continue
        effective.append((key, MASK if directive.secret else text, number == 0))
        try:
            values[name] = directive.parse(text)
        except ValueError as error:
            # A secret is not quoted, not even a wrong one.
            why = "is not what it must be" if directive.secret else error
            errors.append(f"{file}:{number}: {key}: {why}")
        if directive.secret:
            values[name] = Secret(file, key)
    return values


def _drivers(
    lines: dict[str, tuple[int, str]], file: str, errors: list[str], config: Config
) -> dict[str, Driver]:
    """The enabled drivers; takes the directives of all known drivers out of `lines`."""
    from tpop3d.auth import drivers

    mentioned = [key.split("-")[1] for key in lines if key.startswith("auth-")]
    enabled: dict[str, Driver] = {}
    for name in drivers.in_order(mentioned):
        found = drivers.find(name)
        if found is None:
            continue
        prefix = f"auth-{name}-"
        directives = {"enable": Directive(boolean, "no"), **found.directives}
        line = lines.get(f"{prefix}enable", (0, ""))[0]
        before = len(errors)
        settings = _values(directives, prefix, lines, file, errors, config.effective)
        if not settings.pop("enable") or len(errors) > before:
            continue
        settings["default-mailbox"] = config.mailbox
        try:
            enabled[name] = found(settings)
        except ValueError as error:
            errors.append(f"{file}:{line}: {prefix}{error}")
    return enabled


def _contradictions(config: Config, file: str) -> list[str]:
    """What is wrong with values that are right one by one."""
    if not config.drivers:
        from tpop3d.auth import drivers

        names = " or ".join(f"auth-{name}-enable: yes" for name in drivers.BUILT_IN)
        return [f"{file}: no driver is enabled, so nobody could log in; give {names}"]
    if config.apop_only and not any(driver.checks_apop for driver in config.drivers.values()):
        return [f"{file}: apop-only: no enabled driver can check APOP, so nobody could log in"]
    return []
