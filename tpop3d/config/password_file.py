"""A file that holds nothing but a password of the server's own. It is read when it is needed, and
kept nowhere."""

from __future__ import annotations

import os

from tpop3d.config.addresses import located

MAX_PASSWORD = 4096  # octets, more than any database takes


class UnusablePasswordFile(Exception):
    """The password cannot be read. The text says which file, and why, and quotes nothing of it."""


class PasswordFileNotGiven(UnusablePasswordFile):
    """The file is a credential of systemd's, and systemd has not started us."""


class PasswordFile:
    """An absolute path, or `$CREDENTIALS_DIRECTORY/NAME` (systemd.exec(5))."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> str:
        """Read the password as it stands in the file now, without the newline at its end.

        Raises `UnusablePasswordFile`. From here on the password is in the memory of this process.
        """
        try:
            path = located(self._path)
        except ValueError as error:
            raise PasswordFileNotGiven(str(error)) from None
        try:
            # Opening a pipe would wait until somebody writes to it.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                is_open_to_all = os.fstat(fd).st_mode & 0o004
                octets = os.read(fd, MAX_PASSWORD + 1)
            finally:
                os.close(fd)
        except OSError as error:
            from tpop3d.system import reasons

            raise UnusablePasswordFile(f"{path}: {reasons.why(error)}") from None
        if is_open_to_all:
            why = f"every user can read this password: chmod o-r {path}"
            raise UnusablePasswordFile(f"{path}: {why}")
        password = octets.removesuffix(b"\n").removesuffix(b"\r")
        if not password:
            raise UnusablePasswordFile(f"{path}: holds no password")
        if len(octets) > MAX_PASSWORD or b"\n" in password or b"\0" in password:
            why = "must hold one line, the password, and nothing else"
            raise UnusablePasswordFile(f"{path}: {why}")
        return os.fsdecode(password)
