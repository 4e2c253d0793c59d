"""auth-mysql: virtual domains in a MySQL or MariaDB database, through the package mysqlclient.

The default queries are for the tables of vmail-sql; see vmail-sql.sql beside this file.

The driver needs the user name and the password of the database, so it runs in a process of its own
(see `tpop3d.auth.isolation`): that process reads them from the configuration file or the password
file, connects, asks, closes, and exits, and the memory that they were in is gone.
"""

from __future__ import annotations

import os

from tpop3d.auth.driver import UNKNOWN, Account, Login, Verdict, groups_of, require, text
from tpop3d.auth.mysql_database import (
    KNOWS_TLS,
    NO_TLS,
    Database,
    Impossible,
    Unanswered,
    execute,
    hosts,
    select,
)
from tpop3d.auth.sql_query import query_or_none
from tpop3d.config.addresses import file_or_credential
from tpop3d.config.directive import Directive, absolute_path, boolean, group_id, user_id
from tpop3d.config.password_file import PasswordFile, PasswordFileNotGiven, UnusablePasswordFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tpop3d.auth.mysql_tls import Tls
    from tpop3d.auth.sql_query import Query
    from tpop3d.system.refusal import Refusal

SCHEME = "md5"  # the scheme of a hash that names none
VMAIL_SQL = (
    "SELECT CONCAT(domain.path, '/', popbox.mbox_name), popbox.password_hash, domain.unix_user,"
    " 'bsd', CONCAT(popbox.local_part, '@', popbox.domain_name)"
    " FROM popbox JOIN domain ON domain.domain_name = popbox.domain_name"
    " WHERE popbox.local_part = '$(local_part)' AND popbox.domain_name = '$(domain)'"
)
MAX_PATH = 4095  # octets; Linux opens no longer path
COLUMNS = ("mailbox path", "password hash", "unix user", "mailbox type", "name")  # last: optional
# The hash of some user. Its check takes the time that a real one takes, if a name has none. Only
# tables that we know can be asked for it.
VMAIL_SQL_DECOY = "SELECT password_hash FROM popbox WHERE password_hash IS NOT NULL LIMIT 1"


