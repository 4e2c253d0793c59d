"""Whoever is killed while he removes messages, and where: the spool is the old or the new one."""

import os
import subprocess
import sys
import tempfile

from mailsite import CHECKOUT, ENVIRONMENT

PARTS = 13  # of all cases; no divisor of how many there are of anything
RUN = (3, 8)  # those that are run here, at the same time


def test_interrupted_at_any_call():
    """killing.py runs all cases; here is a part of them."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    processes = []
    try:
        with tempfile.TemporaryDirectory(dir=memory) as directory:
            for part in RUN:
                place = f"{directory}/{part}"
                os.mkdir(place)
                command = [sys.executable, "-S", CHECKOUT / "tests/kit/killing.py"]
                processes.append(
                    subprocess.Popen(
                        [*command, place, str(part), str(PARTS)],
                        stdout=subprocess.PIPE,
                        env=ENVIRONMENT,
                        text=True,
                    )
                )
            outputs = [process.communicate()[0] for process in processes]
            assert all(process.returncode == 0 for process in processes), outputs
    finally:
        for process in processes:
            process.kill()
            process.wait()
    cases = sum(map(int, outputs))
    print(f"{cases} interruptions")
    assert cases >= 1500
