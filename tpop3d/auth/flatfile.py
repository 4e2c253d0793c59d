"""auth-flatfile: virtual users in files of `user:hash` lines; one system user owns their mail."""

from __future__ import annotations

import os
from time import monotonic

from tpop3d.auth import passwords
from tpop3d.auth.driver import UNKNOWN, Account, Login, Verdict, groups_of
from tpop3d.config.directive import Directive, absolute_path, group_id, user_id
from tpop3d.config.templates import Mailbox, Template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

NO_FILE = "no password file for this domain"
ABSENT = (2, 20, 36)  # ENOENT, ENOTDIR, ENAMETOOLONG of errno(3): there is no file
FILE_VARIABLES = ("domain",)
NEWLINE, HASH = b"\n#"
BLANKS = b" \t\r\v\f"  # a line may begin with these
LOOK = 5.0  # seconds for which we remember whether there is a password in plain text
MAX_FILES = 100  # files that are searched for one, if each domain has its own


def _file_template(text: str) -> Template:
    return Template(absolute_path(text), FILE_VARIABLES)


class Flatfile:
    """Looks a name up in a file. The file of a single domain may list bare local parts."""

    directives: ClassVar[dict[str, Directive]] = {
        "passwd-file": Directive(_file_template),
        "mail-user": Directive(user_id),
        "mail-group": Directive(group_id),
        "mailbox": Directive(Mailbox),
    }
    checks_apop = True
    own_process = False

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
        self._gids = groups_of(self._user.gid, None if group is None else group.gid)
        if self._gids[0] == 0:
            why = "is in root's group, which owns no mailbox here; give auth-flatfile-mail-group"
            raise ValueError(f"auth-flatfile-mail-user: {why}")
        self._has_plaintext = False
        self._looked = -LOOK  # a time of monotonic()

    def has_plaintext(self) -> bool:
        """Is there a password in plain text, in the file or in that of any domain?"""
        now = monotonic()
        if now - self._looked >= LOOK:
            self._has_plaintext = any(_has_plaintext(path) for path in _files(self._file))
            self._looked = now
        return self._has_plaintext

    def check(self) -> tuple[list[str], list[str]]:
        """Look for the file, or for that of any domain; returns errors and warnings."""
        why = ""
        try:
            if len(self._file.parts) == 1:
                with open(self._file.text, "rb"):
                    pass
            elif not _files(self._file):
                why = f"{self._file}: there is no file of such a name"
        except OSError as error:
            why = f"{self._file}: {error.strerror}"
        return [], [f"auth-flatfile-passwd-file: {why}"] if why else []

    def authenticate(self, login: Login) -> Verdict:
        """Check an attempt against the line of its name."""
        values = _values(login)
        path = self._path_of(login)
        if path is None:
            return login.no_such_user(self._is_known, NO_FILE)
        near = [one.login for one in login.spellings if self._path_of(one.login) == path]
        try:
            found = _look_up(path, self._names(login), [self._names(one) for one in near])
        except OSError as error:
            if len(self._file.parts) > 1 and error.errno in ABSENT:
                verdict = _without_file(path, self._file.required(values))
                if verdict.reason == NO_FILE:
                    verdict = login.no_such_user(self._is_known, NO_FILE)
                return verdict
            return Verdict.cannot_say(f"{path}: {_why(error)}")
        if refusal := login.refusal(found.stored, found.decoy, "crypt"):
            if refusal.reason == UNKNOWN:
                known = dict(zip(near, found.known, strict=True))
                refusal = login.no_such_user(
                    lambda one: known[one] if one in known else self._is_known(one)
                )
            return refusal
        values["home"] = self._user.home
        mailboxes, required = self._mailbox.places(values)
        if not mailboxes:
            return Verdict.no("the name makes no mailbox path")
        gid, lock_gid = self._gids
        account = Account(
            login.name, self._user.uid, gid, mailboxes, required=required, lock_gid=lock_gid
        )
        return Verdict.yes(account)

    def _names(self, login: Login) -> list[bytes]:
        """The names that the line may have. In a file for all domains, anna is not
        anna@example.org."""
        domain_chooses_file = len(self._file.parts) > 1
        return [login.name, *((login.local_part,) if domain_chooses_file else ())]

    def _path_of(self, login: Login) -> str | None:
        return self._file.expand(_values(login))

    def _is_known(self, login: Login) -> bool:
        """Is there a line for that name in its file?"""
        path = self._path_of(login)
        try:
            return path is not None and _look_up(path, [], [self._names(login)]).known[0]
        except OSError:
            return False


def _values(login: Login) -> dict[str, bytes]:
    """The variables of templates that a name tells."""
    return {"user": login.name, "local_part": login.local_part, "domain": login.domain}


def _why(error: OSError) -> str:
    from tpop3d.system import reasons

    return reasons.why(error)


def _without_file(path: str, required: str) -> Verdict:
    """The verdict for a domain whose file is missing: no, unless other files may be missing, too.

    `required` is the directory above all such files. It is empty or missing if its file system is
    not mounted. A dangling link counts as such a file system, too.
    """
    try:
        with os.scandir(required) as entries:
            if next(entries, None) is None:
                return Verdict.cannot_say(f"{required}: is empty; is the file system mounted?")
    except PermissionError:
        pass  # the directory exists, and we may not list it
    except OSError as error:
        return Verdict.cannot_say(f"{required}: {_why(error)}")
    above = path
    while len(above) > len(required):
        if os.path.islink(above) and not os.path.exists(above):
            return Verdict.cannot_say(f"{above}: is a link to what is not there")
        above = os.path.dirname(above)
    return Verdict.no(NO_FILE)


