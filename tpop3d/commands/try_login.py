"""`tpop3d --test-login USER`: would this user get in, and would the maildrop open?

The command asks the auth switch as for a client. Then a process that has become the mailbox's user
opens the maildrop as a session does, and closes it again. Nothing is removed.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from tpop3d.auth.driver import CANNOT_SAY, YES, Account, Login, Spelling, Verdict
from tpop3d.auth.switch import Switch, sum_of
from tpop3d.commands.check_config import in_sandboxes
from tpop3d.commands.try_maildrop import (
    BARRED,
    SUCCEEDS,
    UNOPENED,
    UNTRIED,
    barred_in_units,
    open_in_a_process,
    say,
)
from tpop3d.commands.unit_sandbox import Sandboxes
from tpop3d.config import Unanswered
from tpop3d.configuration import WrongConfiguration, load
from tpop3d.pop3.authorization import Attempt
from tpop3d.pop3.commands import MAX_RESPONSE
from tpop3d.system import logs, processes
from tpop3d.system.refusal import PERMANENT, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.settings import Config

# Exit codes, beside those of `try_maildrop`.
FAILED = 1  # the configuration has errors, or this was interrupted
WRONG_USE = 2  # no name, no password, or no address
REFUSED = 3
UNDECIDED = 4
RESULTS = {
    BARRED: "the login succeeds, and the maildrop opens here, but not in the unit",
    SUCCEEDS: "the login succeeds, and the maildrop opens",
    REFUSED: "the login is refused",
    UNDECIDED: "the login cannot be checked",
    UNOPENED: "the login succeeds, and the maildrop does not open",
    UNTRIED: "the login succeeds; whether the maildrop opens, only root can try",
}


def try_login(file: str, user: str, client: str) -> int:
    """Try a login of `user` by the configuration `file`, as from the address `client` ("": none).

    The password is read from stdin. Prints what comes of it; returns the exit code.
    """
    try:
        config = load(file)
    except WrongConfiguration as error:
        for problem in error.problems:
            _complain(problem)
        return FAILED
    for warning in config.warnings:
        _complain(f"warning: {warning}")
    logs.open_log(config.log_facility, config.log_level, to_stderr=True)
    processes.unblock()
    try:
        refused = _refuse_arguments(user, client)
        given = _password(user) if refused is None else refused
    except KeyboardInterrupt:
        return FAILED
    if isinstance(given, Refusal):
        _complain(given.reason)
        return WRONG_USE
    password, note = given
    for line in note:
        say("password", line)
    attempt = Attempt("USER", os.fsencode(user), password=password)
    del password, given
    try:
        status = _try(attempt, client, config, file)
    except KeyboardInterrupt:
        _complain("interrupted")
        return FAILED
    return status


def _refuse_arguments(user: str, client: str) -> Refusal | None:
    """Refuse a name that is empty, and an address that is none."""
    if not user:
        return Refusal("--test-login: a name is needed", PERMANENT)
    if client:
        from ipaddress import ip_address

        try:
            ip_address(client)
        except ValueError:
            why = f"--from: {client} is no address, as 192.0.2.7 or 2001:db8::7"
            return Refusal(why, PERMANENT)
    return None


def _password(user: str) -> tuple[bytes, list[str]] | Refusal:
    """Read the password from the terminal, or as the first line of stdin.

    Returns it, and the notes about it.
    """
    reads = "--test-login reads a password from standard input"
    if sys.stdin is None:
        return Refusal(f"{reads}, which is closed", PERMANENT)
    if os.isatty(0):
        typed = _from_terminal(f"Password of {logs.printable(os.fsencode(user))}: ")
        return (typed, []) if typed is not None else Refusal("there is no password", PERMANENT)
    line = sys.stdin.buffer.readline(MAX_RESPONSE + 1)
    if not line:
        return Refusal(f"{reads}, and there is none", PERMANENT)
    if len(line) > MAX_RESPONSE:
        return Refusal("no client can send a password of that length", PERMANENT)
    password = line.removesuffix(b"\n")
    if password.endswith(b"\r"):
        return password[:-1], ["its line ends with CR LF; the CR is not taken for a part of it"]
    return password, []


def _from_terminal(prompt: str) -> bytes | None:
    """Read a line that is not shown while somebody types it; None at the end of the input."""
    import termios

    before = termios.tcgetattr(0)
    silent = termios.tcgetattr(0)
    silent[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(0, termios.TCSAFLUSH, silent)
        os.write(2, prompt.encode())
        line = os.read(0, MAX_RESPONSE)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.write(2, b"\n")
    return line.removesuffix(b"\n") if line else None


def _try(attempt: Attempt, client: str, config: Config, file: str) -> int:
    if os.geteuid() != 0:
        who = f"tried as uid {os.geteuid()}, not as root"
        say("note", f"{who}: what only root can read or open is not tested")
    is_barred = _describe_connection(client, config)
    account = _walk(attempt, client, config)
    if isinstance(account, int):
        status = account
    else:
        _describe(account)
        sandboxes = Sandboxes()
        barred = barred_in_units(account, sandboxes, in_sandboxes(config, file, sandboxes))
        status = open_in_a_process(account, config, barred)
        if status == BARRED and not sandboxes.are_used:
            status = SUCCEEDS  # no unit is in use, so what they forbid may not matter
    result = RESULTS[status]
    status = UNOPENED if status == BARRED else status
    if is_barred and not isinstance(account, int):
        status, result = REFUSED, "the password is good, and is not taken without TLS"
    say("result", result)
    return status


def _describe_connection(client: str, config: Config) -> bool:
    """Say what a client has to do before it can give a password. Is there nothing that it can
    do?"""
    if not config.apop_only and (not client or config.takes_plaintext(client)):
        return False
    why = "apop-only" if config.apop_only else f"plaintext-logins: {config.plaintext_logins}"
    offers = [config.tls, *(address.tls for address in config.listen_address)]
    is_barred = not any(one is not None and one.pairs for one in offers)
    where = f"from {client} " if client else ""
    besides = ", and there is no tls-certificate" if is_barred else ""
    say("note", f"{where}a password is taken with TLS only ({why}){besides}")
    return is_barred


def _walk(attempt: Attempt, client: str, config: Config) -> Account | int:
    """Ask the switch, and print each answer; returns the account, or the exit code if there is
    none."""
    switch = Switch(config.drivers, config)
    if refused := switch.refusal(attempt):
        say("no driver", f"is asked: {refused.reason}")
        return REFUSED
    others: list[Verdict] = []
    asked: list[Login] = []
    started = monotonic()
    for login, verdict in switch.walk(attempt, _local_domain(config), client):
        if login not in asked:
            asked.append(login)
            say("name", _name(login))
        answer = f"{verdict.answer}: {verdict.reason}" if verdict.reason else verdict.answer
        say(verdict.driver, f"{answer} ({monotonic() - started:.3f} s)")
        if verdict.account is not None and verdict.answer == YES:
            names = list(config.drivers)
            for name in names[names.index(verdict.driver) + 1 :]:
                say(name, "not asked")
            for name, driver in config.drivers.items():
                if getattr(driver, "on_login", None) is not None:
                    say(name, "wants to know of logins, and is not told of this one")
            return verdict.account
        others.append(verdict)
        started = monotonic()
    spellings = [one for login in asked for one in login.spellings]
    _try_spellings(switch, attempt, spellings, client, others, config)
    return UNDECIDED if sum_of(others).answer == CANNOT_SAY else REFUSED


def _try_spellings(
    switch: Switch,
    attempt: Attempt,
    spellings: list[Spelling],
    client: str,
    refused: list[Verdict],
    config: Config,
) -> None:
    """Say with which directives the login would succeed.

    Only a name that some driver has called known is tried: modules of PAM may count each attempt.
    """
    for spelling in spellings:
        told = f"{spelling.words} it would be known: {spelling.directives}"
        if not any(told in verdict.reason for verdict in refused):
            continue
        name = spelling.login.local_part
        if spelling.login.domain:
            name += config.domain_separators[0].encode() + spelling.login.domain
        other = Attempt("USER", name, password=attempt.password)
        if any(verdict.answer == YES for _, verdict in switch.walk(other, b"", client)):
            say("hint", f"{spelling.words} it would be yes: {spelling.directives}")
            return


def _local_domain(config: Config) -> bytes:
    """Return the domain that append-domain appends, or would append, at the first address with
    one."""
    named = [address for address in config.listen_address if address.domain]
    if not named:
        return b""
    if config.append_domain and len({address.domain for address in named}) > 1:
        say("note", f"append-domain appends what it does at {named[0].host}")
    return os.fsencode(named[0].domain)


def _name(login: Login) -> str:
    local_part = logs.printable(login.local_part)
    return f"{local_part}, domain {logs.printable(login.domain)}" if login.domain else local_part


def _describe(account: Account) -> None:
    """Print the account: its user and group, and the group for dotlocks."""
    import pwd

    try:
        user = pwd.getpwuid(account.uid).pw_name
    except KeyError:
        user = _nameless("passwd", account.uid, "who is no user")
    ids = f"uid {account.uid} ({user}), gid {account.gid} ({_group(account.gid)})"
    if account.lock_gid is not None:
        ids += f", for dotlocks gid {account.lock_gid} ({_group(account.lock_gid)})"
    say("account", f"{logs.printable(account.name)}: {ids}")


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return _nameless("group", gid, "which is no group")


def _nameless(database: str, number: int, what: str) -> str:
    """Say why a number has no name."""
    from tpop3d.config import nsswitch

    try:
        nsswitch.is_absent(database, number)
    except Unanswered as error:
        return f"whose name cannot be looked up: {error}"
    return f"{what} of this system"


def _complain(text: str) -> None:
    print(f"tpop3d: {text}", file=sys.stderr)
