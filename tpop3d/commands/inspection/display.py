"""Octets of mail as text that can be shown on a terminal: short, and of printable characters."""

from __future__ import annotations

import binascii
import re

LONGEST = 1000  # octets of a field that are looked at
_FIELD = re.compile(rb"\nsubject:((?:[^\n]|\n[ \t])*)", re.IGNORECASE)
_WORD = re.compile(rb"=\?([a-z0-9._-]+)(?:\*[^?]*)?\?([bq])\?([^? ]*)\?=", re.IGNORECASE)
_BETWEEN = re.compile(rb"\?=[ \t\r\n]+=\?")  # two encoded words, whose blanks are not shown


def subject(header: bytes) -> bytes:
    """The subject in a header that begins with an LF, as it stands there; b"" without one."""
    found = _FIELD.search(header)
    return found[1].strip()[:LONGEST] if found else b""


def readable(octets: bytes, length: int) -> str:
    """At most `length` characters: words of RFC 2047 decoded, blanks made one, what cannot be
    shown as an escape."""
    octets = octets[:LONGEST]
    text = _with_words(octets) if b"=?" in octets else _decoded(octets)
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join([c if c.isprintable() else _escape(c) for c in text])
    return text if len(text) <= length else text[: length - 3] + "..."


def _with_words(octets: bytes) -> str:
    octets = _BETWEEN.sub(b"?==?", octets)
    parts = []
    position = 0
    for word in _WORD.finditer(octets):
        parts += [_decoded(octets[position : word.start()]), _word(word)]
        position = word.end()
    return "".join([*parts, _decoded(octets[position:])])


def _word(word: re.Match[bytes]) -> str:
    """What an encoded word says; the word itself where that cannot be found out."""
    try:
        if word[2] in b"bB":
            octets = binascii.a2b_base64(word[3])
        else:
            octets = binascii.a2b_qp(word[3], header=True)
        return octets.decode(word[1].decode())
    except (ValueError, LookupError, OSError):  # the last: of a codec that we may not load
        return word[0].decode()


def _decoded(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
