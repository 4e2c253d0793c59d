"""Spools as other programs and other times have left them, in real sessions."""

import pytest

import doors
from protocol import as_sent, run_server
from spools import content_of

LOGIN = b"USER anna\r\nPASS secret\r\n"
FROM = b"From a@example.org Sun Nov 22 08:00:00 2026\n"
INTERNAL = (
    FROM + b"Date: 22 Nov 2026 08:00:00 +0000\n"
    b"From: Mail System Internal Data <MAILER-DAEMON@mail.example.org>\n"
    b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\n"
    b"X-IMAP: 1795638925 0000000002\nStatus: RO\n\n"
    b"This text is part of the internal format of your mail folder, and is not\n"
    b"a real message.  It is created automatically by the mail system software.\n\n"
)
QUOTED = [
    FROM + b"Subject: mboxo\n\n>From here on\n>>From deeper\n\n",
    FROM + b"Subject: mboxrd\n\n>From here on\n\n>From after an empty line\n\n",
]
CRLF = [message.replace(b"\n", b"\r\n") for message in QUOTED]

# What precedes the messages that are shown, and these.
SPOOLS = {
    "quoted From": (b"", QUOTED),
    "c-client": (INTERNAL, QUOTED),
    "c-client alone": (INTERNAL, []),
    "CRLF": (b"", CRLF),
    "CRLF and LF": (b"", [*CRLF, *QUOTED]),
    "no final newline": (b"", [*QUOTED, QUOTED[0].rstrip(b"\n")]),
    "CRLF without a final newline": (b"", [*CRLF, CRLF[0].rstrip(b"\r\n")]),
}


@pytest.mark.parametrize("spool", SPOOLS.values(), ids=SPOOLS)
def test_messages_are_sent_as_stored_and_removed_alone(site, spool):
    before, messages = spool
    site.add("anna", before + b"".join(messages))
    while messages:
        contents = [content_of(message) for message in messages]
        with doors.inetd(site) as wire:
            wire.login("anna")
            sizes = [len(as_sent(content)) for content in contents]
            assert wire.ask("STAT") == b"+OK %d %d\r\n" % (len(sizes), sum(sizes))
            for number, content in enumerate(contents, 1):
                assert wire.ask_long(f"RETR {number}")[1] == as_sent(content)
            assert wire.ask("DELE 1").startswith(b"+OK")
            assert wire.ask("QUIT").startswith(b"+OK")
        messages = messages[1:]
        assert site.spool("anna").read_bytes() == before + b"".join(messages)
    output, _ = run_server(site, [LOGIN + b"STAT\r\nQUIT\r\n"])
    assert output.splitlines()[-2] == b"+OK 0 0"


GARBAGE = {
    0: b"Subject: no From line\n\ntext\n\n" + QUOTED[0],
    2: b"\n\n>From a@example.org\n\n" + QUOTED[0],
    4: b"\r\n\r\n\0\0\0\n\n" + QUOTED[0],
}


@pytest.mark.parametrize("offset", GARBAGE)
def test_garbage_is_refused_logged_with_its_offset_and_never_touched(site, offset):
    site.add("anna", GARBAGE[offset])
    before = site.spool("anna").stat()
    output, log = run_server(site, [LOGIN + b"DELE 1\r\nQUIT\r\n"])
    assert output.splitlines()[-1].startswith(b"-ERR [SYS/PERM] ")
    assert b"anna: not an mbox, at offset %d stands something else" % offset in log
    assert site.spool("anna").read_bytes() == GARBAGE[offset]
    after = site.spool("anna").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
