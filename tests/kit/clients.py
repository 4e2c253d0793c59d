"""Running a mail program as the ordinary user it wants to be, and seeing what it fetched."""

import os
import pty
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import doors
from mailsite import ENVIRONMENT, PATIENCE, AsUser, Site, as_mail_user, need
from samples import MESSAGES, on_the_wire

# What a program on a Unix machine makes of what is on the wire.
LOCAL = sorted(on_the_wire(message).replace(b"\r\n", b"\n") for message in MESSAGES)

# It does not end before the program that started it sleeps, that is: waits for it. getmail before
# 6.19.9 begins to watch for the end only after its fork(2). Of a delivery that is faster it learns
# nothing, and stands still for its timeout, 180 seconds.
DELIVER = """#!/bin/sh
cat >"$(mktemp {}/XXXXXX)" || exit
while grep -qs '^State:.[^S]' /proc/$PPID/status; do sleep 0.01; done
"""


class Client:
    """A mail program run by an ordinary user; several refuse to run as root."""

    def __init__(self, site: Site, door: doors.Door) -> None:
        self.door = door
        self.home = site.path / "home"
        self.mail = self.home / "mail"
        self.deliver = self.home / "deliver"
        self.site = site
        for directory in (self.home, self.mail):
            directory.mkdir(mode=0o700)
            site.give_to_mail_user(directory)
        self.write(self.deliver, DELIVER.format(self.mail), 0o700)

    def write(self, path: Path, text: str, mode: int = 0o600) -> None:
        path.write_text(text)
        path.chmod(mode)
        self.site.give_to_mail_user(path)

    def how_to_run(self) -> AsUser:
        environment = ENVIRONMENT | {"HOME": str(self.home), "TERM": "vt100"}
        return as_mail_user(self.home, environment)

    def run(
        self, program: str, *arguments: str | Path, said: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [need(program), *arguments],
            input=said,
            capture_output=True,
            timeout=3 * PATIENCE,
            **self.how_to_run(),
        )

    def run_on_terminal(self, program: str, *arguments: str | Path, typed: bytes = b"") -> bytes:
        """Run a program that wants a terminal, where this is typed; returns what it drew there."""
        keyboard, terminal = pty.openpty()
        with open(keyboard, "r+b", buffering=0) as screen:
            process = subprocess.Popen(
                [need(program), *arguments],
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,
                **self.how_to_run(),
            )
            os.close(terminal)
            screen.write(typed)
            # One that waits for a key would wait for ever.
            watchdog = threading.Timer(3 * PATIENCE, process.kill)
            watchdog.start()
            drawn = b""
            with suppress(OSError):  # EIO: the program has closed its side
                while part := screen.read(4096):
                    drawn += part
            process.wait()
            watchdog.cancel()
        return drawn

    def delivered(self) -> list[bytes]:
        return sorted(file.read_bytes() for file in self.mail.iterdir())
