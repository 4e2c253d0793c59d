"""Read the configuration file, and check what concerns several directives.

This module finds the drivers, checks what belongs together, and refuses what nobody knows. It
collects every error, with file, line and key, and raises them together as `WrongConfiguration`:
nothing is served with half a configuration.
"""

from __future__ import annotations

from tpop3d.config.addresses import IMMEDIATE, NONE, PLAIN
from tpop3d.config.directive import Directive, Passing, boolean
from tpop3d.config.reader import DOUBTFUL, OPEN, SECRET, Reader, content_without_secrets
from tpop3d.settings import DIRECTIVES, Config
from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.auth.driver import Driver
    from tpop3d.config.addresses import Tls
    from tpop3d.config.reader import Oddity

LIKENESS = 0.75  # of 1, from which on a known directive is taken for what was meant
LIKENESS_OF_DRIVERS = 0.6  # the same for the names of drivers, which are short


class WrongConfiguration(Exception):
    """The configuration has errors.

    `problems` are all of them, each with file, line and key; `warnings` are not errors. `rest` is
    the configuration with defaults in place of what is wrong, or None if the file was not read.
    """

    def __init__(
        self, problems: list[str], warnings: list[str] | None = None, rest: Config | None = None
    ) -> None:
        super().__init__(*problems)
        self.problems = problems
        self.warnings = warnings or []
        self.rest = rest

    @property
    def may_pass(self) -> bool:
        """Could the same file be right in a moment, without anybody changing it?"""
        return all(isinstance(problem, Passing) for problem in self.problems)


def load(file: str) -> Config:
    """Read a configuration file. Raises `WrongConfiguration`."""
    try:
        content, is_exposed, oddities = content_without_secrets(file, _secrecy)
    except OSError as error:
        from tpop3d.system import reasons

        raise WrongConfiguration([f"{file}: {reasons.why(error)}"]) from None
    except ValueError as error:
        raise WrongConfiguration([f"{file}: {error}"]) from None
    if not is_exposed:
        return read(content, file, oddities)
    what = "holds a user name or password of the server's own, and every user can read it"
    exposed = f"{file}: {what}: chmod o-rwx {file}"
    try:
        config = read(content, file, oddities)
    except WrongConfiguration as error:
        raise WrongConfiguration([exposed, *error.problems], error.warnings, error.rest) from None
    raise WrongConfiguration([exposed], config.warnings, config)


def _secrecy(key: str) -> int:
    """Is the value of this key secret? A key that no driver knows may be a misspelled one."""
    parts = key.split("-", 2)
    if len(parts) < 3 or parts[0] != "auth" or parts[2] == "enable" or key in DIRECTIVES:
        return OPEN
    from tpop3d.auth import registry

    try:
        found = registry.find(parts[1])
    except ValueError:
        return SECRET  # nobody can say, and the error is told later
    known = {} if found is None else found.directives
    if parts[2] in known:
        return SECRET if known[parts[2]].secret else OPEN
    return OPEN if parts[2] in getattr(found, "misspelled", ()) else DOUBTFUL


def read(content: str, file: str, oddities: list[Oddity] | None = None) -> Config:
    """Read the content of a file, which errors name `file`. Raises `WrongConfiguration`."""
    reader = Reader(content, file, _is_known)
    reader.warn_of_secrets(oddities or [])
    config = Config()
    config.effective = reader.effective
    config.lines = reader.numbers
    for key, value in reader.values_of(DIRECTIVES).items():
        setattr(config, key.replace("-", "_"), value)
    config.drivers = _enabled_drivers(reader, config)
    _refuse_rest(reader)
    _settle_tls(reader, config)
    if not reader.errors:
        _refuse_contradictions(reader, config)
    if not reader.errors and config.auth_drivers:
        config.drivers = {name: config.drivers[name] for name in config.auth_drivers}
    config.warnings = reader.told(reader.warnings)
    if problems := reader.told(reader.errors):
        raise WrongConfiguration(problems, config.warnings, config)
    return config


def _enabled_drivers(reader: Reader, config: Config) -> dict[str, Driver]:
    """Make the enabled drivers; returns them in the order in which they are asked."""
    from tpop3d.auth import registry

    mentioned = [key.split("-")[1] for key in reader.lines if key.startswith("auth-")]
    enabled: dict[str, Driver] = {}
    for name in registry.in_order(mentioned):
        prefix = f"auth-{name}-"
        number = reader.lines.get(f"{prefix}enable", (0, ""))[0]
        try:
            found = registry.find(name)
        except ValueError as error:
            reader.errors.append((number, f"{prefix}enable", str(error)))
            for key in [key for key in reader.lines if key.startswith(prefix)]:
                del reader.lines[key]
            continue
        if found is None:
            continue
        before = len(reader.errors)
        reader.respell(getattr(found, "misspelled", {}), prefix)
        settings = reader.values_of(
            {"enable": Directive(boolean, "no"), **found.directives}, prefix
        )
        if not settings.pop("enable") or len(reader.errors) > before:
            continue
        settings["default-mailbox"] = config.mailbox
        try:
            enabled[name] = found(settings)
        except ValueError as error:
            reader.errors.append(reader.placed(str(error), f"{prefix}enable"))
        except (Exception, SystemExit) as error:
            why = f"the driver does not start: {logs.describe(error)}"
            reader.errors.append((number, f"{prefix}enable", why))
        else:
            told = getattr(enabled[name], "warnings", ())
            reader.warnings += [reader.placed(why, f"{prefix}enable") for why in told]
    return enabled


