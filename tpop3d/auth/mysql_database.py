"""Asks a MySQL or MariaDB database on one or more hosts, through the package mysqlclient.

No connection stays open, and no password is kept: each `ask` reads it, connects, and closes. Each
host has a limited time to let us in. A thread may still wait for a host that is late; it ends with
the process.
"""

from __future__ import annotations

import _thread
from time import monotonic

from tpop3d.auth.hosts import MAX_HOSTS, Hosts
from tpop3d.config.addresses import host_and_port
from tpop3d.config.password_file import UnusablePasswordFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from tpop3d.auth.mysql_tls import Tls
    from tpop3d.config.password_file import PasswordFile
    from tpop3d.config.reader import Secret

    T = TypeVar("T")

PORT = 3306
NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%"  # host or address
CONNECT_SECONDS = 5  # for each host, with the look-up of its name and the handshake of TLS
LAST_WORD = 0.25  # further seconds, in which the library may say what it has waited for
COSTLY = 1.0  # seconds; a host that was not reached in them must not delay each login
ANSWER_SECONDS = 10  # for each answer; then the next host is asked
# Errors of MySQL: the character set of the column lacks letters of the name.
ILLEGAL_MIX_OF_COLLATIONS = (1267, 1270, 1271)
# Errors of the library: it has not reached the host. CR_CONNECTION_ERROR, CR_CONN_HOST_ERROR,
# CR_UNKNOWN_HOST, CR_SERVER_GONE_ERROR, CR_SERVER_LOST.
NOT_REACHED = (2002, 2003, 2005, 2006, 2013)
CLIENT_SSL = 2048  # a capability of servers (mysql.h)
# Debian's package of mysqlclient is 1.4.6. With MySQL's library it allows several statements in one
# query, until the server is told otherwise (enum_mysql_set_option in mysql.h). It cannot be told to
# check TLS.
MULTI_STATEMENTS_OFF = 1
KNOWS_TLS = (2, 1)
NO_TLS = "TLS needs mysqlclient 2.1 or later: pip install 'mysqlclient>=2.1'"


class Unreached(Exception):
    """We have not reached a host; the text says why, in our own words."""


class NotWanted(Unreached):
    """We have reached a host, and refuse to use it."""


class Unanswered(Exception):
    """No host has answered. The text says why, and holds neither user name nor password."""


class Impossible(Exception):
    """The name cannot be in the tables: their character set lacks its letters."""