class MySQL:
    """Lets in the users that the queries find."""

    directives = {
        "hostname": Directive(hosts, "localhost"),
        "database": Directive(str),
        "username": Directive(str, secret=True),
        "password": Directive(str, secret=True),
        "password-file": Directive(file_or_credential),
        "ssl": Directive(boolean),
        "ssl-ca": Directive(absolute_path),
        "ssl-cert": Directive(file_or_credential),
        "ssl-key": Directive(file_or_credential),
        "mail-group": Directive(group_id),
        "mail-directory": Directive(absolute_path),
        "pass-query": Directive(query_or_none, VMAIL_SQL),
        "apop-query": Directive(query_or_none, VMAIL_SQL),
        "onlogin-query": Directive(query_or_none, "none"),
    }
    misspelled = {"databse": "database"}  # the spelling in the first README of the C program
    checks_apop = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        require("MySQLdb", "mysqlclient", extra="mysql")
        for needed in ("database", "username"):
            if not settings[needed]:
                raise ValueError(f"auth-mysql-{needed} must be given")
        file: str | None = settings["password-file"]
        if file and settings["password"]:
            raise ValueError("auth-mysql-password and auth-mysql-password-file are both given")
        self._password_file = PasswordFile(file) if file else None
        self._tls = _tls(settings)
        self._database = Database(
            settings["hostname"],
            settings["database"],
            settings["username"],
            self._password_file or settings["password"],
            self._tls,
        )
        self.hosts = self._database.hosts
        group = settings["mail-group"]
        self._gid: int | None = None if group is None else group.gid
        self._directory: str | None = settings["mail-directory"]
        self._pass_query: Query | None = settings["pass-query"]
        self._apop_query: Query | None = settings["apop-query"]
        self._on_login_query: Query | None = settings["onlogin-query"]
        self.on_login = self._note_login if self._on_login_query else None
        if self._pass_query is self._apop_query is None:
            raise ValueError("auth-mysql-pass-query and auth-mysql-apop-query are none")
        self.checks_apop = self._apop_query is not None
        # We assume that the tables of vmail-sql have hashes, and no passwords in plain text.
        self._has_plaintext = self.checks_apop and str(self._apop_query) != VMAIL_SQL
        self.warnings = []
        for key in ("ssl-ca", "ssl-cert", "ssl-key"):
            if (path := settings[key]) and path[0] == "/" and not os.path.exists(path):
                self.warnings.append(f"auth-mysql-{key}: there is no {path}")

    def has_plaintext(self) -> bool:
        """Has the administrator given a query for APOP?"""
        return self._has_plaintext

    def check(self) -> tuple[list[str], list[str]]:
        """Check the queries, the files of the password and of TLS, and the directory of all
        mailboxes; returns errors and warnings."""
        warnings: list[str] = []
        for kind, query in (("pass", self._pass_query), ("apop", self._apop_query)):
            if query is not None and not query.names:
                why = "has no variable such as $(user): it gives the same to all"
                warnings.append(f"auth-mysql-{kind}-query: {why}")
        if self._directory is not None and not os.path.isdir(self._directory):
            why = f"{self._directory}: there is no such directory; is the file system mounted?"
            warnings.append(f"auth-mysql-mail-directory: {why}")
        errors: list[str] = []
        if self._tls is not None:
            import MySQLdb

            errors, doubtful = self._tls.check()
            errors += [f"auth-mysql-ssl: {NO_TLS}"] if MySQLdb.version_info < KNOWS_TLS else []
            warnings += doubtful
        try:
            if self._password_file is not None:
                self._password_file.read()
        except PasswordFileNotGiven as error:
            warnings.append(f"auth-mysql-password-file: {error}; it cannot be checked here")
        except UnusablePasswordFile as error:
            errors.append(f"auth-mysql-password-file: {error}")
        return errors, warnings

    @staticmethod
    def preload() -> None:
        """Load the code that `authenticate` needs, once, before many children are forked."""
        import MySQLdb.connections  # `connect` would import it, and then the following
        import MySQLdb.converters  # noqa: F401

        from tpop3d.auth import isolation  # noqa: F401

    def try_host(self, number: int) -> None:
        """Try whether a host answers, and note that."""
        self._database.try_host(number)

    def authenticate(self, login: Login) -> Verdict:
        """Look a name up, and check the attempt against its row."""
        query = self._apop_query if login.password is None else self._pass_query
        if query is None:
            kind = "apop" if login.password is None else "pass"
            return Verdict.impossible(f"auth-mysql-{kind}-query is none")
        try:
            parameters = query.parameters(login)
        except UnicodeDecodeError:
            return Verdict.no("the name is not UTF-8")
        try:
            rows, columns, decoy, known = self._look_up(query, parameters, login)
        except Impossible:
            return Verdict.no("the tables' character set has no such name")
        except Unanswered as error:
            return Verdict.cannot_say(str(error))
        return self._judge(login, rows, columns, decoy, known)

    def _judge(
        self,
        login: Login,
        rows: list[tuple[bytes | None, ...]],
        columns: int,
        decoy: bytes,
        known: list[Login],
    ) -> Verdict:
        """Check an attempt against what `_look_up` has found."""
        if columns not in (len(COLUMNS) - 1, len(COLUMNS)):
            wanted = f"must give {', '.join(COLUMNS[:-1])}, and may give the {COLUMNS[-1]}"
            return Verdict.cannot_say(f"the query gives {columns} columns, and {wanted}")
        if len(rows) > 1:
            return Verdict.cannot_say(f"the query gives {len(rows)} rows for one name")
        if not rows:
            refusal = login.refusal(None, decoy, SCHEME)
            if refusal is None or refusal.reason == UNKNOWN:
                refusal = login.no_such_user(lambda other: other in known)
            return refusal
        path, stored, user, box_type, name = (*rows[0], login.name)[: len(COLUMNS)]
        refusal = login.refusal(stored, decoy, SCHEME)
        if path is None or stored is None or user is None or box_type is None or name is None:
            return Verdict.no(f"{COLUMNS[rows[0].index(None)]} is NULL")
        if refusal:
            return refusal
        # Most collations ignore letter case, and blanks at the end of a name.
        is_padded = b" " in (login.local_part[-1:], login.domain[-1:])
        if is_padded and columns < len(COLUMNS):
            return Verdict.no("the name ends with a blank, and the query does not give the user's")
        return self._account(name, path, user, box_type)

    def _look_up(
        self, query: Query, parameters: tuple[str, ...], login: Login
    ) -> tuple[list[tuple[bytes | None, ...]], int, bytes, list[Login]]:
        """Run the query; returns the rows, the number of columns, a decoy if there is no hash, and,
        if there are no rows, the other spellings that have some. Raises `Impossible` and
        `Unanswered`."""
        known: list[Login] = []

        def look_up(connection: Any) -> tuple[list[tuple[bytes | None, ...]], int, bytes]:
            rows, columns = select(connection, query.sql, parameters)
            if not rows and query.only_looks:
                known[:] = [
                    one.login
                    for one in login.spellings
                    if (one.login.domain or "domain" not in query.names)
                    and select(connection, query.sql, query.parameters(one.login))[0]
                ]
            if query.text != VMAIL_SQL or (rows and rows[0][1] is not None):
                return rows, columns, b""
            decoys, _ = select(connection, VMAIL_SQL_DECOY)
            return rows, columns, (decoys[0][0] if decoys else None) or b""

        return *self._database.ask(look_up), known

    def _account(self, name: bytes, path: bytes, user: bytes, kind: bytes) -> Verdict:
        """The verdict for a row whose password was right: a yes, unless the row is no use."""
        try:
            owner = user_id(text(user))
        except ValueError as error:
            return Verdict.cannot_say(f"unix user: {error}")
        if owner.uid == 0:
            return Verdict.no("root has no mailbox here")
        if kind.lower() != b"bsd":
            return Verdict.cannot_say(f"mailbox type: {text(kind)!r} is unknown here; there is bsd")
        parts = path.split(b"/")
        if parts[0] or not parts[-1] or b".." in parts or b"\0" in path or len(path) > MAX_PATH:
            return Verdict.cannot_say("mailbox path: must be that of a file, from the root")
        mailbox = text(path)
        required = [self._directory] if self._directory is not None else None
        if required and not mailbox.startswith(required[0].rstrip("/") + "/"):
            return Verdict.cannot_say(f"mailbox path: is not below {self._directory}")
        gid, lock_gid = groups_of(owner.gid, self._gid)
        account = Account(name, owner.uid, gid, [mailbox], required=required, lock_gid=lock_gid)
        return Verdict.yes(account)

    def _note_login(self, login: Login) -> Refusal | None:
        """Run the on-login query."""
        from tpop3d.system.refusal import Refusal  # not before the greeting

        query = self._on_login_query
        assert query is not None
        try:
            parameters = query.parameters(login)
        except UnicodeDecodeError:
            return Refusal("the name is not UTF-8")
        try:
            self._database.ask(lambda connection: execute(connection, query.sql, parameters))
        except Unanswered as error:
            return Refusal(str(error))
        return None


def _tls(settings: Mapping[str, Any]) -> Tls | None:
    """The settings of TLS with the database, or None. Raises ValueError if they do not fit
    together."""
    ca, cert, key = (settings[f"ssl-{one}"] for one in ("ca", "cert", "key"))
    if key and not cert:
        raise ValueError("auth-mysql-ssl-key is given, and auth-mysql-ssl-cert is not")
    if settings["ssl"] is False and (ca or cert):
        given = "ca" if ca else "cert"
        raise ValueError(f"auth-mysql-ssl is no, and auth-mysql-ssl-{given} is given")
    if not (settings["ssl"] or ca or cert):
        return None
    from tpop3d.auth.mysql_tls import Tls

    return Tls(ca, cert, key)


driver = MySQL