def _refuse_rest(reader: Reader) -> None:
    """Refuse each line that nobody took: it is unknown, or a directive of the C program."""
    if not reader.lines:
        return
    from tpop3d.auth import registry
    from tpop3d.config import legacy

    for key, (number, _) in reader.lines.items():
        parts = key.split("-")
        is_drivers = parts[0] == "auth" and len(parts) > 2
        has_driver = is_drivers and registry.find(parts[1]) is not None
        fate = legacy.fate(key, reader.lines, has_driver=has_driver)
        if fate is not None:
            is_error, why = fate
            (reader.errors if is_error else reader.warnings).append((number, key, why))
            continue
        if number in reader.doubtful:
            why = "unknown directive, which is not shown: the line before lacks its value"
            reader.errors.append((number, "", why))
            continue
        why = "unknown directive"
        if is_drivers and not has_driver:
            known = ", ".join(registry.BUILT_IN)
            why += f": there is no driver {parts[1]!r}; built in are {known}"
            if driver := _like(parts[1], list(registry.BUILT_IN), LIKENESS_OF_DRIVERS):
                why += f"; did you mean {driver}?"
        elif meant := _meant(key):
            why += f"; did you mean {meant}?"
        reader.errors.append((number, key, why))


def _settle_tls(reader: Reader, config: Config) -> None:
    """Give every address its TLS; it is an error if one lacks a certificate."""
    if any(key == "listen-address" or key.startswith("tls-") for _, key, _ in reader.errors):
        return
    given = reader.numbers
    certificates, keys = config.tls_certificate, config.tls_private_key
    if keys and len(keys) != len(certificates):
        number = given["tls-private-key"]
        why = f"names {len(keys)} files, and tls-certificate {len(certificates)}"
        reader.errors.append((number, "tls-private-key", why))
        return
    missing = "there is no tls-certificate"
    if config.tls_mode == IMMEDIATE and not certificates and not config.listen_address:
        reader.errors.append((given["tls-mode"], "tls-mode", missing))
        return
    places: dict[tuple[str, int, str], Tls] = {}
    for address in config.listen_address:
        address.settle(config.tls)
        first = places.setdefault(address.place, address.tls or PLAIN)
        if address.tls is not None and not address.tls.is_like(first):
            why = f"{address.host}:{address.port} is there twice, with different TLS"
            reader.errors.append((given["listen-address"], "listen-address", why))
        assert address.tls is not None
        if address.tls.mode != NONE and not address.tls.pairs:
            why = f"{address.host} has no certificate, and {missing}"
            reader.errors.append((given["listen-address"], "listen-address", why))


def _refuse_contradictions(reader: Reader, config: Config) -> None:
    """Refuse values that are right one by one, and contradict each other."""
    if not config.drivers:
        from tpop3d.auth import registry

        enable = " or ".join(f"auth-{name}-enable: yes" for name in registry.BUILT_IN)
        reader.errors.append((0, "auth-...-enable", f"nobody could log in; give {enable}"))
        return
    if config.mailspool_no_dotfile_locking and config.mailspool_dotfile_locking == "require":
        why = "is yes, and mailspool-dotfile-locking: require says the contrary"
        number = reader.numbers.get("mailspool-no-dotfile-locking", 0)
        reader.errors.append((number, "mailspool-no-dotfile-locking", why))
    for name in config.auth_drivers:
        if name not in config.drivers:
            why = f"{name} is not enabled; give auth-{name}-enable: yes"
            reader.errors.append((0, "auth-drivers", why))
    for name in config.drivers if config.auth_drivers else ():
        if name not in config.auth_drivers:
            why = f"{name} is enabled, and has no place in it"
            reader.errors.append((0, "auth-drivers", why))
    if config.apop_only and not any(one.checks_apop for one in config.drivers.values()):
        why = "nobody could log in: no enabled driver can check APOP"
        reader.errors.append((0, "apop-only", why))
    elif config.apop_only and config.apop == "no":
        why = "is no, and apop-only: yes says the contrary"
        reader.errors.append((reader.numbers.get("apop", 0), "apop", why))


def _is_known(key: str) -> bool:
    """Is this a directive of the server or of a driver?"""
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
    """Return the directive that is most like an unknown one, or ""."""
    from tpop3d.auth import registry

    known = list(DIRECTIVES)
    for name in registry.BUILT_IN:
        try:
            found = registry.find(name)
        except ValueError:
            continue  # it needs a package that is not installed
        if found is not None:
            known += [f"auth-{name}-{one}" for one in ("enable", *found.directives)]
    return _like(key.lower().replace("_", "-"), known, LIKENESS)


def _like(word: str, known: list[str], likeness: float) -> str:
    """Return the known word that is most like this one, or "" if none is like enough."""
    from difflib import get_close_matches

    return "".join(get_close_matches(word, known, 1, likeness))