class Host:
    """The place of a server: a host's name and port, or the path of a socket."""

    __slots__ = ("name", "port", "socket", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.name, self.port, self.socket = "", PORT, ""
        if text.startswith("/"):
            self.socket = text
            return
        self.name, port = host_and_port(text)
        if self.name.strip(NAME):
            raise ValueError(f"{text}: is no name of a host")
        if port:
            if not (port.isdecimal() and port.isascii() and 0 < int(port[:6]) < 65536):
                raise ValueError(f"{text}: there is no port {port!r}")
            self.port = int(port)
            if self.name == "localhost":
                self.name = "127.0.0.1"  # the library takes "localhost" for a socket, with any port

    def arguments(self, tls: Tls | None) -> dict[str, Any]:
        """The arguments of this place for mysqlclient. `tls` is used over a network, and not over a
        socket. Raises ValueError if systemd has not provided a file."""
        if self.socket:
            return {"unix_socket": self.socket}
        place: dict[str, Any] = {"host": self.name, "port": self.port}
        if tls is not None and self.name != "localhost":
            place |= tls.arguments()
        return place


def hosts(text: str) -> list[Host]:
    """Parse one or more `host`, `host:port` or `/path/of/a/socket`, separated by spaces. Raises
    ValueError, with a text for the administrator."""
    if not text:
        raise ValueError("needs at least one host")
    words = text.split()
    if len(words) > MAX_HOSTS:
        raise ValueError(f"must be at most {MAX_HOSTS} hosts")
    return [Host(word) for word in words]


class Database:
    """Asks the database `name` on the first of `hosts` that answers."""

    def __init__(
        self,
        hosts: list[Host],
        name: str,
        username: Secret,
        password: Secret | PasswordFile | None,
        tls: Tls | None,
    ) -> None:
        self.hosts = Hosts([host.text for host in hosts])
        self._hosts = hosts
        self._name = name
        self._username = username
        self._password = password
        self._tls = tls

    def ask(self, work: Callable[[Any], T]) -> T:
        """Call `work` with a connection to the first host that answers; returns its result.

        If it fails on one host, the next one is tried. Raises `Unanswered`, and what `work` raises;
        OSError if the configuration file can no longer be read.
        """
        username, password = self._secrets()
        problems: list[tuple[Host, Exception | str]] = []
        for number, host in enumerate(self._hosts):
            if number in self.hosts.silent:
                problems.append((host, "has not answered, and is tried again every few seconds"))
                continue
            problem, done = self._ask_one(number, username, password, work)
            if problem is None:
                return done[0]
            problems.append((host, problem))
        # This comes last: the text of a broken server may crash this process.
        raise Unanswered("; ".join(f"{host.text}: {_reason(e, username)}" for host, e in problems))

    def try_host(self, number: int) -> None:
        """Connect to a host, and note whether it answers."""
        try:
            self._ask_one(number, *self._secrets(), lambda connection: None)
        except (Unanswered, OSError):
            pass  # then no login is possible, and each says why

    def _secrets(self) -> tuple[str, str]:
        """Read user name and password. Raises `Unanswered` and OSError."""
        try:
            username = self._username.read()
            password = "" if self._password is None else self._password.read()
        except KeyError:
            raise Unanswered("user name or password is in the configuration no more") from None
        except UnusablePasswordFile as error:
            raise Unanswered(str(error)) from None
        if not username:
            raise Unanswered("no user name")  # the library would take the name of the system's user
        return username, password

    def _ask_one(
        self, number: int, username: str, password: str, work: Callable[[Any], T]
    ) -> tuple[Exception | str | None, list[T]]:
        """Try one host; returns the problem or None, and the result of `work` as a list."""
        import MySQLdb

        from tpop3d.auth import isolation

        host = self._hosts[number]
        # We stop before we are cut off, for then nobody would learn which host it was.
        limit = min(CONNECT_SECONDS + LAST_WORD, isolation.seconds_left() - LAST_WORD)
        if limit <= 0:
            return "there was no time left to ask it", []
        isolation.note(host.text)
        began = monotonic()
        try:
            connection = self._connect(host, username, password, limit)
        except (MySQLdb.Error, UnicodeError, Unreached) as error:
            took = monotonic() - began
            if _has_answered(error) and took < CONNECT_SECONDS:
                self.hosts.note(number, is_silent=False)
            elif took >= min(COSTLY, limit):
                self.hosts.note(number, is_silent=True)
            # Otherwise the question costs no time; but it does not show that a silent host is back.
            return (str(error) if isinstance(error, Unreached) else error), []
        self.hosts.note(number, is_silent=False)
        try:
            try:
                return None, [work(connection)]
            finally:
                connection.close()
        except (MySQLdb.Error, UnicodeError) as error:
            return error, []

    def _connect(self, host: Host, username: str, password: str, limit: float) -> Any:
        """Connect to a host within `limit` seconds. A thread connects, since the library limits
        neither the look-up of a name nor a connection as a whole.

        Raises `Unreached`, UnicodeError, and what the library raises.
        """
        import MySQLdb

        try:
            place = host.arguments(self._tls)
        except ValueError as error:
            raise Unreached(str(error)) from None
        is_old = MySQLdb.version_info < (2,)
        if "ssl_mode" in place and MySQLdb.version_info < KNOWS_TLS:
            raise Unreached(NO_TLS)
        outcome: list[Any] = []
        is_over = _thread.allocate_lock()
        is_over.acquire()

        def connect() -> None:
            try:
                connection = MySQLdb.connect(
                    **place,
                    **({} if is_old else {"multi_statements": False}),
                    user=username,
                    password=password,
                    database=self._name,
                    charset="utf8mb4",
                    use_unicode=False,
                    autocommit=True,
                    local_infile=0,  # or a server could ask for any file of ours
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=ANSWER_SECONDS,
                    write_timeout=ANSWER_SECONDS,
                )
                if "ssl_mode" in place and not connection.server_capabilities & CLIENT_SSL:
                    # The library of MariaDB connects without TLS, in spite of REQUIRED.
                    connection.close()
                    raise NotWanted("the server offers no TLS")
                if is_old:
                    connection.set_server_option(MULTI_STATEMENTS_OFF)
                outcome.append(connection)
            except BaseException as error:
                outcome.append(error)
            finally:
                is_over.release()

        _thread.start_new_thread(connect, ())
        if not is_over.acquire(timeout=limit):
            what = "" if host.socket else ", the look-up of its name included"
            raise Unreached(f"no answer in {limit:.0f} seconds{what}")
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


def _has_answered(error: Exception) -> bool:
    """Does the error show that a host has answered, whatever it said?"""
    if isinstance(error, Unreached):
        return isinstance(error, NotWanted)
    return error.args[:1] not in [(number,) for number in NOT_REACHED]


def execute(connection: Any, sql: str, parameters: tuple[str, ...] = ()) -> Any:
    """Run a query that has a `%s` for each parameter; returns the cursor."""
    cursor = connection.cursor()
    cursor.execute(sql, parameters)
    return cursor


def select(
    connection: Any, sql: str, parameters: tuple[str, ...] = ()
) -> tuple[list[tuple[bytes | None, ...]], int]:
    """Run a query; returns its rows, with values as octets, and the number of columns, which is 0
    if the query has no result set. Raises `Impossible`, and what the library raises."""
    import MySQLdb

    try:
        cursor = execute(connection, sql, parameters)
    except MySQLdb.OperationalError as error:
        # If the query compares columns that do not fit together, it fails for each name.
        if error.args[0] not in ILLEGAL_MIX_OF_COLLATIONS or "".join(parameters).isascii():
            raise
        raise Impossible from None
    rows = [tuple(_octets(value) for value in row) for row in cursor.fetchall()]
    return rows, len(cursor.description or ())


def _octets(value: object) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()


def _reason(error: Exception | str, username: str) -> str:
    """The text of the server or the client library, without the user name; or our own text."""
    import re

    if isinstance(error, str):
        return error
    if isinstance(error, UnicodeError):
        return "what it says is not text"
    number, words = (*error.args, "", "")[:2]
    shown = re.sub(rf"(?<!\w){re.escape(username)}(?!\w)", "...", str(words))
    shown = re.sub("'[^']*'@", "'...'@", shown)  # the text has only the beginning of a long name
    return f"{shown} ({number})" if shown else f"{type(error).__name__} ({number})"
