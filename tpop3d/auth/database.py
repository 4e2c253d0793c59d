"""A MySQL or MariaDB database that is on one or more hosts, through the package mysqlclient.

Nothing stays open, and no password is kept: each `ask` reads it, connects, and closes.
"""

from __future__ import annotations

from tpop3d.addresses import host_and_port
from tpop3d.auth.passwordfile import Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from tpop3d.auth.passwordfile import PasswordFile
    from tpop3d.reader import Secret

    T = TypeVar("T")

PORT = 3306
NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%"  # a host's, an address
CONNECT_SECONDS = 5  # for each host
ANSWER_SECONDS = 10  # for each answer; then the next host is asked
# What MySQL says of comparing a name with a column whose character set does not have its letters.
ILLEGAL_MIX_OF_COLLATIONS = (1267, 1270, 1271)


class Unanswered(Exception):
    """No host has answered. Its text says why, and holds neither user name nor password."""


class Impossible(Exception):
    """What was asked for cannot be in the tables: their character set does not have it."""


class Host:
    """Where a server is: a host's name and port, or the path of a socket."""

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
                self.name = "127.0.0.1"  # "localhost" is a socket to the library, whatever the port

    def arguments(self, ssl_ca: str | None) -> dict[str, Any]:
        """How mysqlclient is told. With `ssl_ca`, what crosses a network is encrypted, and the
        server's certificate checked; a socket crosses none."""
        if self.socket:
            return {"unix_socket": self.socket}
        place: dict[str, Any] = {"host": self.name, "port": self.port}
        if ssl_ca and self.name != "localhost":
            place |= {"ssl": {"ca": ssl_ca}, "ssl_mode": "VERIFY_IDENTITY"}
        return place


def hosts(text: str) -> list[Host]:
    """One or more `host`, `host:port` or `/path/of/a/socket`, separated by spaces."""
    if not text:
        raise ValueError("needs at least one host")
    return [Host(word) for word in text.split()]


class Database:
    """The database `name` on the first of `hosts` that answers."""

    def __init__(
        self,
        hosts: list[Host],
        name: str,
        username: Secret,
        password: Secret | PasswordFile | None,
        ssl_ca: str | None,
    ) -> None:
        self._hosts = hosts
        self._name = name
        self._username = username
        self._password = password
        self._ssl_ca = ssl_ca

    def ask(self, work: Callable[[Any], T]) -> T:
        """What `work` gives for a connection to the first host with which it can be done.

        Raises `Unanswered`, and what `work` raises; OSError where the configuration file cannot be
        read any more.
        """
        import MySQLdb

        try:
            username = self._username.read()
            password = "" if self._password is None else self._password.read()
        except KeyError:
            raise Unanswered("user name or password is in the configuration no more") from None
        except Unusable as error:
            raise Unanswered(str(error)) from None
        if not username:
            raise Unanswered("no user name")  # the library would take that of the system's user
        problems: list[tuple[Host, Exception]] = []
        for host in self._hosts:
            try:
                connection = MySQLdb.connect(
                    **host.arguments(self._ssl_ca),
                    user=username,
                    password=password,
                    database=self._name,
                    charset="utf8mb4",
                    use_unicode=False,
                    autocommit=True,
                    multi_statements=False,
                    local_infile=0,  # or a server could ask for any file of ours
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=ANSWER_SECONDS,
                    write_timeout=ANSWER_SECONDS,
                )
                try:
                    return work(connection)
                finally:
                    connection.close()
            except (MySQLdb.Error, UnicodeError) as error:
                problems.append((host, error))
        # Only now: to look at what a broken server has said may be the end of this process.
        raise Unanswered("; ".join(f"{host.text}: {_reason(e, username)}" for host, e in problems))


def execute(connection: Any, sql: str, parameters: tuple[str, ...] = ()) -> Any:
    """Run a query with a `%s` for each parameter; returns the cursor."""
    cursor = connection.cursor()
    cursor.execute(sql, parameters)
    return cursor


def select(
    connection: Any, sql: str, parameters: tuple[str, ...] = ()
) -> tuple[list[tuple[bytes | None, ...]], int]:
    """The rows of a query, values as octets, and how many columns it has, 0 if it gives no rows.

    Raises `Impossible`.
    """
    import MySQLdb

    try:
        cursor = execute(connection, sql, parameters)
    except MySQLdb.OperationalError as error:
        # Columns that do not go together are the administrator's, and fail for each name.
        if error.args[0] not in ILLEGAL_MIX_OF_COLLATIONS or "".join(parameters).isascii():
            raise
        raise Impossible from None
    rows = [tuple(_octets(value) for value in row) for row in cursor.fetchall()]
    return rows, len(cursor.description or ())


def _octets(value: object) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()


def _reason(error: Exception, username: str) -> str:
    """What the server or the client library says, without the user name."""
    import re

    if isinstance(error, UnicodeError):
        return "what it says is not text"
    number, words = (*error.args, "", "")[:2]
    shown = re.sub(rf"(?<!\w){re.escape(username)}(?!\w)", "...", str(words))
    shown = re.sub("'[^']*'@", "'...'@", shown)  # a long one is cut off
    return f"{shown} ({number})" if shown else f"{type(error).__name__} ({number})"
