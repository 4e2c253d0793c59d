"""auth-flatfile: virtual users in files of `user:hash` lines, all owned by one system user."""

from __future__ import annotations

from tpop3d.auth.driver import Account, Login, Verdict
from tpop3d.auth.templates import Mailbox, Template
from tpop3d.directives import Directive, absolute_path, group_id, user_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

FILE_VARIABLES = ("domain",)


def _file_template(text: str) -> Template:
    return Template(absolute_path(text), FILE_VARIABLES)


class Flatfile:
    """Looks the name up in a file. A file that is one domain's own may list bare local parts."""

    directives: ClassVar[dict[str, Directive]] = {
        "passwd-file": Directive(_file_template),
        "mail-user": Directive(user_id),
        "mail-group": Directive(group_id),
        "mailbox": Directive(Mailbox),
    }
    checks_apop = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._file: Template = settings["passwd-file"]
        self._mailbox: Mailbox = settings["mailbox"] or settings["default-mailbox"]
        self._user = settings["mail-user"]
        if self._file is None:
            raise ValueError("auth-flatfile-passwd-file must be given")
        if self._user is None:
            raise ValueError("auth-flatfile-mail-user must be given")
        if self._user.uid == 0:
            raise ValueError("auth-flatfile-mail-user: root owns no mailbox here")
        group = settings["mail-group"]
        self._gid: int = self._user.gid if group is None else group.gid

    def authenticate(self, login: Login) -> Verdict:
        """Check the attempt against the line of its name."""
        values = {"user": login.name, "local_part": login.local_part, "domain": login.domain}
        path = self._file.expand(values)
        if path is None:
            return Verdict.no("no password file for this domain")
        names = [login.name]
        if len(self._file.parts) > 1:
            # The domain chose the file. In a file for all, anna is not anna@example.org.
            names.append(login.local_part)
        try:
            with open(path, "rb") as file:
                stored, decoy = _look_up(file.read(), names)
        except OSError as error:
            return Verdict.cannot_say(f"{path}: {error.strerror}")
        if refusal := login.refusal(stored, decoy, "crypt"):
            return refusal
        values["home"] = self._user.home
        mailboxes = self._mailbox.paths(values)
        if not mailboxes:
            return Verdict.no("the name makes no mailbox path")
        return Verdict.yes(Account(login.name, self._user.uid, self._gid, mailboxes))


def _look_up(content: bytes, names: list[bytes]) -> tuple[bytes | None, bytes]:
    """The hash of the first line with one of the names, and some hash of the file, on which to
    spend the same time where there is none."""
    decoy = b""
    for line in content.split(b"\n"):
        # Blanks at the end may be a password's.
        name, colon, rest = line.lstrip().rstrip(b"\r").partition(b":")
        if not colon or name.startswith(b"#"):
            continue
        stored = rest.partition(b":")[0]
        if name in names:
            return stored, decoy
        decoy = decoy or stored
    return None, decoy


driver = Flatfile
