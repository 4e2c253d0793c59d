"""`tpop3d --check-config`: print the configuration in effect, or all that is wrong with it."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

from tpop3d.commands.unit_sandbox import Sandboxes
from tpop3d.config.addresses import Unresolved, located
from tpop3d.config.directive import absolute_path
from tpop3d.config.templates import Mailbox, Template
from tpop3d.configuration import WrongConfiguration, load
from tpop3d.privsep.sandbox import gatekeeper_user, refuse_lacking_root, refuse_unsafe_state
from tpop3d.system import logs
from tpop3d.system.outlets import Syslog
from tpop3d.system.reasons import HOMES
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.settings import Config


def check_config(file: str) -> int:
    """Print the configuration in effect, as a configuration file with masked secrets; returns 0.

    If there are errors, print each on stderr, with file, line and key, and return 2. Warnings
    follow on stderr.
    """
    config: Config | None
    errors: list[str] = []
    problems: list[str] = []
    try:
        config = load(file)
        warnings = config.warnings
    except WrongConfiguration as wrong:
        config, errors, warnings = wrong.rest, wrong.problems, wrong.warnings
    if config is not None:
        problems, warnings = _look(config, file, errors)
    for line in (*errors, *problems, *(f"warning: {warning}" for warning in warnings)):
        _print(line, sys.stderr.fileno())
    if config is None or errors or problems:
        return 2
    _print(f"# {file}: no errors. In effect:", sys.stdout.fileno())
    for key, value, is_default in config.effective:
        line = f"{key}: {value}".rstrip()
        if is_default:
            line += "    # default"
        elif line.endswith("\\"):
            line += " #"  # or the next line would continue it
        _print(line, sys.stdout.fileno())
    return 0


def _look(config: Config, file: str, errors: list[str]) -> tuple[list[str], list[str]]:
    """Check what reading the file does not show; returns further problems, and all warnings.

    `errors` are known already: what they are about is not checked.
    """
    problems, warnings = [], list(config.warnings)
    sandboxes = Sandboxes()
    wrong = [error.removeprefix(f"{file}:").partition(": ")[2] for error in errors]
    if os.geteuid() == 0:
        found = gatekeeper_user(config), refuse_unsafe_state(config)
        problems += [one.reason for one in found if isinstance(one, Refusal)]
        lacks = refuse_lacking_root()
        warnings += [lacks.reason] if lacks is not None else []
    if not any(one.startswith("listen-address: ") for one in wrong):
        _check_addresses(config, warnings)
        if not any(one.startswith("tls-") for one in wrong):
            _check_tls(config, problems, warnings)
    _check_drivers(config, problems, warnings)
    if not any(one.startswith("mailbox: ") for one in wrong):
        _check_mailboxes(config, warnings)
        _check_units(config, file, sandboxes, warnings)
    warnings += in_sandboxes(config, file, sandboxes)
    if not config.log_stderr and (why := logs.no_syslogd(Syslog())):
        warnings.append(f"log-stderr: {why}")
    # A driver warns of a missing file when it is made, and its check calls that an error.
    wrong_files = [one.split(": ")[:2] for one in problems]
    warnings = [
        one
        for one in warnings
        if not any(all(word in one for word in words) for words in wrong_files)
    ]
    # Several addresses may have the same certificate.
    return [_placed(one, config, file) for one in dict.fromkeys(problems)], [
        _placed(one, config, file) for one in dict.fromkeys(warnings)
    ]


def _placed(what: str, config: Config, file: str) -> str:
    """Put file and line before a message that begins with a directive."""
    key, colon, _ = what.partition(": ")
    if not colon or key not in (one for one, _, _ in config.effective):
        return what
    number = config.lines.get(key)
    return f"{file}:{number}: {what}" if number else f"{file}: {what}"


def _check_addresses(config: Config, warnings: list[str]) -> None:
    """Look up host names, and check that append-domain has a domain to append."""
    for address in config.listen_address:
        try:
            address.look_up()
        except Unresolved as error:
            warnings.append(str(error))
            continue
        if not address.numeric:
            warnings.append(f"listen-address: {address.host}: no address is known for this host")
    if config.append_domain and not any(address.domain for address in config.listen_address):
        warnings.append("append-domain: is yes, and listen-address has no domain that could be")


def _check_tls(config: Config, problems: list[str], warnings: list[str]) -> None:
    """Try every certificate and key as a server would."""
    served = [config.tls, *(address.tls for address in config.listen_address if address.tls)]
    identities = dict.fromkeys(one.pairs for one in served if one.pairs)
    if not identities:
        if config.plaintext_logins != "yes":
            who = "only clients on this host" if config.takes_plaintext("unix") else "nobody"
            why = f"plaintext-logins is {config.plaintext_logins} and there is no tls-certificate"
            warnings.append(f"{who} can log in: {why}")
        return
    from tpop3d.tls import certificates, chains

    settings = config.tls_min_version, config.tls_ciphers
    found: list[str] = []
    for pairs in identities:
        try:
            found += certificates.serving(pairs, *settings, tickets=True, look=True).warnings
            for pair in pairs:
                found += chains.doubts(pair, *settings)
        except certificates.CertificateNotGiven as error:
            warnings.append(_of_pair(error.pair, f"{error}; it cannot be checked here", config))
        except certificates.UnusableCertificate as error:
            problems.append(_of_pair(error.pair, str(error), config))
    mine = tuple(f"{file}: " for file in config.tls_certificate)
    for what in dict.fromkeys(found):
        key = "tls-certificate" if what.startswith(mine) else "listen-address"
        warnings.append(what if what.startswith("tls-") else f"{key}: {what}")


def _of_pair(pair: tuple[str, str] | None, what: str, config: Config) -> str:
    """Put before a message about a certificate or a key the directive that names it."""
    if what.startswith("tls-"):
        return what
    if pair not in config.tls.pairs:
        return f"listen-address: {what}"
    names = [pair[1]]
    with suppress(ValueError):
        names.append(located(pair[1]))
    is_key = config.tls_private_key and what.startswith(tuple(f"{name}: " for name in names))
    return f"{'tls-private-key' if is_key else 'tls-certificate'}: {what}"


def _check_drivers(config: Config, problems: list[str], warnings: list[str]) -> None:
    """Let each driver check the files that it will need."""
    for name, driver in config.drivers.items():
        look: Callable[[], tuple[list[str], list[str]]] | None = getattr(driver, "check", None)
        try:
            wrong, doubtful = ([], []) if look is None else look()
        except (Exception, SystemExit) as error:
            wrong, doubtful = [f"auth-{name}-enable: the check fails: {logs.describe(error)}"], []
        problems += wrong
        warnings += doubtful


def _check_mailboxes(config: Config, warnings: list[str]) -> None:
    """Check that each user has a mailbox of his own, and that the directories are there which show
    that a file system is mounted."""
    for key, templates in _templates(config).items():
        for template in templates.templates:
            if why := _shared(template):
                warnings.append(f"{key}: {template}: {why}")
            directory = template.required({})
            if directory == "/":
                continue  # a template that begins with $(home): no user is known here
            try:
                if stat.S_ISDIR(os.stat(directory).st_mode):
                    continue
                why = "not a directory"
            except OSError as error:
                why = error.strerror or "it cannot be looked at"
                if isinstance(error, FileNotFoundError):
                    why += "; is the file system mounted?"
            warnings.append(f"{key}: {template}: {directory}: {why}")


def _shared(template: Template) -> str:
    """Say why several users would have the same mailbox; "" if none would."""
    whole = [name for _, name, index in template.parts if name and index is None]
    if len(template.parts) == 1:
        return "has no variable such as $(user): all users would have this one mailbox"
    if not whole or whole == ["domain"] * len(whole):
        return "does not tell users apart: there is neither $(user) nor $(local_part)"
    return ""


def _check_units(config: Config, file: str, sandboxes: Sandboxes, warnings: list[str]) -> None:
    """Check that our units may write where the mailboxes are."""
    for key, mailbox in _templates(config).items():
        for template in mailbox.templates:
            for line in sandboxes.forbid(_place_of(template), is_written=True):
                warnings.append(f"{_where(config, file, key)}: {template}: {line}")


def in_sandboxes(config: Config, file: str, sandboxes: Sandboxes) -> list[str]:
    """Return a line for each thing that our units forbid; mailboxes are left out."""
    found = sandboxes.lack()
    templates = _templates(config)
    for key, value, _ in config.effective:
        if key in templates or key.endswith("mailbox"):
            continue
        is_written = key == "state-directory"
        for path in _paths(value):
            lines = sandboxes.forbid(path, is_written)
            found += [f"{_where(config, file, key)}: {line}" for line in lines]
    return list(dict.fromkeys(found))


def _place_of(template: Template) -> str:
    """Return the directory that the mailboxes of a template have in common."""
    is_home = template.parts[0][:2] == ("", "home")
    return HOMES[0] if is_home else template.required({})


def _paths(value: str) -> list[str]:
    """Return the paths in the value of a directive, among them the files for TLS in an address.

    A path with a variable counts up to the directory before that.
    """
    words = value.replace(";", " ").replace(",", " ").split()
    paths = [word.partition("$(") for word in words if word.startswith("/")]
    return [os.path.dirname(path) if variable else path for path, variable, _ in paths]


def _where(config: Config, file: str, key: str) -> str:
    number = config.lines.get(key)
    return f"{file}:{number}: {key}" if number else f"{file}: {key}"


def _templates(config: Config) -> dict[str, Mailbox]:
    """Return the templates in use, by their directives."""
    values = {key: value for key, value, _ in config.effective}
    used: dict[str, Mailbox] = {}
    wants_default = "mailbox" in config.lines
    for name, driver in config.drivers.items():
        prefix = f"auth-{name}-"
        own = [one for one in driver.directives if driver.directives[one].parse is Mailbox]
        given = {f"{prefix}{one}": values.get(f"{prefix}{one}") for one in own}
        used |= {key: Mailbox(text) for key, text in given.items() if text}
        if directory := values.get(f"{prefix}mailspool-dir"):
            used[f"{prefix}mailspool-dir"] = Mailbox(f"{absolute_path(directory)}/$(user)")
        elif not any(given.values()):
            wants_default = wants_default or bool(own)
    return {"mailbox": config.mailbox, **used} if wants_default else used


def _print(line: str, fd: int) -> None:
    """Print a line, which may hold octets of the file that are not text."""
    os.write(fd, os.fsencode(line) + b"\n")
