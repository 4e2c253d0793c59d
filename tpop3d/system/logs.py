"""The log: one line for each event, which nobody can forge, to the journal, syslog or stderr.

`event` builds lines of `key=value`. Values from the network are escaped: none contains a space, a
quote, a line end, or anything but printable ASCII.

Under systemd and with systemd-python, lines go to the journal with their fields, in place of
syslog. We are under systemd if stderr is the stream that JOURNAL_STREAM names (systemd.exec(5)).
The variable alone does not tell: servers of xinetd and shells inherit it, too.
"""

from __future__ import annotations

import os

from tpop3d.system.outlets import SOCKET, Event, Outlet, Stderr, Syslog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tpop3d.system.journald import JournalSocket

# The numbers of syslog(3).
_NAMES = "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"
LEVELS = {name: level for level, name in enumerate(_NAMES)}
FACILITIES = {
    name: number << 3
    for number, name in (
        *enumerate(("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp")),
        (9, "cron"), (10, "authpriv"), *[(16 + n, f"local{n}") for n in range(8)],
    )
}  # fmt: skip
_outlet: Outlet = Stderr()  # until `start`, so that mistakes in the configuration are seen
_to_journal = False  # do lines go to the journal in place of syslog?
_journal: JournalSocket | None = None  # None until it is needed
_sink: Callable[[int, str], None] | None = None
_facility = FACILITIES["mail"]
_threshold = LEVELS["info"]
MAX_OCTETS = 255  # of a value from the network; names that are let in are no longer
_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b"\"'\\")
_PRINTABLE = bytes(c for c in range(0x20, 0x7F) if c != 0x5C)


def open_log(facility: str, level: str, to_stderr: bool) -> None:
    """Set where the log goes, and the least level that is logged. The names of facility and level
    are those of syslog.conf(5)."""
    global _facility, _threshold, _to_journal
    _facility = FACILITIES[facility]
    _threshold = LEVELS[level]
    _to_journal = not to_stderr and (_journal is not None or _stderr_is_journal())
    if to_stderr:
        _let_out(Stderr)
    else:
        _use_syslog()


def trouble() -> str:
    """A warning where nobody will see the log, as far as that can be told now; else ""."""
    return no_syslogd(_outlet) if isinstance(_outlet, Syslog) and not _to_journal else ""


def no_syslogd(syslog: Syslog) -> str:
    """A warning where there is no syslogd, and what is to be done; else ""."""
    try:
        syslog.connect()
    except OSError as error:
        why = error.strerror or "it cannot be connected to"
        return f"{SOCKET}: {why}: nothing is logged; start a syslogd, or give log-stderr: yes"
    return ""


def prepare() -> None:
    """Import the code for the journal, if it is needed: now, while no client waits.

    The user whom a session becomes may not be allowed to read the program's own files.
    """
    global _journal
    if not _to_journal or _journal is not None:
        return
    try:
        from tpop3d.system.journald import JournalSocket

        _journal = JournalSocket()
    except ImportError:
        _leave_journal()


def _leave_journal() -> None:
    """Write to syslog from now on."""
    global _journal, _to_journal
    _journal, _to_journal = None, False
    _use_syslog()


def _stderr_is_journal() -> bool:
    """Has systemd connected stderr to the journal?"""
    if not (journal := os.environ.get("JOURNAL_STREAM")):
        return False
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return journal == f"{status.st_dev}:{status.st_ino}"


def _use_syslog() -> None:
    """Write to syslog. Connect now unless lines go to the journal: we may lose the right later."""
    _let_out(Syslog)
    assert isinstance(_outlet, Syslog)
    _outlet.facility = _facility
    if not _to_journal:
        try:
            _outlet.connect()
        except OSError:
            pass  # `trouble` tells of it, and each line tries again


def _let_out(kind: type[Outlet]) -> None:
    """Write to an outlet of this kind from now on."""
    global _outlet
    if type(_outlet) is not kind:
        _outlet.close()
        _outlet = kind()
    if not _to_journal:
        _outlet.count_losses()


