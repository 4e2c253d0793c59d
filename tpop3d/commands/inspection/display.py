"""Turn octets of mail into short, printable text for a terminal."""

from __future__ import annotations

import binascii
import re

LONGEST = 1000  # octets of a field that are read
_FIELD = re.compile(rb"\nsubject:((?:[^\n]|\n[ \t])*)", re.IGNORECASE)
_WORD = re.compile(rb"=\?([a-z0-9._-]+)(?:\*[^?]*)?\?([bq])\?([^? ]*)\?=", re.IGNORECASE)
_BETWEEN = re.compile(rb"\?=[ \t\r\n]+=\?")  # blanks between two encoded words are not shown


def subject(header: bytes) -> bytes:
    """Return the raw subject of a header that begins with an LF; b"" if it has none."""
    found = _FIELD.search(header)
    return found[1].strip()[:LONGEST] if found else b""


def readable(octets: bytes, length: int) -> str:
    """Return at most `length` printable characters.

    Encoded words (RFC 2047) are decoded, blanks become one, and everything else is escaped.
    """
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
    """Decode an encoded word; returns the word itself if it cannot be decoded."""
    try:
        if word[2] in b"bB":
            octets = binascii.a2b_base64(word[3])
        else:
            octets = binascii.a2b_qp(word[3], header=True)
        return octets.decode(word[1].decode())
    except (ValueError, LookupError, OSError):  # OSError: we may not load the codec
        return word[0].decode()


def _decoded(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
