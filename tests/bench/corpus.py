"""Mail to measure with: seeded, so that every run has the same, and as mail is.

Text of ordinary lines, some with a dot in front; a third of the larger messages has an attachment
in base64. Every mailspool is written once, and copied for each server.
"""

import base64
import os
import random
import shutil
from pathlib import Path

WORDS = (
    b"mail server the a of to and in that it is was for on are with as at be this have from or "
    b"had by not but what all were when we there can an your which their said if do will each "
    b"about how up out them then she many some so these would other into has more her two like "
    b"him see time could no make than first been its who now people my made over did down only"
).split()
HEADERS = b"""\
From a%(n)d@example.org Sun Nov 22 08:00:00 2026
Return-Path: <a%(n)d@example.org>
Received: from mx.example.org (mx.example.org [192.0.2.25])
\tby mail.example.com (Postfix) with ESMTPS id 4XwT%(n)08X
\tfor <anna@example.com>; Sun, 22 Nov 2026 08:00:00 +0000 (UTC)
Message-ID: <%(n)d.1764000000@example.org>
Date: Sun, 22 Nov 2026 08:00:00 +0000
From: Somebody Else <a%(n)d@example.org>
To: Anna <anna@example.com>
Subject: %(subject)b
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8

"""


class Corpus:
    """The mailspools of one run, by user: how many messages, and octets of each about.

    `scale` divides what is large.
    """

    def __init__(self, directory, scale=1):
        self.directory = Path(directory)
        self.shapes = {
            "few": (10, 5_000),
            "many": (10_000 // scale, 10_000),
            "huge": (100_000 // scale, 10_000),
            "large": (1, 100_000_000 // scale),
        }

    def write(self):
        """Write each once. `many` and `huge` are made of the same pieces, in other orders."""
        self.directory.mkdir()
        for user, (messages, octets) in self.shapes.items():
            write_spool(self.directory / user, messages, octets)

    def give(self, user, path, owner):
        """A fresh copy for a server, on the disk already, so that no fsync pays for it."""
        shutil.copyfile(self.directory / user, path)
        os.chmod(path, 0o600)
        os.chown(path, owner.pw_uid, owner.pw_gid)
        # Some servers wait where a spool has just changed.
        os.utime(path, (1_764_000_000, 1_764_000_000))
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def write_spool(path, messages, octets):
    """An mbox of so many messages of about so many octets."""
    chance = random.Random(1939)
    text = _lines(chance, 4000)
    attachment = base64.encodebytes(chance.randbytes(200_000)).splitlines(keepends=True)
    with path.open("wb") as file:
        for number in range(messages):
            subject = b" ".join(chance.choices(WORDS, k=6))
            headers = HEADERS % {b"n": number, b"subject": subject}
            # From half to one and a half of what was asked for, but where there is one only.
            wanted = octets if messages == 1 else octets * (50 + number * 37 % 100) // 100
            file.write(headers)
            left = wanted - len(headers)
            while left > 0:
                lines = attachment if left > 4000 and number % 3 == 0 else text
                first = chance.randrange(len(lines) - 50)
                piece = b"".join(lines[first : first + min(50, 1 + left // 70)])
                file.write(piece)
                left -= len(piece)
            file.write(b"\n")


def _lines(chance, count):
    """Lines of text; one in a hundred begins with a dot, and none with `From `."""
    lines = []
    for number in range(count):
        line = b" ".join(chance.choices(WORDS, k=chance.randint(6, 14)))
        lines.append(b"." * (number % 100 == 0) + line + b"\n" * (1 + (number % 12 == 0)))
    return lines
