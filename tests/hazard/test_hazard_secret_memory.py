"""A secret of the configuration is in no process that did not ask for it: memory is searched."""

import subprocess
import sys
import textwrap

import pytest

from mailsite import ENVIRONMENT

SECRET = "This-secret-is-Scheat"
PLAIN = "This-value-is-plain"


def disguised(text):
    """As the searching program has it, which must not find itself."""
    return bytes(c ^ 1 for c in text.encode()).decode()


PROGRAM = """
import sys, types
from tpop3d.auth import registry as drivers
from tpop3d.configuration import load
from tpop3d.config.directive import Directive

class Driver:
    directives = {"password": Directive(str, secret=True), "plain": Directive(str)}
    checks_apop = False
    def __init__(self, settings):
        self.settings = settings

module = types.ModuleType("secretive")
module.driver = Driver
sys.modules["secretive"] = module
drivers.BUILT_IN["secretive"] = "secretive"

DISGUISE = bytes(c ^ 1 for c in range(256))

def found(disguised):
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1][0] == "r" and "[v" not in line:
                memory.seek(start)
                if disguised.encode() in memory.read(end - start).translate(DISGUISE):
                    return True
    return False

config = load(sys.argv[1])
secret, plain = sys.argv[2:]
settings = config.drivers["secretive"].settings
print(found(plain), found(secret))
value = settings["password"].read()
print(found(secret))
"""


@pytest.mark.parametrize(
    "line",
    [
        "auth-secretive-password: {secret}",
        "   auth-secretive-password:{secret}   # comment",
        "auth-secretive-password: {secret}\r",
        "auth-secretive-password: \\\n{secret}",
        "auth-secretive-password: first \\\r\n  {secret}",
    ],
)
def test_only_who_reads_a_secret_has_it(tmp_path, line):
    conf = tmp_path / "tpop3d.conf"
    lines = ["auth-secretive-enable: yes", line.format(secret=SECRET)]
    lines.append(f"auth-secretive-plain: {PLAIN}")
    conf.touch(mode=0o600)
    conf.write_bytes("\n".join(lines).encode())
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), conf, disguised(SECRET), disguised(PLAIN)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.stderr == ""
    # The search works, as the plain value shows; the secret is not there before it is read.
    assert done.stdout.splitlines() == ["True False", "True"]
