"""What the tests of `tpop3d --test-login` share."""

import subprocess
from collections.abc import Mapping

from authkit import tpop3d
from mailsite import ENVIRONMENT, Site
from spools import mbox

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")
OCTETS = 19 + 19  # with CRLFs
# A driver that is not ours: what it does when it is asked, and what it has besides.
DRIVER = """
import time
from tpop3d.auth.driver import Account, Verdict
class Driver:
    directives = {{}}
    checks_apop = False
    def __init__(self, settings): pass
    def authenticate(self, login): {}
    {}
"""


def attempt(
    site: Site,
    user: str = "anna",
    said: bytes = b"secret\n",
    *arguments: str,
    env: Mapping[str, str] = ENVIRONMENT,
) -> "Outcome":
    """Try a login, with this on stdin."""
    done = tpop3d(
        "--test-login", user, "-f", site.conf, *arguments, stdin=None, input=said, env=env
    )
    return Outcome(done)


class Outcome:
    """The exit code, all output, and its lines by their first words."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.status = done.returncode
        self.text = done.stdout.decode()
        self.stderr = done.stderr.decode()
        self.lines = [line.split(maxsplit=1) for line in self.text.splitlines()]
        self.words = [word for word, _ in self.lines]

    def of(self, word: str) -> list[str]:
        """What stands behind a word, wherever it stands at the start of a line."""
        return [rest for first, rest in self.lines if first == word]
