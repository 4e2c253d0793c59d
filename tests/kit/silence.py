"""Hosts of a database that say nothing: a server that is stopped, and a listener that asks it."""

import re
import signal
import sys
from typing import Self

from databases import MariaDB
from doors import Door
from mailsite import poll

# How long a host has; how long it may cost each login; what is left for other things; and when a
# silent one is tried again.
CODE = """
import sys
from tpop3d.auth import mysql_database as database
from tpop3d.listener import hosts
database.CONNECT_SECONDS = {connect}
database.COSTLY = {costly}
database.LAST_WORD = {last_word}
hosts.RETRY = {retry}
from tpop3d.cli import main
raise SystemExit(main(sys.argv[1:]))
"""
NEVER = 1e6


def server(
    connect: float = 1, costly: float = 0.5, last_word: float = 0.25, retry: float = NEVER
) -> list[str]:
    """The server's command with these times."""
    code = CODE.format(connect=connect, costly=costly, last_word=last_word, retry=retry)
    return [sys.executable, "-c", code]


class Stopped:
    """While it is entered, a server's process is stopped: the kernel takes connections for it."""

    def __init__(self, server: MariaDB) -> None:
        self.server = server

    def __enter__(self) -> Self:
        assert self.server.process is not None
        self.server.process.send_signal(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()

    def go_on(self) -> None:
        if self.server.process is not None:  # it may have been killed
            self.server.process.send_signal(signal.SIGCONT)


def asked(server: MariaDB) -> int:
    """How many connections there were to it, besides those of this function."""
    rows = server.sql("SHOW GLOBAL STATUS LIKE 'Connections'", "")
    server.ours += 1
    return int(rows[0].split("\t")[1]) - server.ours


def attempt(door: Door, name: str = "ann@example.org", password: str = "secret") -> bytes:
    """What is said of a login; somebody who got in leaves."""
    wire = door.connect()
    assert wire.connection is not None
    wire.connection.settimeout(60)
    assert wire.line().startswith(b"+OK")
    wire.ask(f"USER {name}")
    reply = wire.ask(f"PASS {password}")
    wire.ask("QUIT")
    wire.close()
    return reply


def count(door: Door, pattern: str) -> int:
    """How many lines of the log have this."""
    return sum(pattern in line for line in door.logs.lines())


def wait_for(door: Door, pattern: str) -> str:
    """The first line of the log in which the regular expression is found."""
    found = poll(lambda: [one for one in door.logs.lines() if re.search(pattern, one)], pattern, 60)
    return found[0]


def wait_for_count(door: Door, pattern: str, number: int) -> None:
    poll(lambda: count(door, pattern) >= number, f"{number} lines with {pattern!r}", 60)
