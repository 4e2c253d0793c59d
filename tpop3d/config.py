"""The configuration: its directives, and what they come to.

Every error is found and told with file, line and key, and nothing is served with half a
configuration.
"""

from __future__ import annotations

import os

from tpop3d import logs
from tpop3d.configfile import (
    DOUBTFUL,
    INCOMPLETE,
    OPEN,
    SECRET,
    content_without_secrets,
    logical_lines,
    read_key,
)
from tpop3d.directives import (
    Address,
    Directive,
    absolute_path,
    addresses,
    boolean,
    from_zero,
    mailbox,
    names,
    one_of,
    per_source,
    positive,
    separators,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tpop3d.auth.driver import Driver
    from tpop3d.auth.templates import Mailbox


MASK = "********"  # what is shown for a secret

DIRECTIVES: dict[str, Directive] = {
    "listen-address": Directive(addresses, ""),
    "max-children": Directive(positive, "16"),
    "max-children-per-source": Directive(per_source, "half"),
    "gatekeeper-user": Directive(str, "tpop3d"),
    "gatekeeper-connections": Directive(positive, "100"),
    "shutdown-seconds": Directive(positive, "10"),
    "login-seconds": Directive(positive, "60"),
    "timeout-seconds": Directive(positive, "600"),
    "lock-timeout-seconds": Directive(positive, "10"),
    "auth-failure-delay-seconds": Directive(from_zero, "3"),
    "auth-timeout-seconds": Directive(positive, "30"),
    "auth-drivers": Directive(names, ""),
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
    max_children_per_source: int | None  # None: half of max_children, rounded up
    gatekeeper_user: str
    gatekeeper_connections: int
    shutdown_seconds: int
    login_seconds: int
    timeout_seconds: int
    lock_timeout_seconds: int
    auth_failure_delay_seconds: int
    auth_timeout_seconds: int
    auth_drivers: list[str]  # in the order in which they are asked; none: in that of BUILT_IN
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
    warnings: list[str]  # what is no error, each with the file

    def local_domain(self, host: str, port: int) -> bytes:
        """The domain of logins made at a local address: that of its `listen-address`, or b""."""
        for address in self.listen_address:
            if address.domain and address.port == port and address.is_at(host):
                return os.fsencode(address.domain)
        return b""


class Secret:
    """A directive's value that is read from the file when it is needed, and kept nowhere."""

    __slots__ = ("_file", "_key")

    def __init__(self, file: str, key: str) -> None:
        self._file = file
        self._key = key

    def read(self) -> str:
        """The value as it stands in the file now. Raises OSError, and KeyError if it is gone.

        From here on it is in this process's memory.
        """
        with open(self._file, "rb") as file:
            content = os.fsdecode(file.read())
        return _Reader(content, self._file).lines[self._key][1]


def load(file: str) -> Config | list[str]:
    """Read a configuration file; returns the errors, each with file, line and key, if any."""
    try:
        content, is_exposed = content_without_secrets(file, _secrecy)
    except OSError as error:
        return [f"{file}: {error.strerror}"]
    except ValueError as error:
        return [f"{file}: {error}"]
    config = read(content, file)
    if not is_exposed:
        return config
    what = "holds a user name or password of the server's own, and every user can read it"
    exposed = f"{file}: {what}: chmod o-rwx {file}"
    return [exposed, *(config if isinstance(config, list) else ())]


def _secrecy(key: str) -> int:
    """Does the directive of some driver say that its value is secret? What no driver knows may be
    a misspelled one."""
    parts = key.split("-", 2)
    if len(parts) < 3 or parts[0] != "auth" or parts[2] == "enable" or key in DIRECTIVES:
        return OPEN
    from tpop3d.auth import drivers

    try:
        found = drivers.find(parts[1])
    except ValueError:
        return SECRET  # nobody can say, and the error is told later
    known = {} if found is None else found.directives
    if parts[2] in known:
        return SECRET if known[parts[2]].secret else OPEN
    return OPEN if parts[2] in getattr(found, "misspelled", ()) else DOUBTFUL


def read(content: str, file: str) -> Config | list[str]:
    """What `load` does, for the content of a file that is named `file` in errors."""
    reader = _Reader(content, file)
    config = Config()
    config.effective = reader.effective
    for key, value in reader.take(DIRECTIVES).items():
        setattr(config, key.replace("-", "_"), value)
    config.drivers = reader.take_drivers(config)
    reader.refuse_rest()
    if not reader.errors:
        reader.refuse_contradictions(config)
    if not reader.errors and config.auth_drivers:
        config.drivers = {name: config.drivers[name] for name in config.auth_drivers}
    config.warnings = reader.told(reader.warnings)
    return reader.told(reader.errors) or config


class _Reader:
    """A file that is being read: its lines, and what was found wrong with them so far."""

    def __init__(self, content: str, file: str) -> None:
        self._file = file
        self.lines: dict[str, tuple[int, str]] = {}  # key: line number and value
        self.errors: list[tuple[int, str, str]] = []  # line number or 0, key, what is wrong
        self.warnings: list[tuple[int, str, str]] = []
        self.effective: list[tuple[str, str, bool]] = []
        for number, line in logical_lines(content):
            self._add(number, line)

    def _add(self, number: int, line: str) -> None:
        octets = os.fsencode(line)
        key, after = read_key(octets, 0, len(octets))
        if not key or octets[after : after + 1] != b":":
            # No more of the line is quoted: it may be a password.
            self.errors.append((number, key, "must be 'key: value'"))
        elif line.endswith(INCOMPLETE):
            self.errors.append((number, key, "is continued, and nothing follows"))
        elif key in self.lines:
            self.errors.append((number, key, f"given before, in line {self.lines[key][0]}"))
        else:
            self.lines[key] = number, line.partition(":")[2].strip()

    def take(self, directives: Mapping[str, Directive], prefix: str = "") -> dict[str, Any]:
        """The value of each directive, out of the lines or its default; None without either."""
        values: dict[str, Any] = {}
        for name, directive in directives.items():
            key = prefix + name
            number, text = self.lines.pop(key, (0, directive.default))
            values[name] = None
            if text is None:
                continue
            if directive.secret:
                self.effective.append((key, MASK, number == 0))
                values[name] = Secret(self._file, key) if text else None
                continue
            self.effective.append((key, text, number == 0))
            try:
                values[name] = directive.parse(text)
            except ValueError as error:
                self.errors.append((number, key, str(error)))
        return values

    def take_drivers(self, config: Config) -> dict[str, Driver]:
        """The drivers that are enabled, in the order in which they are asked."""
        from tpop3d.auth import drivers

        mentioned = [key.split("-")[1] for key in self.lines if key.startswith("auth-")]
        enabled: dict[str, Driver] = {}
        for name in drivers.in_order(mentioned):
            prefix = f"auth-{name}-"
            number = self.lines.get(f"{prefix}enable", (0, ""))[0]
            try:
                found = drivers.find(name)
            except ValueError as error:
                self.errors.append((number, f"{prefix}enable", str(error)))
                for key in [key for key in self.lines if key.startswith(prefix)]:
                    del self.lines[key]
                continue
            if found is None:
                continue
            before = len(self.errors)
            self._respell(getattr(found, "misspelled", {}), prefix)
            settings = self.take({"enable": Directive(boolean, "no"), **found.directives}, prefix)
            if not settings.pop("enable") or len(self.errors) > before:
                continue
            settings["default-mailbox"] = config.mailbox
            try:
                enabled[name] = found(settings)
            except ValueError as error:
                self.errors.append((number, f"{prefix}enable", str(error)))
            except (Exception, SystemExit) as error:
                why = f"the driver does not start: {logs.describe(error)}"
                self.errors.append((number, f"{prefix}enable", why))
            else:
                told = getattr(enabled[name], "warnings", ())
                self.warnings += [(number, f"{prefix}enable", why) for why in told]
        return enabled

    def _respell(self, misspelled: Mapping[str, str], prefix: str) -> None:
        """Take directives by the names that they had, with a warning."""
        for wrong, right in misspelled.items():
            if (prefix + wrong) not in self.lines:
                continue
            number, text = self.lines.pop(prefix + wrong)
            if (prefix + right) in self.lines:
                self.errors.append((number, prefix + wrong, f"is {prefix + right}, given as well"))
                continue
            self.lines[prefix + right] = number, text
            self.warnings.append((number, prefix + wrong, f"is taken for {prefix + right}"))

    def refuse_rest(self) -> None:
        """Whatever nobody took is unknown."""
        from tpop3d.auth import drivers

        for key, (number, _) in self.lines.items():
            why = "unknown directive"
            parts = key.split("-")
            if parts[0] == "auth" and len(parts) > 2 and drivers.find(parts[1]) is None:
                known = ", ".join(drivers.BUILT_IN)
                why += f": there is no driver {parts[1]!r}; built in are {known}"
            self.errors.append((number, key, why))

    def refuse_contradictions(self, config: Config) -> None:
        """What is wrong with values that are right one by one."""
        if not config.drivers:
            from tpop3d.auth import drivers

            enable = " or ".join(f"auth-{name}-enable: yes" for name in drivers.BUILT_IN)
            self.errors.append((0, "auth-...-enable", f"nobody could log in; give {enable}"))
            return
        for name in config.auth_drivers:
            if name not in config.drivers:
                why = f"{name} is not enabled; give auth-{name}-enable: yes"
                self.errors.append((0, "auth-drivers", why))
        for name in config.drivers if config.auth_drivers else ():
            if name not in config.auth_drivers:
                why = f"{name} is enabled, and has no place in it"
                self.errors.append((0, "auth-drivers", why))
        if config.apop_only and not any(one.checks_apop for one in config.drivers.values()):
            why = "nobody could log in: no enabled driver can check APOP"
            self.errors.append((0, "apop-only", why))

    def told(self, found: list[tuple[int, str, str]]) -> list[str]:
        """Errors or warnings for people, in the order of the file."""
        return [
            f"{self._file}:{number}: {key}: {why}" if number else f"{self._file}: {key}: {why}"
            for number, key, why in sorted(found)
        ]