class _Found:
    """The result of a look-up: the hash `stored` for a name, or None. Without one, `decoy` is a
    hash of the file that takes the same time to check, and `known` says which other names have a
    line."""

    __slots__ = ("decoy", "known", "stored")

    def __init__(self, stored: bytes | None, decoy: bytes, known: list[bool]) -> None:
        self.stored = stored
        self.decoy = decoy
        self.known = known


def _look_up(path: str, names: list[bytes], others: list[list[bytes]]) -> _Found:
    """Find the first line with one of `names`; if there is none, look for each entry of `others`.

    This process becomes the session, which must know nothing of other users. So the file is read
    into one buffer; no other line is copied out of it, and it is wiped. Raises OSError.
    """
    buffer = _content(path)
    try:
        found = [position for name in names if (position := _line_of(buffer, name)) >= 0]
        if found:
            return _Found(_hash_in(buffer, min(found)), b"", [])
        known = [any(_line_of(buffer, name) >= 0 for name in one) for one in others]
        return _Found(None, _first_hash(buffer) if names else b"", known)
    finally:
        buffer[:] = bytes(len(buffer))


def _content(path: str) -> bytearray:
    """Read a file into one buffer, which the caller wipes. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(os.fstat(file.fileno()).st_size)
        length = file.readinto(buffer)
        while (got := file.readinto(memoryview(buffer)[length:])) > 0:
            length += got
    return buffer


def _files(template: Template) -> list[str]:
    """The existing files whose names the template can make, at most `MAX_FILES`."""
    paths = [""]
    pattern = "\0".join(literal for literal, _, _ in template.parts)
    for part in pattern.split("/")[1:]:
        before, variable, rest = part.partition("\0")
        if not variable:
            paths = [f"{path}/{part}" for path in paths]
            continue
        after, found = rest.rpartition("\0")[2], []
        for path in paths:
            try:
                names = sorted(os.listdir(path or "/"))
            except OSError:
                continue  # perhaps it is no directory
            names = [name for name in names if name.startswith(before) and name.endswith(after)]
            found += [f"{path}/{name}" for name in names if before or not name.startswith(".")]
        paths = found[:MAX_FILES]
    return paths


def _has_plaintext(path: str) -> bool:
    """Does a line of a file have a password in plain text? An empty one does not count."""
    try:
        buffer = _content(path)
    except OSError:
        return False  # a login will say why
    lowered = buffer.lower()
    try:
        return any(
            _has_scheme(lowered, b":{%b%b" % (scheme.encode(), end))
            for scheme in passwords.PLAINTEXT
            for end in (b"}", b".")
        )
    finally:
        buffer[:] = lowered[:] = bytes(len(buffer))


def _has_scheme(buffer: bytearray, mark: bytes) -> bool:
    """Is there a line whose hash begins with `mark`, and goes on behind it?"""
    position = buffer.find(mark)
    while position >= 0:
        start = buffer.rfind(b"\n", 0, position) + 1
        while start < position and buffer[start] in BLANKS:
            start += 1
        is_entry = start < position and buffer[start] != HASH
        end = position + len(mark)
        if (
            is_entry
            and buffer.find(b":", start) == position
            and buffer[end : end + 1].strip(b"\r\n:")
        ):
            return True
        position = buffer.find(mark, end)
    return False


def _line_of(buffer: bytearray, name: bytes) -> int:
    """The offset of the colon in the first line for a name, or -1."""
    if not name or name[0] in BLANKS or name[0] == HASH or b":" in name or b"\n" in name:
        return -1  # no line can be for such a name
    wanted = name + b":"
    position = buffer.find(wanted)
    while position >= 0:
        start = position
        while start > 0 and buffer[start - 1] in BLANKS:
            start -= 1
        if start == 0 or buffer[start - 1] == NEWLINE:
            return position + len(name)
        position = buffer.find(wanted, position + 1)
    return -1


def _hash_in(buffer: bytearray, colon: int) -> bytes:
    """The field behind a colon. Blanks at its end may belong to a password."""
    end = buffer.find(b"\n", colon)
    end = len(buffer) if end < 0 else end
    next_colon = buffer.find(b":", colon + 1, end)
    if next_colon >= 0:
        return bytes(buffer[colon + 1 : next_colon])
    return bytes(buffer[colon + 1 : end]).rstrip(b"\r")


def _first_hash(buffer: bytearray) -> bytes:
    """The hash of the first line that has one; b"" if none has."""
    start = 0
    while start < len(buffer):
        end = buffer.find(b"\n", start)
        end = len(buffer) if end < 0 else end
        while start < end and buffer[start] in BLANKS:
            start += 1
        colon = buffer.find(b":", start, end)
        if colon >= 0 and buffer[start] != HASH and (stored := _hash_in(buffer, colon)):
            return stored
        start = end + 1
    return b""


driver = Flatfile
