"""A real MariaDB for the tests: private, on a socket and on a port of loopback."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import pytest

from authkit import text_of
from mailsite import (
    CHECKOUT,
    ENVIRONMENT,
    IS_ROOT,
    MAIL_USER,
    Command,
    Process,
    Settings,
    Site,
    end,
    need,
    poll,
)
from tpop3d.auth.driver import Verdict
from tpop3d.auth.switch import Switch
from tpop3d.configuration import load
from tpop3d.pop3.authorization import Attempt
from tpop3d.settings import Config

SCHEMA = CHECKOUT / "tpop3d/auth/vmail-sql.sql"
DATABASE, USERNAME, PASSWORD = "mail", "tpop3d-reader", "hunter2-database-sesame"
MODEST = ["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--skip-log-bin"]
MODEST += ["--max-user-connections=50"]  # without a number, none could be set later
AS_ROOT = ["--user=root"] if IS_ROOT else []


def require() -> None:
    """Skip where there is no MariaDB, or no mysqlclient."""
    for program in ("mariadb-install-db", "mariadbd", "mariadb"):
        need(program)
    if not importlib.util.find_spec("MySQLdb"):
        pytest.skip("mysqlclient is not installed in this Python")


class MariaDB:
    """One server; `start` and `stop` it, and ask it as its administrator with `sql`."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tpop3d-db-"))
        self.directory.chmod(0o755)
        self.data, self.socket = self.directory / "data", self.directory / "socket"
        self.log = self.directory / "log"
        # One that starts removes the temporary tables of others from a directory that is for all.
        self.environment = os.environ | {"TMPDIR": str(self.directory / "tmp")}
        (self.directory / "tmp").mkdir()
        self.options: list[str] = []
        self.port = 0
        self.process: Process | None = None
        self.ours = 0  # connections that `silence.asked` has made
        command = [need("mariadb-install-db"), "--no-defaults", f"--datadir={self.data}", *AS_ROOT]
        done = subprocess.run(
            [*command, "--auth-root-authentication-method=normal", "--skip-test-db"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> Self:
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        places = {
            "datadir": self.data,
            "socket": self.socket,
            "pid-file": self.directory / "pid",
            "port": self.port,
            "bind-address": "127.0.0.1",
        }
        command = [need("mariadbd"), "--no-defaults", *AS_ROOT, *MODEST, "--skip-name-resolve"]
        command += [f"--{key}={value}" for key, value in places.items()]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        poll(self.is_up, "MariaDB")
        return self

    def is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return self.client("SELECT 1").returncode == 0

    def command(self, database: str = "") -> list[str]:
        command = [need("mariadb"), "--no-defaults", f"--socket={self.socket}", "--user=root"]
        command += ["-N", "-B", "--unbuffered", "--default-character-set=utf8mb4"]
        return [*command, database] if database else command

    def client(self, sql: str, database: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(database), input=sql, capture_output=True, text=True)

    def sql(self, statements: str, database: str = DATABASE) -> list[str]:
        """Run statements; returns the values of the last one, one row a line."""
        done = self.client(statements, database)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
            self.process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    # -- vmail-sql

    def furnish(self) -> None:
        """The tables as they ship, empty, and who may read them."""
        self.sql(f"DROP DATABASE IF EXISTS {DATABASE}; CREATE DATABASE {DATABASE}", "")
        self.sql(SCHEMA.read_text())
        for host in ("localhost", "127.0.0.1"):
            user = f"'{USERNAME}'@'{host}'"
            self.sql(
                f"DROP USER IF EXISTS {user}; CREATE USER {user} IDENTIFIED BY '{PASSWORD}';"
                f"GRANT SELECT ON {DATABASE}.* TO {user}"
            )

    def add_domain(self, domain: str, path: str | Path, unix_user: str = MAIL_USER.pw_name) -> None:
        self.sql(
            "INSERT INTO domain (domain_name, path, unix_user) VALUES"
            f" ({quoted(domain)}, {quoted(str(path))}, {quoted(unix_user)})"
        )

    def add(
        self, local_part: str, domain: str, hashed: str | None, mbox_name: str | None = None
    ) -> None:
        self.sql(
            "INSERT INTO popbox VALUES"
            f" ({quoted(local_part)}, {quoted(domain)}, {quoted(hashed)},"
            f" {quoted(mbox_name or local_part)})"
        )

    def settings(self, **more: object) -> dict[str, object]:
        """The directives for it."""
        more = {key.replace("_", "-"): value for key, value in more.items()}
        ours: dict[str, object] = {
            "enable": "yes",
            "hostname": self.socket,
            "database": DATABASE,
            "username": USERNAME,
            "password": PASSWORD,
        }
        return {f"auth-mysql-{key}": value for key, value in (ours | more).items()}

    def config(self, directory: Path, general: Settings | None = None, **more: object) -> Config:
        """The configuration of a site with this driver, out of a file of its own."""
        file = directory / f"{len(list(directory.iterdir()))}.conf"
        file.touch(mode=0o600)
        file.write_text(
            text_of({"gatekeeper-user": "nobody", **self.settings(**more), **(general or {})})
        )
        return load(str(file))

    def serve(self, site: Site, spool: bytes = b"", **more: object) -> Site:
        """Let a site serve ann@example.org out of it, with the password secret."""
        self.add_domain("example.org", site.spools)
        self.add("ann", "example.org", "{plaintext}secret")
        site.add("ann", spool)
        ours: dict[str, object] = {"auth-flatfile-enable": "no", "auth-failure-delay-seconds": 0}
        site.configure(ours | self.settings(**more))
        return site


def decide(
    config: Config,
    name: str | bytes,
    password: bytes | None = b"secret",
    *,
    client: str = "",
    timestamp: bytes = b"",
    digest: bytes = b"",
) -> Verdict:
    """What the switch says, asking the driver in a process of its own as the server does."""
    name = name if isinstance(name, bytes) else name.encode()
    return Switch(config.drivers, config).decide(
        Attempt("USER", name, password, timestamp, digest), b"", client
    )


# The same, for an interpreter of its own: its version, that of the package and of the library, what
# a look at the files shows, and of each name after the configuration what is said of it.
DECIDE = """
import json, os, sys
from tpop3d.auth.switch import Switch
from tpop3d.configuration import load
from tpop3d.pop3.authorization import Attempt

file = f"/tmp/tpop3d-{os.getpid()}.conf"
with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as conf:
    conf.write(sys.argv[1])
config = load(file)
try:
    import MySQLdb
    from MySQLdb import _mysql

    driver = config.drivers["mysql"]
    versions = [*sys.version_info[:2]], [*MySQLdb.version_info[:2]], _mysql.get_client_info()
    said = []
    for name in sys.argv[2:]:
        attempt = Attempt("USER", name.encode(), password=b"secret")
        verdict = Switch(config.drivers, config).decide(attempt, b"", "")
        mailboxes = verdict.account.mailboxes if verdict.account else []
        said.append((verdict.answer, verdict.reason, *mailboxes))
    print(json.dumps((versions, driver.check(), said)))
finally:
    os.unlink(file)
"""


class Library:
    """How a command runs Python with a mysqlclient, or a library below that, of its own."""

    def __init__(self, command: Command, path: str | Path = CHECKOUT) -> None:
        self.command = command
        sbin = f"{ENVIRONMENT['PATH']}:/usr/sbin:/sbin"
        self.environment = ENVIRONMENT | {"PATH": sbin, "PYTHONPATH": str(path)}
        self.versions: tuple[list[int], list[int], str] | None = None
        self.problems: tuple[list[str], list[str]] | None = None
        self.log: str | None = None

    def decide(self, server: MariaDB, *names: str, **more: object) -> list[list[str]]:
        """What the switch says of names, with the password secret, by these directives."""
        content = text_of({"gatekeeper-user": "nobody"} | server.settings(**more))
        done = subprocess.run(
            [*self.command, "-c", DECIDE, content, *names],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self.log = done.stderr
        said: list[list[str]]
        self.versions, self.problems, said = json.loads(done.stdout)
        return said


def quoted(text: str | None) -> str:
    """A literal; None is NULL."""
    if text is None:
        return "NULL"
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def connections(server: MariaDB) -> int:
    """How many there are, besides the one that asks."""
    return int(
        server.sql(
            "SELECT COUNT(*) - 1 FROM information_schema.processlist WHERE user <> ''"
            " AND command <> 'Daemon'"
        )[0]
    )
