"""Messages that clients and servers have stumbled over, and how each must arrive."""

import re
from collections.abc import Iterable

_HEADER = (
    b"Return-Path: <ann@example.org>\n"  # getmail would add it
    b"From: Ann Example <ann@example.org>\n"
    b"To: bob@example.org\n"
    b"Subject: %s\n"
    b"Date: Tue, 07 Mar 2000 12:00:00 +0000\n"
    b"Message-ID: <%d@example.org>\n"
)


def message(number: int, subject: bytes, body: bytes, fields: bytes = b"") -> bytes:
    return _HEADER % (subject, number) + fields + b"\n" + body


EIGHT_BIT = (
    b"MIME-Version: 1.0\nContent-Type: text/plain; charset=%s\nContent-Transfer-Encoding: 8bit\n"
)

MESSAGES = [
    message(1, b"plain", b"Hello.\n\n>From here on, plain text.\nFrom inside a paragraph, too.\n"),
    message(2, b"dots", b".\n..\n.hidden\n...\n\n.\nlast\n.\n"),
    message(3, b"latin", b"na\xefve \xa9 \xff\n", EIGHT_BIT % b"iso-8859-1"),
    message(4, b"utf-8", "grüße, žluťoučký kůň, 漢字\n".encode(), EIGHT_BIT % b"utf-8"),
    message(5, b"crlf", b"a line\r\nanother\r\n\r\n.dot\r\n"),
    message(6, b"long lines", (b"x" * 990 + b"\n") * 40),
    message(7, b"blank lines", b"\n\n\nbetween\n\n\n"),
    message(8, b"empty body", b""),
    message(9, b"no newline at the end", b"the end"),
]


def spool_of(messages: Iterable[bytes]) -> bytes:
    """An mbox: after each message an empty line, but after one that has no last newline."""
    separator = b"From ann@example.org Tue Mar  7 12:00:00 2000\n"
    return b"".join(
        separator + message + (b"\n" if message.endswith(b"\n") else b"") for message in messages
    )


def on_the_wire(message: bytes) -> bytes:
    """The octets RETR sends, before dot-stuffing."""
    lines = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    return lines if lines.endswith(b"\r\n") else lines + b"\r\n"
