"""The init that the tests bring for where they are pid 1 themselves."""

import subprocess
import sys

import pytest

from mailsite import CHECKOUT, IS_ROOT, PATIENCE, need

DAEMON = """
import os, signal, sys
sys.path.insert(0, "tests/kit")
from firstprocess import leave_to_init
from mailsite import poll
assert os.getpid() == 1
leave_to_init()
assert os.getppid() == 1
ours, theirs = os.pipe()
if not os.fork():
    if not (pid := os.fork()):
        signal.pause()
    os.write(theirs, b"%d" % pid)
    os._exit(0)
os.wait()
daemon = int(os.read(ours, 20))
os.kill(daemon, signal.SIGTERM)
poll(lambda: not os.path.exists(f"/proc/{daemon}"), "somebody to wait for it")
END
"""
ENDS = {"sys.exit(3)": 3, "": 0, "os.kill(os.getpid(), signal.SIGKILL)": 128 + 9}


@pytest.mark.skipif(not IS_ROOT, reason="only root makes pid namespaces")
@pytest.mark.parametrize("end", ENDS)
def test_a_daemon_of_a_test_is_waited_for_and_the_end_is_that_of_the_tests(end):
    command = [need("unshare"), "-pf", "--mount-proc", "--kill-child", sys.executable, "-c"]
    done = subprocess.run(
        [*command, DAEMON.replace("END", end)],
        cwd=CHECKOUT,
        stderr=subprocess.PIPE,
        timeout=3 * PATIENCE,
    )
    assert (done.returncode, done.stderr) == (ENDS[end], b"")