def reopen(between: Callable[[tuple[int, ...]], None]) -> None:
    """Keep the log while `between` closes descriptors. `between` gets the descriptors of the log,
    and closes all others that it does not need itself."""
    between(_outlet.descriptors())
    if _journal is not None:
        _journal.hold()


def hand_over(sink: Callable[[int, str], None]) -> None:
    """Give lines to `sink`, with their levels, from now on: this process cannot reach the log."""
    global _sink
    _sink = sink


def write(level: int, line: str) -> None:
    """Write a line; `level` is syslog(3)'s. If the log cannot be written, the line is lost."""
    if level > _threshold:
        return
    event = line if isinstance(line, Event) else None
    # Escaped fields pass unchanged. Octets that nobody has escaped do no harm.
    line = printable(_octets(line), b"\\")
    if _sink is not None:
        _sink(level, line)
        return
    prepare()
    if _to_journal and _journal is not None:
        if _journal.send(level, _facility, line, event):
            return
        _leave_journal()
    _outlet.write(level, line)


def error(line: str) -> None:
    """Log something that the administrator should mend."""
    write(LEVELS["err"], line)


def warning(line: str) -> None:
    """Log something that the administrator may want to mend."""
    write(LEVELS["warning"], line)


def notice(line: str) -> None:
    """Log the end of a session, or a refused login."""
    write(LEVELS["notice"], line)


def info(line: str) -> None:
    """Log a login."""
    write(LEVELS["info"], line)


def debug(line: str) -> None:
    """Log a command or a reply."""
    write(LEVELS["debug"], line)


def is_on_stderr() -> bool:
    """Does the log go to stderr?"""
    return isinstance(_outlet, Stderr)


def is_verbose() -> bool:
    """Are lines of `debug` logged?"""
    return _threshold >= LEVELS["debug"]


def escape(value: bytes) -> str:
    """Turn octets from the network into one word of printable ASCII; "-" if there are none."""
    if not value:
        return "-"
    return "".join([chr(c) if c in _PLAIN else f"\\x{c:02x}" for c in value])


def printable(line: bytes, more: bytes = b"") -> str:
    """Turn a line into printable ASCII. Spaces, quotes and the octets of `more` are kept."""
    if not line.translate(None, _PRINTABLE + more):
        return line.decode()
    kept = _PRINTABLE + more
    return "".join([chr(c) if c in kept else f"\\x{c:02x}" for c in line])


def _octets(text: str) -> bytes:
    """Encode a text. Surrogates that stand for octets of a file name become these octets; other
    surrogates become escapes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def event(what: str, **fields: object) -> Event:
    """Build a line: what happened, then the fields in their order.

    Values of type bytes come from the network: they are cut at `MAX_OCTETS` and become one word.
    Texts are our own: those with spaces are quoted. No octets from the network become a quote, so
    nobody can forge a field.
    """
    shown = {key: _shown(value) for key, value in fields.items()}
    words = [what]
    for key, value in shown.items():
        words.append(f'{key}="{value}"' if " " in value else f"{key}={value or '-'}")
    line = Event(" ".join(words))
    line.what, line.fields = what, shown
    return line


def _shown(value: object) -> str:
    """Turn the value of a field into printable ASCII. Texts keep their spaces."""
    if isinstance(value, bytes):
        return escape(value[:MAX_OCTETS]) if value else ""
    octets = _octets(str(value))
    return " ".join([escape(word) if word else "" for word in octets.split(b" ")])


def describe(error: BaseException) -> str:
    """Describe an exception for the log: its type, and where it was raised.

    Its text is left out, since it may quote a secret (as KeyError and ValueError do); only the
    system's text for an OSError is included.
    """
    places = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    text = f" ({error.strerror})" if isinstance(error, OSError) else ""
    return f"{type(error).__name__}{text} at {' < '.join(reversed(places))}"
