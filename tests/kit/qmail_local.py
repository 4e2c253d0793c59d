"""One delivery to an mbox as qmail-local(8) makes it, and mbox(5) of qmail says it.

usage: qmail_local.py MBOX SENDER RECIPIENT <MESSAGE

It takes flock(2) and nothing else, for which it waits 30 seconds. Then it appends, through a buffer
of 1,024 octets: a From_ line, Return-Path and Delivered-To, the message with a ">" before each line
of From_ kind, and an empty line. Where a write fails it cuts off what it wrote.
"""

import fcntl
import os
import signal
import sys
import time

BUFFER = 1024  # octets
TEMPFAIL = 111


def deliver(mbox: str, sender: str, recipient: str) -> int:
    fd = os.open(mbox, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_CREAT, 0o600)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(TEMPFAIL))
    signal.alarm(30)
    fcntl.flock(fd, fcntl.LOCK_EX)
    signal.alarm(0)
    end = os.lseek(fd, 0, os.SEEK_END)
    try:
        with open(fd, "wb", buffering=BUFFER, closefd=False) as out:
            out.write(f"From {sender} {time.asctime(time.gmtime())}\n".encode())
            out.write(f"Return-Path: <{sender}>\nDelivered-To: {recipient}\n".encode())
            for line in sys.stdin.buffer:
                out.write(b">" * line.lstrip(b">").startswith(b"From ") + line)
                if not line.endswith(b"\n"):
                    out.write(b"\n")
            out.write(b"\n")
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, end)
        return TEMPFAIL
    return 0


if __name__ == "__main__":
    sys.exit(deliver(*sys.argv[1:]))
