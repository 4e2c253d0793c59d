"""A real MariaDB for the tests: private, on a socket and on a port of loopback."""

import importlib.util
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from mailsite import CHECKOUT, IS_ROOT, MAIL_USER, end, need, poll

SCHEMA = CHECKOUT / "tpop3d/auth/vmail-sql.sql"
DATABASE, USERNAME, PASSWORD = "mail", "tpop3d-reader", "hunter2-database-sesame"
MODEST = ["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--skip-log-bin"]
AS_ROOT = ["--user=root"] if IS_ROOT else []


def require():
    """Skip where there is no MariaDB, or no mysqlclient."""
    for program in ("mariadb-install-db", "mariadbd", "mariadb"):
        need(program)
    if not importlib.util.find_spec("MySQLdb"):
        pytest.skip("mysqlclient is not installed in this Python")


class MariaDB:
    """One server; `start` and `stop` it, and ask it as its administrator with `sql`."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="tpop3d-db-"))
        self.directory.chmod(0o755)
        self.data, self.socket = self.directory / "data", self.directory / "socket"
        self.log = self.directory / "log"
        self.options = []
        self.port = 0
        self.process = None
        done = subprocess.run(
            [need("mariadb-install-db"), "--no-defaults", f"--datadir={self.data}", *AS_ROOT]
            + ["--auth-root-authentication-method=normal", "--skip-test-db"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self):
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [need("mariadbd"), "--no-defaults", f"--datadir={self.data}", *AS_ROOT, *MODEST]
                + [f"--socket={self.socket}", f"--port={self.port}", "--bind-address=127.0.0.1"]
                + [f"--pid-file={self.directory}/pid", "--skip-name-resolve", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        poll(self.is_up, "MariaDB")
        return self

    def is_up(self):
        assert self.process.poll() is None, self.log.read_text()
        return self.client("SELECT 1").returncode == 0

    def client(self, sql, database=""):
        return subprocess.run(
            [need("mariadb"), "--no-defaults", f"--socket={self.socket}", "--user=root", "-N", "-B"]
            + ["--default-character-set=utf8mb4", *([database] if database else [])],
            input=sql,
            capture_output=True,
            text=True,
        )

    def sql(self, statements, database=DATABASE):
        """Run statements; returns the values of the last one, one row a line."""
        done = self.client(statements, database)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def stop(self):
        if self.process is not None:
            end(self.process)
            self.process = None

    def close(self):
        self.stop()
        shutil.rmtree(self.directory)

    # -- vmail-sql

    def furnish(self):
        """The tables as they ship, empty, and who may read them."""
        self.sql(f"DROP DATABASE IF EXISTS {DATABASE}; CREATE DATABASE {DATABASE}", "")
        self.sql(SCHEMA.read_text())
        for host in ("localhost", "127.0.0.1"):
            user = f"'{USERNAME}'@'{host}'"
            self.sql(
                f"DROP USER IF EXISTS {user}; CREATE USER {user} IDENTIFIED BY '{PASSWORD}';"
                f"GRANT SELECT ON {DATABASE}.* TO {user}"
            )

    def add_domain(self, domain, path, unix_user=MAIL_USER.pw_name):
        self.sql(
            "INSERT INTO domain (domain_name, path, unix_user) VALUES"
            f" ({quoted(domain)}, {quoted(str(path))}, {quoted(unix_user)})"
        )

    def add(self, local_part, domain, hashed, mbox_name=None):
        self.sql(
            "INSERT INTO popbox VALUES"
            f" ({quoted(local_part)}, {quoted(domain)}, {quoted(hashed)},"
            f" {quoted(mbox_name or local_part)})"
        )

    def settings(self, **more):
        """The directives for it."""
        more = {key.replace("_", "-"): value for key, value in more.items()}
        ours = {
            "enable": "yes",
            "hostname": self.socket,
            "database": DATABASE,
            "username": USERNAME,
            "password": PASSWORD,
        }
        return {f"auth-mysql-{key}": value for key, value in (ours | more).items()}


def quoted(text):
    """A literal; None is NULL."""
    if text is None:
        return "NULL"
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def connections(server):
    """How many there are, besides the one that asks."""
    return int(
        server.sql(
            "SELECT COUNT(*) - 1 FROM information_schema.processlist WHERE user <> ''"
            " AND command <> 'Daemon'"
        )[0]
    )
