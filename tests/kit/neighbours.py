"""Real programs that deliver to mailspools."""

import os
import pwd
import re
import smtplib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from doors import free_port
from mailsite import (
    CHECKOUT,
    IS_ROOT,
    MAIL_USER,
    PATIENCE,
    Command,
    Site,
    as_mail_user,
    end,
    need,
    poll,
)

MESSAGE = "From: d@example.org\nTo: anna@example.org\nSubject: {number}\n\nnumber {number}\n"
SENDER = "d@example.org"
# Postfix finds the first one in the system; for the others it has aliases.
USERS = [MAIL_USER.pw_name, "anna", "bob", "carl", "dora", "emil"]


def numbers_in(octets: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^number (\d+)\r?$", octets, re.MULTILINE)]


def run_as_mail_user(
    site: Site, *command: object, said: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a program as the mailbox's user; returns what came of it."""
    environment = {"PATH": os.defpath, "HOME": str(site.spools), "USER": MAIL_USER.pw_name}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        timeout=6 * PATIENCE,
        input=said,
        **as_mail_user(site.spools, environment),
    )


class Deliverer:
    """One that is started for each message; it takes the dotlock, then fcntl.

    `shares`: may its spool be another one's, too?
    """

    TEMPFAIL = os.EX_TEMPFAIL
    shares = True
    message = MESSAGE

    def __init__(self, site: Site, patience: int) -> None:
        self.site = site
        self.patience = patience  # seconds, after which those that can give up on a lock
        self.seconds: list[float] = []  # from start to end of each delivery
        self.gave_up = 0
        self.prepare()

    def prepare(self) -> None:
        """Make what the program wants to find."""

    def command(self, spool: Path) -> Command:
        """The command line that delivers what is on stdin into a spool."""
        raise NotImplementedError

    def write(self, name: str, text: str) -> Path:
        path = self.site.path / name
        path.write_text(text)
        path.chmod(0o600)
        self.site.give_to_mail_user(path)
        return path

    def deliver(self, user: str, number: int) -> None:
        """Deliver a message; if the program gives up it is run again, as a mail server would."""
        started = time.monotonic()
        said = self.message.format(number=number).encode()
        while True:
            done = self.run(self.site.spool(user), said)
            if done.returncode != self.TEMPFAIL:
                break
            self.gave_up += 1
            assert self.gave_up < 20, done
        assert done.returncode == 0, done
        self.seconds.append(time.monotonic() - started)

    def run(self, spool: Path, said: bytes) -> subprocess.CompletedProcess[bytes]:
        return run_as_mail_user(self.site, *self.command(spool), said=said)

    def finish(self) -> None:
        """Wait for what is under way."""

    def close(self) -> None:
        """End what was started."""


class Procmail(Deliverer):
    """It never gives up. Between two tries it sleeps for whole seconds, here mostly not at all."""

    def prepare(self) -> None:
        self.recipe = self.write("procmailrc", "LOCKSLEEP=0\n:0:\n$DEFAULT\n")

    def command(self, spool: Path) -> Command:
        return need("procmail"), "-f", SENDER, "-m", f"DEFAULT={spool}", self.recipe


class Maildrop(Deliverer):
    """It never gives up. Between two tries it sleeps for whole seconds, here not at all."""

    def prepare(self) -> None:
        self.recipe = self.write("mailfilter", 'LOCKSLEEP=0\nto "$1"\n')

    def command(self, spool: Path) -> Command:
        return need("maildrop"), "-f", SENDER, self.recipe, spool


class Dovecot(Deliverer):
    """It gives up, one second early at most. It adds headers to messages of others, and then keeps
    both locks for up to a second, until the spool can have another time of change."""

    def prepare(self) -> None:
        self.program = need("/usr/lib/dovecot/dovecot-lda")
        self.home = self.site.path / "dovecot"
        self.home.mkdir()
        self.site.give_to_mail_user(self.home)
        self.conf = self.write(
            "dovecot.conf",
            "log_path = /dev/stderr\n"
            "mbox_write_locks = dotlock fcntl\n"
            f"mbox_lock_timeout = {self.patience}s\n",
        )

    def command(self, spool: Path) -> Command:
        location = f"mail_location=mbox:{self.home}:INBOX={spool}:INDEX=MEMORY"
        return self.program, "-c", self.conf, "-o", location, "-f", SENDER


class Postfix:
    """A whole Postfix, unpacked and not installed, whose local(8) delivers.

    Between two tries it sleeps for a second, more or less, so it is given some more of them; after
    the last it would defer the mail.
    """

    gave_up = 0
    shares = True

    PROGRAMS = CHECKOUT / ".unpacked/postfix/usr/lib/postfix"
    SERVICES = """
        127.0.0.1:{port} inet n - n - - smtpd
        cleanup unix n - n - 0 cleanup
        qmgr unix n - n 300 1 qmgr
        rewrite unix - - n - - trivial-rewrite
        bounce unix - - n - 0 bounce
        defer unix - - n - 0 bounce
        trace unix - - n - 0 bounce
        error unix - - n - - error
        retry unix - - n - - error
        local unix - n n - 4 local
        postlog unix-dgram n - n - 1 postlogd
    """
    QUEUES = "active bounce corrupt defer deferred flush hold incoming maildrop private public"

    def __init__(self, site: Site, patience: int) -> None:
        if not (IS_ROOT and self.PROGRAMS.exists()):
            pytest.skip("Postfix is not unpacked, or this is not root")
        self.site = site
        self.log = site.path / "postfix.log"
        self.sent = 0
        self.connection: smtplib.SMTP | None = None
        self.port = free_port()
        self.conf = self.configure(patience)
        # -s: in the foreground. At its end it ends its process group.
        self.process = subprocess.Popen(
            [self.PROGRAMS / "sbin/master", "-c", self.conf, "-s"],
            env={"PATH": os.defpath, "LD_LIBRARY_PATH": str(self.PROGRAMS)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.connection = poll(self.connect, "Postfix to listen")
        except AssertionError:
            self.close()
            raise

    def configure(self, patience: int) -> Path:
        conf = self.site.path / "postfix"
        owner = pwd.getpwnam("daemon").pw_uid
        queues = conf / "queue"
        for directory in (conf, queues, queues / "pid"):
            directory.mkdir(mode=0o755)
        for directory in (conf / "data", *(queues / name for name in self.QUEUES.split())):
            directory.mkdir(mode=0o700)
            os.chown(directory, owner, -1)
        aliases = conf / "aliases"
        aliases.write_text("".join(f"{user} {self.site.spool(user)}\n" for user in USERS[1:]))
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": queues,
            "data_directory": conf / "data",
            "daemon_directory": self.PROGRAMS / "sbin",
            "shlib_directory": self.PROGRAMS,
            "import_environment": f"LD_LIBRARY_PATH={self.PROGRAMS} MAIL_CONFIG={conf}",
            "mail_owner": "daemon",
            "setgid_group": "games",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "myhostname": "mail.example.org",
            "mydestination": "example.org",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "smtpd_client_event_limit_exceptions": "static:all",
            "local_recipient_maps": "",
            "alias_maps": f"texthash:{aliases}",
            "alias_database": "",
            "biff": "no",
            "mail_spool_directory": self.site.spools,
            "mailbox_delivery_lock": "fcntl, dotlock",
            "deliver_lock_attempts": 10 * patience,
            "maillog_file": self.log,
            "maillog_file_prefixes": self.site.path,
        }
        (conf / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in settings.items()))
        services = "".join(f"{line.strip()}\n" for line in self.SERVICES.strip().splitlines())
        (conf / "master.cf").write_text(services.format(port=self.port))
        return conf

    def connect(self) -> smtplib.SMTP | None:
        try:
            return smtplib.SMTP("127.0.0.1", self.port, "localhost", PATIENCE)
        except OSError:
            return None

    def deliver(self, user: str, number: int) -> None:
        message = MESSAGE.format(number=number)
        assert self.connection is not None
        self.connection.sendmail(SENDER, [f"{user}@example.org"], message)
        self.sent += 1

    def outcomes(self) -> list[tuple[str, float]]:
        """What came of each delivery, and how many seconds local(8) took for it."""
        log = self.log.read_text() if self.log.exists() else ""
        found = re.findall(r"local\[.*delays=(?:[^/]*/){3}([\d.]+),.* status=(\w+)", log)
        return [(status, float(seconds)) for seconds, status in found]

    @property
    def seconds(self) -> list[float]:
        return [seconds for _, seconds in self.outcomes()]

    def finish(self) -> None:
        poll(lambda: len(self.outcomes()) >= self.sent, "Postfix to deliver", 60 * PATIENCE)
        assert {status for status, _ in self.outcomes()} <= {"sent"}, self.log.read_text()

    def close(self) -> None:
        if self.connection:
            self.connection.close()
        end(self.process)


AnyDeliverer = Deliverer | Postfix


@contextmanager
def without_access_times(directory: Path) -> Iterator[None]:
    """Mount a directory on itself so that who reads a file leaves its access time alone.

    Where a spool was read in the second of its delivery, procmail holds both locks for a second
    more, whoever waits for them. Many sites mount their spools like this.
    """
    if not IS_ROOT:
        pytest.skip("only root can mount")
    done = subprocess.run(["mount", "--bind", directory, directory], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting does not work here: {done.stderr.decode()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,noatime", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", directory], check=True)
