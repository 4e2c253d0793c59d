"""What a driver is, and what it gets and gives.

A driver is a small class. It has

- `directives`: its part of the configuration, `{"passwd-file": Directive(...)}` for the directive
  `auth-NAME-passwd-file` (see `tpop3d.config.directive.Directive`);
- `checks_apop`: can it check an APOP digest?
- `__init__(settings)`: the values of its directives. Raises ValueError, with a text for the
  administrator, where they do not fit together. A listener calls it when it reads its
  configuration again, too, and has clients: it waits for nobody, and users and groups are looked up
  by directives (`user_id`, `group_id` of `tpop3d.config.directive`);
- `authenticate(login)`: the verdict. It runs in a process of its own, which is cut off after
  `auth-timeout-seconds`, and takes with it whatever secrets it has read.

It may have

- `own_process`: False lets `authenticate` run where the session will be, which is faster, and is
  right for a driver that runs no foreign code and leaves no secret of others in memory;
- `misspelled`: `{"databse": "database"}` for directives that are taken, with a warning, for others;
- `warnings`: texts for the administrator, after `__init__`;
- `has_plaintext()`: is there anybody whose APOP digest it could check? Without it, `checks_apop`
  says so. It is asked before the greeting, so it must be quick, and it raises nothing;
- `check()`: what only a look at other files shows, for `--check-config`: texts for the
  administrator, errors and warnings;
- `preload()`: loads code that `authenticate` needs; a process that forks many children calls it
  once before;
- `hosts`, a `tpop3d.auth.hosts.Hosts`, where it asks hosts that may be silent: a listener remembers
  which are. Then it has `try_host(number)`, too, which tells `hosts` whether one answers again;
- `on_login(login)`, or None for it: called after every good login, whichever driver said yes;
  returns None, or a `tpop3d.system.refusal.Refusal`. It always runs in a process of its own.

Drivers of other packages are found in the entry-point group `tpop3d.auth`; `auth-NAME-enable: yes`
switches one on. A driver that raises has said *cannot say*.
"""

from __future__ import annotations

import os
import sys

from tpop3d.auth import passwords

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, ClassVar, Protocol

    from tpop3d.config.directive import Directive

    class Driver(Protocol):
        directives: ClassVar[Mapping[str, Directive]]
        checks_apop: ClassVar[bool]

        def __init__(self, settings: Mapping[str, Any]) -> None: ...

        def authenticate(self, login: Login) -> Verdict: ...


YES = "yes"
NO = "no"
CANNOT_SAY = "cannot say"
UNKNOWN = "unknown user"  # why most attempts are refused


class Login:
    """One attempt as a driver sees it. Names and passwords are octets; repr shows no secret.

    `local_part` and `domain` are the parts of the name, `domain` b"" without one; `name` is the
    whole, `local_part@domain` whatever separator the client used. `client` is
    the client's address, "" if there is none. `spellings` are other names, which the configuration
    does not have tried.
    """

    __slots__ = (
        "_digest", "_password", "_timestamp", "client", "domain", "local_part", "name",
        "spellings",
    )  # fmt: skip

    def __init__(
        self,
        local_part: bytes,
        domain: bytes = b"",
        *,
        password: bytes | None = None,
        timestamp: bytes = b"",
        digest: bytes = b"",
        client: str = "",
    ) -> None:
        self.local_part = local_part
        self.domain = domain
        self.name = local_part + b"@" + domain if domain else local_part
        self.client = client
        self.spellings: Sequence[Spelling] = ()
        self._password = password
        self._timestamp = timestamp
        self._digest = digest

    def __repr__(self) -> str:
        return f"<Login {self.name!r}>"

    @property
    def password(self) -> bytes | None:
        """The password, for a driver that hands it to somebody else. None: this is APOP."""
        return self._password

    def matches(self, stored: bytes, scheme: str) -> bool:
        """Does the attempt know the secret behind a stored hash (`scheme` where it names none)?

        Raises `passwords.UnusableHash` for a hash that cannot be checked this way, and
        `passwords.Missing` for one that cannot be checked on this machine.
        """
        if self._password is None:
            return passwords.check_apop(self._timestamp, self._digest, stored, scheme)
        return passwords.check(self._password, stored, scheme)

    def refusal(self, stored: bytes | None, decoy: bytes, scheme: str) -> Verdict | None:
        """Why the attempt is not good for a stored hash; None: it is.

        `stored` is None for an unknown user, on whom the time of checking `decoy` is spent.
        """
        try:
            good = self.matches(decoy if stored is None else stored, scheme)
        except passwords.UnusableHash as error:
            return Verdict.no(UNKNOWN) if stored is None else Verdict.impossible(str(error))
        except passwords.Missing as error:
            return Verdict.cannot_say(str(error))
        if stored is None:
            return Verdict.no(UNKNOWN)
        return None if good else Verdict.no("wrong password")

    def no_such_user(self, is_known: Callable[[Login], bool], reason: str = UNKNOWN) -> Verdict:
        """A no to a name that nobody has, which says, for the log alone, what would make it
        somebody's. `is_known`: is there a user of a name? No password is checked."""
        for one in self.spellings:
            if is_known(one.login):
                reason += f"; {one.words} it would be known: {one.directives}"
                break
        return Verdict.no(reason)


