"""The auth switch asks the drivers in their order, and makes one verdict of their answers.

The first yes decides, and no other driver is asked. Without a yes, a single *cannot say* makes the
verdict *cannot say*: no client is told that a password is wrong if it could not be checked.
"""

from __future__ import annotations

import os

from tpop3d.auth.driver import CANNOT_SAY, UNKNOWN, YES, Login, Spelling, Verdict, checked
from tpop3d.config.templates import MAX_NAME
from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    from tpop3d.auth.driver import Driver
    from tpop3d.pop3.authorization import Attempt

    class Rules(Protocol):
        """The directives that the switch reads, by their names."""

        apop: str
        apop_only: bool
        append_domain: bool
        auth_timeout_seconds: int
        domain_separators: str
        lowercase_user: bool
        permit_empty_password: bool
        strip_domain: bool


class Switch:
    """Asks the enabled drivers. `drivers` has them by name, in the order of the questions."""

    def __init__(self, drivers: dict[str, Driver], rules: Rules) -> None:
        self._drivers = drivers
        self._rules = rules

    def offers_apop(self) -> bool:
        """Does the greeting offer APOP? Many clients then try nothing else, and none gets in if no
        password is stored in plain text."""
        if self._rules.apop == "no":
            return False
        drivers = [driver for driver in self._drivers.values() if driver.checks_apop]
        if self._rules.apop == "yes" or self._rules.apop_only:
            return bool(drivers)
        return any(getattr(driver, "has_plaintext", _is_not_known)() for driver in drivers)

    def decide(self, attempt: Attempt, local_domain: bytes, client: str) -> Verdict:
        """Decide on an attempt. `local_domain` is the domain of the address that the client has
        connected to, or b""."""
        if refused := self.refusal(attempt):
            return refused
        others = []
        for login, verdict in self.walk(attempt, local_domain, client):
            if verdict.answer == YES:
                self._tell(login)
                return verdict
            if verdict.answer == CANNOT_SAY:
                driver, reason = verdict.driver, verdict.reason
                logs.error(logs.event("driver undecided", driver=driver, reason=reason))
            others.append(verdict)
        return sum_of(others)

    def appends_to(self, name: bytes) -> bool:
        """Is a name tried with the domain of the address that the client has connected to?"""
        return self._rules.append_domain and not self._has_separator(name)

    def _has_separator(self, name: bytes) -> bool:
        separators = self._rules.domain_separators.encode()
        return any(c in separators for c in name)

    def refusal(self, attempt: Attempt) -> Verdict | None:
        """A refusal of an attempt that no driver is asked about, or None."""
        if attempt.password == b"" and not self._rules.permit_empty_password:
            return Verdict.no("empty password")
        if len(attempt.name) > MAX_NAME:
            return Verdict.no(f"name of more than {MAX_NAME} octets")
        return None

    def walk(
        self, attempt: Attempt, local_domain: bytes, client: str
    ) -> Iterator[tuple[Login, Verdict]]:
        """Ask each driver about the first name to try, then about the next, up to the first yes.

        Yields each verdict with its login; the next driver is asked when the caller goes on.
        `on_login` of drivers is not called.
        """
        for login in self._logins(attempt, local_domain, client):
            for name, driver in self._drivers.items():
                verdict = self._ask(driver, login)
                verdict.driver = name
                yield login, verdict
                if verdict.answer == YES:
                    return

    def _logins(self, attempt: Attempt, local_domain: bytes, client: str) -> Iterator[Login]:
        """Yield the names to try: the name as the client gave it, then with the local domain or
        without its own."""
        name = attempt.name.lower() if self._rules.lowercase_user else attempt.name

        def login(local_part: bytes, domain: bytes = b"") -> Login:
            one = Login(
                local_part,
                domain,
                password=attempt.password,
                timestamp=attempt.timestamp,
                digest=attempt.digest,
                client=client,
            )
            one.spellings = self._spellings(one, local_domain)
            return one

        separators = self._rules.domain_separators.encode()
        local_part = next((name[:n] for n, c in enumerate(name) if c in separators), name)
        separator, domain = name[len(local_part) :][:1], name[len(local_part) + 1 :]
        if not domain:
            yield login(name)
            if self._rules.append_domain and local_domain and not separator:
                yield login(name, local_domain)
            return
        yield login(local_part, domain)
        if self._rules.strip_domain:
            yield login(local_part)

    def _spellings(self, login: Login, local_domain: bytes) -> list[Spelling]:
        """Other names for the same user, as other servers take them. The directives that would have
        them tried are off."""
        local_part, domain = login.local_part, login.domain
        lowered = local_part.lower(), domain.lower()
        can_strip = bool(domain) and not self._rules.strip_domain
        can_lower = lowered != (local_part, domain) and not self._rules.lowercase_user
        found = []
        can_append = not self._rules.append_domain and not self._has_separator(local_part)
        if local_domain and not domain and can_append:
            words = f"with the domain {os.fsdecode(local_domain)}"
            found.append((words, "append-domain", local_part, local_domain))
        if can_strip:
            found.append(("without the domain", "strip-domain", local_part, b""))
        if can_lower:
            found.append(("in lower case", "lowercase-user", *lowered))
        if can_strip and can_lower and lowered[0] != local_part:
            words = "in lower case and without the domain"
            found.append((words, "lowercase-user, strip-domain", lowered[0], b""))
        return [
            Spelling(words, directives, Login(*parts, client=login.client))
            for words, directives, *parts in found
        ]

    def _ask(self, driver: Driver, login: Login) -> Verdict:
        if getattr(driver, "own_process", True):
            from tpop3d.auth import isolation

            return isolation.ask(driver, login, self._rules.auth_timeout_seconds)
        try:
            return checked(driver.authenticate(login))
        except (Exception, SystemExit) as error:
            return Verdict.cannot_say(f"driver failed: {logs.describe(error)}")

    def _tell(self, login: Login) -> None:
        """Call `on_login` of each driver that has it. A failure is logged, and the client is let in
        all the same."""
        for name, driver in self._drivers.items():
            on_login = getattr(driver, "on_login", None)
            if on_login is None:
                continue
            from tpop3d.auth import isolation

            seconds = self._rules.auth_timeout_seconds
            if refused := isolation.tell(driver, on_login, login, seconds):
                told = {"driver": name, "user": login.name, "reason": refused.reason}
                logs.error(logs.event("driver not told", **told))


def _is_not_known() -> bool:
    """Stand in for `has_plaintext` of a driver that lacks it."""
    return True


def _weight(verdict: Verdict) -> int:
    """Rank a no by how much its reason tells. If it is a guess for any driver, it is one."""
    if verdict.reason.startswith(UNKNOWN):
        return 0 if verdict.reason == UNKNOWN else 1
    return 3 if verdict.is_guess else 2


def sum_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Make one verdict of several, none of which is a yes."""
    undecided: Verdict | None = None
    refused: Verdict | None = None
    for verdict in verdicts:
        if verdict.answer == CANNOT_SAY:
            undecided = undecided or verdict
        elif refused is None or _weight(verdict) > _weight(refused):
            refused = verdict  # the log is to show the most telling reason
    return undecided or refused or Verdict.no("no driver is enabled")
