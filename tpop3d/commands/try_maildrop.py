"""Whether a maildrop opens, for `--test-login`: what a session does, by steps that are printed.

It runs in a process that has become the mailbox's user. Nothing is removed.
"""

from __future__ import annotations

import os
from time import monotonic

from tpop3d.config.directive import size_text
from tpop3d.privsep.sandbox import refuse_lacking_root
from tpop3d.session.choice import EXISTS, Choice, seen
from tpop3d.session.session import enter, open_chosen, prepare, terms_of
from tpop3d.system import logs, processes
from tpop3d.system.io import ready
from tpop3d.system.privileges import OUT_OF_MEMORY, cannot_become, limit_memory, use_reserve
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.auth.driver import Account
    from tpop3d.commands.unit_sandbox import Sandboxes
    from tpop3d.settings import Config

# Exit codes.
SUCCEEDS = 0
UNOPENED = 5
UNTRIED = 6
BARRED = 7  # opened here, but not in a unit; the exit code is then UNOPENED


def say(what: str, text: str) -> None:
    """Print a line in printable ASCII: paths and reasons may hold anything."""
    line = logs.printable(f"{what:<10}{text}".encode("utf-8", "surrogateescape"), b"\\")
    os.write(1, line.encode() + b"\n")


def _describe_mailboxes(account: Account, chosen: str) -> None:
    """Print for each mailbox whether it exists. Runs as its user."""
    for path, exists in zip(account.mailboxes, seen(account), strict=True):
        if isinstance(exists, Refusal):
            text = f"cannot be looked at: {exists.reason}"
        elif path == chosen:
            text = "chosen" if exists == EXISTS else "chosen, missing, so it is empty"
        else:
            text = exists
        say("mailbox", f"{path} ({text})")


def barred_in_units(
    account: Account, sandboxes: Sandboxes, all_else: list[str]
) -> dict[str, list[str]]:
    """Return for each mailbox what our units forbid there, with `all_else` that they forbid."""
    places = [
        required or os.path.dirname(path)
        for path, required in zip(account.mailboxes, account.required, strict=True)
    ]
    return {
        path: [*sandboxes.forbid(place, is_written=True), *all_else]
        for path, place in zip(account.mailboxes, places, strict=True)
    }


def open_in_a_process(account: Account, config: Config, barred: dict[str, list[str]]) -> int:
    """Open the maildrop in a process that becomes its user; returns the exit code."""
    refused = cannot_become(account.uid, account.gid, account.lock_gid)
    if refused is None and os.geteuid() == 0:
        refused = refuse_lacking_root()
    if refused is not None:
        why = refused.reason
        for path in account.mailboxes:
            say("mailbox", f"{path} (not looked at)")
        say("maildrop", f"refused: {why}" if os.geteuid() == 0 else f"not tried: {why}")
        return UNTRIED if account.uid > 0 and account.gid > 0 else UNOPENED

    def work() -> int:
        return _open_within_limits(account, config, barred)

    status = os.waitstatus_to_exitcode(os.waitpid(processes.spawn(work, UNOPENED), 0)[1])
    return status if status in (SUCCEEDS, BARRED) else UNOPENED


def _open_within_limits(account: Account, config: Config, barred: dict[str, list[str]]) -> int:
    try:
        return _open(account, config, barred)
    except MemoryError:
        pass  # what has taken it is let go of now
    use_reserve()
    say("maildrop", f"refused: {OUT_OF_MEMORY}: {size_text(config.session_memory)}")
    return UNOPENED


def _open(account: Account, config: Config, barred: dict[str, list[str]]) -> int:
    """What a session does up to its answer to the login, step by step, and at QUIT; then what of
    this a session in a unit could not do. Returns the exit code."""
    started = monotonic()
    choice = prepare(account, config.state_directory)
    if refused := enter(account, choice):
        say("maildrop", f"refused: {refused.reason}")
        return UNOPENED
    limit_memory(config.session_memory)
    _describe_mailboxes(account, choice.path if isinstance(choice, Choice) else "")
    os.umask(0o077)
    if isinstance(choice, Choice) and isinstance(choice.place, str):
        say("state", choice.place)
    spool = open_chosen(choice, account, terms_of(config, _pause, account))
    if isinstance(spool, Refusal):
        say("maildrop", f"refused: {spool.reason} ({monotonic() - started:.3f} s)")
        return UNOPENED
    messages, octets = len(spool), sum(spool.octets)
    seconds = monotonic() - started
    if spool.warning:
        say("warning", spool.warning)
    if spool.found is not None:
        say("journal", spool.found.line)
    spool.close()
    plural = "" if messages == 1 else "s"
    say("maildrop", f"opens: {messages} message{plural}, {octets} octets ({seconds:.3f} s)")
    lines = barred.get(choice.path, []) if isinstance(choice, Choice) else []
    for line in lines:
        say("unit", line)
    return BARRED if lines else SUCCEEDS


def _pause(seconds: float) -> bool:
    """Wait. Are we told to end?"""
    wakeup, _ = processes.descriptors()
    return bool(ready(seconds, wakeup))