class Spelling:
    """Another name for who logs in, in words, and the directives with which it would be tried.

    `login` has the name, and no password.
    """

    __slots__ = ("directives", "login", "words")

    def __init__(self, words: str, directives: str, login: Login) -> None:
        self.words = words
        self.directives = directives
        self.login = login


class Account:
    """Who gets in: the name for the log, the user and group to become, and the maildrop.

    `mailboxes` are paths; the first that exists is the maildrop, else the first is, and is empty.
    `required` has for each of them a directory above it that is there also when the user has no
    mail, "" for none: if it is missing, the user is told to come back later, since a file system
    may not be mounted. Without `required` it is the directory that the mailbox is in.
    `lock_gid` is a further group, which the session takes while it makes or removes a dotlock.
    """

    __slots__ = ("_required", "gid", "lock_gid", "mailboxes", "name", "uid")

    def __init__(
        self,
        name: bytes,
        uid: int,
        gid: int,
        mailboxes: list[str],
        *,
        required: list[str] | None = None,
        lock_gid: int | None = None,
    ) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.mailboxes = mailboxes
        self.lock_gid = lock_gid
        self._required = required

    @property
    def required(self) -> list[str]:
        """For each mailbox, the directory that must be there, or ""."""
        if self._required is None:
            return [os.path.dirname(path) for path in self.mailboxes]
        return self._required


class Verdict:
    """What a driver, or the whole switch, says of an attempt. `reason` is for the log. `is_guess`,
    of a no: it could have been good, had the password been another one."""

    __slots__ = ("account", "answer", "driver", "is_guess", "reason")

    def __init__(self, answer: str, account: Account | None = None, reason: str = "") -> None:
        self.is_guess = True
        self.answer = answer
        self.account = account
        self.reason = reason
        self.driver = ""  # filled in by the switch

    @classmethod
    def yes(cls, account: Account) -> Verdict:
        """The attempt is good for this account."""
        return cls(YES, account)

    @classmethod
    def no(cls, reason: str) -> Verdict:
        """The attempt is not good."""
        return cls(NO, reason=reason)

    @classmethod
    def impossible(cls, reason: str) -> Verdict:
        """The attempt is not good, and no password is: nobody who knows the right one is to be
        taken for somebody who guesses."""
        verdict = cls(NO, reason=reason)
        verdict.is_guess = False
        return verdict

    @classmethod
    def cannot_say(cls, reason: str) -> Verdict:
        """It could not be found out whether the attempt is good."""
        return cls(CANNOT_SAY, reason=reason)


def checked(verdict: object) -> Verdict:
    """A driver's verdict, or *cannot say* where it is none: other people's code may return
    anything."""
    if not isinstance(verdict, Verdict) or verdict.answer not in (YES, NO, CANNOT_SAY):
        return Verdict.cannot_say("driver failed: what it returned is no verdict")
    account = verdict.account
    if (verdict.answer == YES) != isinstance(account, Account):
        return Verdict.cannot_say("driver failed: a yes has an account, and nothing else has")
    if account is not None and (
        not account.name
        or not account.mailboxes
        or any("\0" in path or not path.startswith("/") for path in account.mailboxes)
    ):
        return Verdict.cannot_say("driver failed: its account has no name, or no mailbox")
    if account is not None and not _is_above(account.required, account.mailboxes):
        return Verdict.cannot_say("driver failed: a required directory is not above its mailbox")
    return verdict


def _is_above(directories: list[str], mailboxes: list[str]) -> bool:
    """Is each directory, unless it is "", one that its mailbox is in?"""
    if len(directories) != len(mailboxes):
        return False
    pairs = zip(directories, mailboxes, strict=True)
    return all(not above or path.startswith(above.rstrip("/") + "/") for above, path in pairs)


def groups_of(own: int, mail: int | None) -> tuple[int, int | None]:
    """The `gid` and the `lock_gid` of an account whose user has the group `own`, where the
    configuration names a group `mail`, or none. A user whose own is root's has that one alone."""
    if mail is None or mail == own:
        return own, None
    return (own, mail) if own > 0 else (mail, None)


def require(module: str, package: str, extra: str) -> None:
    """See that a driver's package is there, without the time that importing it takes.

    Raises ValueError, with a text for the administrator, where it is not.
    """
    if not any(finder.find_spec(module, None) for finder in sys.meta_path):
        raise ValueError(f"needs the package {package}: pip install 'tpop3d[{extra}]'")


def text(octets: bytes) -> str:
    """Octets of a name as the system's interfaces take them."""
    return os.fsdecode(octets)
