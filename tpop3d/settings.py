"""The settings of this server: its directives, and the configuration that their values make."""

from __future__ import annotations

import os

from tpop3d.config.addresses import MODES, PLAIN, STLS, Tls, addresses, files_of_tls, is_local
from tpop3d.config.directive import (
    Directive,
    absolute_path,
    boolean,
    from_zero,
    mailbox,
    memory,
    names,
    networks,
    one_of,
    per_source,
    positive,
    separators,
)
from tpop3d.system import logs
from tpop3d.system.outlets import Stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.auth.driver import Driver
    from tpop3d.config.addresses import Address
    from tpop3d.config.networks import Networks
    from tpop3d.config.templates import Mailbox


DIRECTIVES: dict[str, Directive] = {
    "listen-address": Directive(addresses, ""),
    "proxy-protocol-from": Directive(networks, ""),
    "max-children": Directive(positive, "16"),
    "max-children-per-source": Directive(per_source, "half"),
    "gatekeeper-user": Directive(str, "tpop3d"),
    "gatekeeper-connections": Directive(positive, "100"),
    "shutdown-seconds": Directive(positive, "10"),
    "login-seconds": Directive(positive, "60"),
    "timeout-seconds": Directive(positive, "600"),
    "lock-timeout-seconds": Directive(positive, "10"),
    "session-memory": Directive(memory, "512M"),
    "auth-failure-delay-seconds": Directive(from_zero, "3"),
    "auth-timeout-seconds": Directive(positive, "30"),
    "auth-drivers": Directive(names, ""),
    "append-domain": Directive(boolean, "no"),
    "strip-domain": Directive(boolean, "no"),
    "domain-separators": Directive(separators, "@%!:"),
    "lowercase-user": Directive(boolean, "no"),
    "plaintext-logins": Directive(one_of("yes", "no", "local"), "local"),
    "apop": Directive(one_of("yes", "no", "auto"), "auto"),
    "apop-only": Directive(boolean, "no"),
    "permit-empty-password": Directive(boolean, "no"),
    "tls-mode": Directive(one_of(*MODES), STLS),
    "tls-certificate": Directive(files_of_tls, ""),
    "tls-private-key": Directive(files_of_tls, ""),
    "tls-min-version": Directive(one_of("1.2", "1.3"), "1.2"),
    # Forward secrecy and authenticated encryption. All ciphers of TLS 1.3 have both.
    "tls-ciphers": Directive(str, "ECDHE+AESGCM:ECDHE+CHACHA20"),
    "mailbox": Directive(mailbox, "bsd:/var/mail/$(user)"),
    "mailspool-no-dotfile-locking": Directive(boolean, "no"),
    "mailspool-dotfile-locking": Directive(one_of("try", "require", "no"), "try"),
    "mailspool-flock": Directive(boolean, "yes"),
    "mailspool-index": Directive(boolean, "yes"),
    "uidl-style": Directive(one_of("tpop3d", "popa3d", "dovecot", "x-uidl"), "tpop3d"),
    "no-commit-on-early-close": Directive(boolean, "no"),
    "state-directory": Directive(absolute_path, "/var/lib/tpop3d"),
    "log-facility": Directive(one_of(*logs.FACILITIES), "mail"),
    "log-level": Directive(one_of(*logs.LEVELS), "info"),
    "log-stderr": Directive(boolean, "no"),
}


class Config:
    """The values of all directives: `timeout-seconds` is `timeout_seconds`. It holds no secret."""

    listen_address: list[Address]
    proxy_protocol_from: Networks | None
    max_children: int
    max_children_per_source: int | None  # None: half of max_children, rounded up
    gatekeeper_user: str
    gatekeeper_connections: int
    shutdown_seconds: int
    login_seconds: int
    timeout_seconds: int
    lock_timeout_seconds: int
    session_memory: int  # octets
    auth_failure_delay_seconds: int
    auth_timeout_seconds: int
    auth_drivers: list[str]  # in the order in which they are asked; empty: in that of BUILT_IN
    append_domain: bool
    strip_domain: bool
    domain_separators: str
    lowercase_user: bool
    plaintext_logins: str
    apop: str
    apop_only: bool
    permit_empty_password: bool
    tls_mode: str
    tls_certificate: list[str]
    tls_private_key: list[str]
    tls_min_version: str
    tls_ciphers: str
    mailbox: Mailbox
    mailspool_no_dotfile_locking: bool
    mailspool_dotfile_locking: str
    mailspool_flock: bool
    mailspool_index: bool
    uidl_style: str
    no_commit_on_early_close: bool
    state_directory: str
    log_facility: str
    log_level: str
    log_stderr: bool
    drivers: dict[str, Driver]  # the enabled ones by name, in the order in which they are asked
    effective: list[tuple[str, str, bool]]  # key, value as text, is it the default?
    lines: dict[str, int]  # the number of each directive's line in the file
    warnings: list[str]  # each with the file

    @property
    def tls(self) -> Tls:
        """The TLS of a door, and of each address that has none of its own."""
        certificates = self.tls_certificate
        if not certificates:
            return PLAIN if self.tls_mode == STLS else Tls(self.tls_mode)
        keys = self.tls_private_key or certificates
        return Tls(self.tls_mode, tuple(zip(certificates, keys, strict=False)))

    @property
    def dotlocks(self) -> str:
        """Should sessions make dotlocks: try, require or no?"""
        return "no" if self.mailspool_no_dotfile_locking else self.mailspool_dotfile_locking

    def takes_plaintext(self, client: str) -> bool:
        """May a client log in without TLS?"""
        if self.plaintext_logins == "local":
            return is_local(client)
        return self.plaintext_logins == "yes"

    def local_domain(self, host: str, port: int) -> bytes:
        """Return the domain of logins made at a local address, which its `listen-address` names, or
        b"".

        Raises `addresses.Unresolved` if a host name cannot be looked up.
        """
        for address in self.listen_address:
            if address.domain and address.is_port(port) and address.is_at(host):
                return os.fsencode(address.domain)
        return b""


def open_log(config: Config, verbose: bool, stderr_is_free: bool) -> None:
    """Send the log where the configuration says, but not to a stderr that is the client's."""
    level = level_of(config, verbose)
    logs.open_log(config.log_facility, level, config.log_stderr and stderr_is_free)
    if stderr_is_free:
        tell_of_no_log()


def tell_of_no_log() -> None:
    """Say on stderr if there is no log. After a reload nobody may read stderr any more."""
    if why := logs.trouble():
        Stderr().write(logs.LEVELS["err"], why)


def log_warnings(config: Config) -> None:
    """Log the warnings of a configuration."""
    for warning in config.warnings:
        logs.warning(warning)


def level_of(config: Config, verbose: bool) -> str:
    """Return the least urgent level that is logged; `verbose` is the option -v."""
    return "debug" if verbose else config.log_level
