"""The interface of a driver, and the types that it takes and returns.

A driver is a small class. It has

- `directives`: its part of the configuration, `{"passwd-file": Directive(...)}` for the directive
  `auth-NAME-passwd-file` (see `tpop3d.config.directive.Directive`);
- `checks_apop`: can it check an APOP digest?
- `__init__(settings)`: takes the values of its directives. It raises ValueError, with a text for
  the administrator, if they do not fit together. A listener with clients calls it, too, when it
  reads its configuration again: so it must wait for nobody. Directives look up users and groups
  (`user_id`, `group_id` of `tpop3d.config.directive`);
- `authenticate(login)`: returns a `Verdict`. It runs in a process of its own, which is cut off
  after `auth-timeout-seconds`, and takes with it whatever secrets it has read.

It may have

- `own_process`: if False, `authenticate` runs in the process that becomes the session. This is
  faster, and is right for a driver that runs no foreign code and leaves no secrets of other users
  in memory;
- `misspelled`: `{"databse": "database"}`: a directive that is taken, with a warning, for another;
- `warnings`: texts for the administrator, valid after `__init__`;
- `has_plaintext()`: is there any user whose APOP digest it can check? Without this method yes, if
  `checks_apop` is true. It is called before the greeting, so it must be quick, and it may not
  raise;
- `check()`: looks at other files, for `--check-config`; returns two lists of texts for the
  administrator, errors and warnings;
- `preload()`: loads code that `authenticate` needs; a process that forks many children calls it
  once before;
- `hosts`, a `tpop3d.auth.hosts.Hosts`, where it asks hosts that may be silent: a listener remembers
  which are. Then it has `try_host(number)`, too, which tells `hosts` whether one answers again;
- `on_login(login)`, or None for it: called after every good login, whichever driver said yes;
  returns None, or a `tpop3d.system.refusal.Refusal`. It always runs in a process of its own.

Drivers of other packages are found in the entry-point group `tpop3d.auth`; `auth-NAME-enable: yes`
switches one on. A driver that raises an exception counts as *cannot say*.
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
UNKNOWN = "unknown user"  # the reason of most refusals


class Login:
    """One attempt as a driver sees it. Names and passwords are octets; the repr shows no secret.

    `local_part` and `domain` are the parts of the name; `domain` is b"" without one. `name` is the
    whole name, `local_part@domain`, whatever separator the client has used. `client` is the
    client's address, "" if it has none. `spellings` are other names that the configuration does
    not let the switch try.
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
        """The password, for a driver that hands it on. None: the attempt is APOP."""
        return self._password

    def matches(self, stored: bytes, scheme: str) -> bool:
        """Does the attempt fit a stored hash? `scheme` is for a hash that names none.

        Raises `passwords.UnusableHash` if the hash cannot be checked this way, and
        `passwords.Missing` if it cannot be checked on this machine.
        """
        if self._password is None:
            return passwords.check_apop(self._timestamp, self._digest, stored, scheme)
        return passwords.check(self._password, stored, scheme)

    def refusal(self, stored: bytes | None, decoy: bytes, scheme: str) -> Verdict | None:
        """Check the attempt against a stored hash; returns a refusal, or None if it is good.

        `stored` is None for an unknown user: then `decoy` is checked, which takes the same time.
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
        """A no for an unknown name. Its reason, which only the log shows, names the directives that
        would make the name a known one. `is_known`: does a name belong to a user? No password is
        checked."""
        for one in self.spellings:
            if is_known(one.login):
                reason += f"; {one.words} it would be known: {one.directives}"
                break
        return Verdict.no(reason)


class Spelling:
    """Another name under which a client might be known, and the directives that would try it.

    `words` describe the name. `login` has the name, and no password.
    """

    __slots__ = ("directives", "login", "words")

    def __init__(self, words: str, directives: str, login: Login) -> None:
        self.words = words
        self.directives = directives
        self.login = login


class Account:
    """The account of a good login: its name for the log, uid and gid of the session, the maildrop.

    `mailboxes` are paths. The first that exists is the maildrop; if none exists, the first path is
    an empty maildrop. `required` has for each path a directory above it that exists even if the
    user has no mail, or "". If that directory is missing, the client is told to try again later,
    since a file system may not be mounted. The default is the directory that the mailbox is in.
    `lock_gid` is a further group, which the session takes while it creates or removes a dotlock.
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
        """For each mailbox, the directory that must exist, or ""."""
        if self._required is None:
            return [os.path.dirname(path) for path in self.mailboxes]
        return self._required


class Verdict:
    """The answer of a driver, or of the whole switch, to an attempt. `reason` is for the log.
    `is_guess` counts for a no: could another password have been right?"""

    __slots__ = ("account", "answer", "driver", "is_guess", "reason")

    def __init__(self, answer: str, account: Account | None = None, reason: str = "") -> None:
        self.is_guess = True
        self.answer = answer
        self.account = account
        self.reason = reason
        self.driver = ""  # the switch fills it in

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
        """The attempt is not good, and no password could be: a client that has the right one must
        not be taken for one that guesses."""
        verdict = cls(NO, reason=reason)
        verdict.is_guess = False
        return verdict

    @classmethod
    def cannot_say(cls, reason: str) -> Verdict:
        """It cannot be told now whether the attempt is good."""
        return cls(CANNOT_SAY, reason=reason)


def checked(verdict: object) -> Verdict:
    """Check what a driver has returned; *cannot say* if it is no valid verdict. Foreign code may
    return anything."""
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
    """Is each directory above its mailbox, or ""?"""
    if len(directories) != len(mailboxes):
        return False
    pairs = zip(directories, mailboxes, strict=True)
    return all(not above or path.startswith(above.rstrip("/") + "/") for above, path in pairs)


def groups_of(own: int, mail: int | None) -> tuple[int, int | None]:
    """The `gid` and the `lock_gid` of an account whose user has the group `own`.

    `mail` is the group in the configuration, or None. If `own` is root's group, `mail` takes its
    place.
    """
    if mail is None or mail == own:
        return own, None
    return (own, mail) if own > 0 else (mail, None)


def require(module: str, package: str, extra: str) -> None:
    """Check that the package of a driver is installed, without the time that its import takes.

    Raises ValueError, with a text for the administrator, if it is not.
    """
    if not any(finder.find_spec(module, None) for finder in sys.meta_path):
        raise ValueError(f"needs the package {package}: pip install 'tpop3d[{extra}]'")


def text(octets: bytes) -> str:
    """Decode the octets of a name for the system's interfaces."""
    return os.fsdecode(octets)
