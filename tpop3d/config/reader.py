"""Reading a configuration: lines become the values of directives, and errors with their places."""

from __future__ import annotations

import os

from tpop3d.config.addresses import IMMEDIATE, NONE, PLAIN
from tpop3d.config.directive import Directive, Passing, Unanswered, boolean
from tpop3d.config.file import INCOMPLETE, logical_lines, read_key
from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tpop3d.auth.driver import Driver
    from tpop3d.config.addresses import Tls
    from tpop3d.config.file import Oddity
    from tpop3d.settings import Config

LIKENESS = 0.75  # of 1, between an unknown directive and the one that was meant
LIKENESS_OF_DRIVERS = 0.6  # the same of their names, which are short
MASK = "********"  # what is shown for a secret


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
        return Reader(content, self._file).lines[self._key][1]


class Reader:
    """A file that is being read: its lines, and what was found wrong with them so far."""

    def __init__(self, content: str, file: str) -> None:
        self._file = file
        self.lines: dict[str, tuple[int, str]] = {}  # key: line number and value, until taken
        self.numbers: dict[str, int] = {}  # key: line number, for good
        self.errors: list[tuple[int, str, str]] = []  # line number or 0, key, what is wrong
        self.warnings: list[tuple[int, str, str]] = []
        self.effective: list[tuple[str, str, bool]] = []
        # Lines that may be the value of the one before, which seems to lack it, and so a secret.
        self._doubtful: set[int] = set()
        is_open = False
        for number, line in logical_lines(content):
            if is_open:
                self._doubtful.add(number)
            is_open = self._add(number, line)

    def _add(self, number: int, line: str) -> bool:
        """Take a line. Does it lack its value, or seem to go on in the next?"""
        octets = os.fsencode(line)
        key, after = read_key(octets, 0, len(octets))
        value = line.partition(":")[2].strip()
        if not key or octets[after : after + 1] != b":":
            # Nothing of the line is quoted but a directive: it may be a password.
            self.errors.append((number, key if _is_known(key) else "", "must be 'key: value'"))
            return True
        if line.endswith(INCOMPLETE):
            self.errors.append((number, key, "is continued, and nothing follows"))
        elif key in self.lines:
            before = self.lines[key][0]
            shown = key if self._doubtful.isdisjoint((before, number)) or _is_known(key) else ""
            self.errors.append((number, shown, f"given before, in line {before}"))
        else:
            self.lines[key] = number, value
            self.numbers[key] = number
        return not value or value.endswith("\\")

    def warn_of_secrets(self, oddities: list[Oddity]) -> None:
        """Warn of secrets that may be meant otherwise, and name the directive that takes any."""
        for number, key, why in oddities:
            file = f"{key}-file"
            self.warnings.append(
                (number, key, f"{why}; {file} takes any" if _is_known(file) else why)
            )

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
            try:
                values[name] = directive.parse(text)
            except ValueError as error:
                from tpop3d.config import legacy

                meaning = legacy.meaning(key, text)
                if isinstance(error, Unanswered):
                    self.errors.append((number, key, Passing(error)))
                elif meaning is None:
                    self.errors.append((number, key, str(error)))
                    if directive.default is not None:
                        values[name] = directive.parse(directive.default)
                else:
                    text, why = meaning
                    values[name] = directive.parse(text)
                    self.warnings.append((number, key, why))
            self.effective.append((key, text, number == 0))
        return values

    def take_drivers(self, config: Config) -> dict[str, Driver]:
        """The drivers that are enabled, in the order in which they are asked."""
        from tpop3d.auth import registry

        mentioned = [key.split("-")[1] for key in self.lines if key.startswith("auth-")]
        enabled: dict[str, Driver] = {}
        for name in registry.in_order(mentioned):
            prefix = f"auth-{name}-"
            number = self.lines.get(f"{prefix}enable", (0, ""))[0]
            try:
                found = registry.find(name)
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
                self.errors.append(self._placed(str(error), f"{prefix}enable"))
            except (Exception, SystemExit) as error:
                why = f"the driver does not start: {logs.describe(error)}"
                self.errors.append((number, f"{prefix}enable", why))
            else:
                told = getattr(enabled[name], "warnings", ())
                self.warnings += [self._placed(why, f"{prefix}enable") for why in told]
        return enabled

    def _placed(self, why: str, otherwise: str) -> tuple[int, str, str]:
        """What a driver says, at the directive that it begins with, if it is in the file."""
        key, colon, rest = why.partition(": ")
        if colon and key in self.numbers:
            return self.numbers[key], key, rest
        return self.numbers.get(otherwise, 0), otherwise, why

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
        """Whatever nobody took is unknown, or was the C program's."""
        if not self.lines:
            return
        from tpop3d.auth import registry
        from tpop3d.config import legacy

        for key, (number, _) in self.lines.items():
            parts = key.split("-")
            is_drivers = parts[0] == "auth" and len(parts) > 2
            has_driver = is_drivers and registry.find(parts[1]) is not None
            fate = legacy.fate(key, self.lines, has_driver=has_driver)
            if fate is not None:
                is_error, why = fate
                (self.errors if is_error else self.warnings).append((number, key, why))
                continue
            if number in self._doubtful:
                why = "unknown directive, which is not shown: the line before lacks its value"
                self.errors.append((number, "", why))
                continue
            why = "unknown directive"
            if is_drivers and not has_driver:
                known = ", ".join(registry.BUILT_IN)
                why += f": there is no driver {parts[1]!r}; built in are {known}"
                if driver := _like(parts[1], list(registry.BUILT_IN), LIKENESS_OF_DRIVERS):
                    why += f"; did you mean {driver}?"
            elif meant := _meant(key):
                why += f"; did you mean {meant}?"
            self.errors.append((number, key, why))

    def settle_tls(self, config: Config) -> None:
        """Give every address its TLS; what lacks a certificate is an error."""
        if any(key == "listen-address" or key.startswith("tls-") for _, key, _ in self.errors):
            return
        given = self.numbers
        certificates, keys = config.tls_certificate, config.tls_private_key
        if keys and len(keys) != len(certificates):
            number = given["tls-private-key"]
            why = f"names {len(keys)} files, and tls-certificate {len(certificates)}"
            self.errors.append((number, "tls-private-key", why))
            return
        missing = "there is no tls-certificate"
        if config.tls_mode == IMMEDIATE and not certificates and not config.listen_address:
            self.errors.append((given["tls-mode"], "tls-mode", missing))
            return
        places: dict[tuple[str, int, str], Tls] = {}
        for address in config.listen_address:
            address.settle(config.tls)
            first = places.setdefault(address.place, address.tls or PLAIN)
            if address.tls is not None and not address.tls.is_like(first):
                why = f"{address.host}:{address.port} is there twice, with different TLS"
                self.errors.append((given["listen-address"], "listen-address", why))
            assert address.tls is not None
            if address.tls.mode != NONE and not address.tls.pairs:
                why = f"{address.host} has no certificate, and {missing}"
                self.errors.append((given["listen-address"], "listen-address", why))

    def refuse_contradictions(self, config: Config) -> None:
        """What is wrong with values that are right one by one."""
        if not config.drivers:
            from tpop3d.auth import registry

            enable = " or ".join(f"auth-{name}-enable: yes" for name in registry.BUILT_IN)
            self.errors.append((0, "auth-...-enable", f"nobody could log in; give {enable}"))
            return
        if config.mailspool_no_dotfile_locking and config.mailspool_dotfile_locking == "require":
            why = "is yes, and mailspool-dotfile-locking: require says the contrary"
            number = self.numbers.get("mailspool-no-dotfile-locking", 0)
            self.errors.append((number, "mailspool-no-dotfile-locking", why))
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
        elif config.apop_only and config.apop == "no":
            why = "is no, and apop-only: yes says the contrary"
            self.errors.append((self.numbers.get("apop", 0), "apop", why))

    def told(self, found: list[tuple[int, str, str]]) -> list[str]:
        """Errors or warnings for people, in the order of the file; a key of "" is not shown."""
        lines = []
        for number, key, why in sorted(found):
            place = f"{self._file}:{number}" if number else self._file
            line = f"{place}: {key}: {why}" if key else f"{place}: {why}"
            lines.append(Passing(line) if isinstance(why, Passing) else line)
        return lines


def _is_known(key: str) -> bool:
    """Is this a directive, of the server or of a driver?"""
    from tpop3d.settings import DIRECTIVES

    if key in DIRECTIVES:
        return True
    parts = key.split("-", 2)
    if len(parts) < 3 or parts[0] != "auth":
        return False
    from tpop3d.auth import registry

    try:
        found = registry.find(parts[1])
    except ValueError:
        return False
    return found is not None and (parts[2] == "enable" or parts[2] in found.directives)


def _meant(key: str) -> str:
    """The directive that looks most like an unknown one, or ""."""
    from tpop3d.auth import registry
    from tpop3d.settings import DIRECTIVES

    known = list(DIRECTIVES)
    for name in registry.BUILT_IN:
        try:
            found = registry.find(name)
        except ValueError:
            continue  # what it needs is not installed
        if found is not None:
            known += [f"auth-{name}-{one}" for one in ("enable", *found.directives)]
    return _like(key.lower().replace("_", "-"), known, LIKENESS)


def _like(word: str, known: list[str], likeness: float) -> str:
    """Which of the known words is most like this one, if any is like enough, or ""."""
    from difflib import get_close_matches

    return "".join(get_close_matches(word, known, 1, likeness))
