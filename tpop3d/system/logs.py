"""The log: one line an event, to the journal, to syslog or to stderr, that cannot be forged.

`event` builds lines of `key=value`; values from the network are escaped so that none holds a
space, a quote, a line end or anything but printable ASCII.

Under systemd, and with systemd-python, what would go to syslog goes to the journal with its fields.
That is so where stderr is connected to the journal, as JOURNAL_STREAM tells (systemd.exec(5)): the
variable alone is inherited, by xinetd's servers and by shells, too.
"""

from __future__ import annotations

import os

from tpop3d.system.outlets import SOCKET, Outlet, Stderr, Syslog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tpop3d.system.journald import JournalSocket

# syslog(3)'s numbers.
_NAMES = "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"
LEVELS = {name: level for level, name in enumerate(_NAMES)}
FACILITIES = {
    name: number << 3
    for number, name in (
        *enumerate(("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp")),
        (9, "cron"), (10, "authpriv"), *[(16 + n, f"local{n}") for n in range(8)],
    )
}  # fmt: skip
_outlet: Outlet = Stderr()  # until `start`: a mistake in the configuration must be seen somewhere
_to_journal = False  # in place of syslog
_journal: JournalSocket | None = None  # when it is first needed
_sink: Callable[[int, str], None] | None = None
_facility = FACILITIES["mail"]
_threshold = LEVELS["info"]
MAX_OCTETS = 255  # of a value from the network; no longer name is let in
_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b"\"'\\")
_PRINTABLE = bytes(c for c in range(0x20, 0x7F) if c != 0x5C)


class Event(str):
    """A line about an event: a text that knows `what` happened, and its fields."""

    __slots__ = ("fields", "what")

    fields: dict[str, str]
    what: str


def start(facility: str, level: str, to_stderr: bool) -> None:
    """Say where the log goes, and from which level on. The names are syslog.conf(5)'s."""
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
    """Import what a line takes, where it takes anything: while we can, and a client need not wait.

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
    """Go on with syslog."""
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
    """Have a way to syslogd, and connect now, while we are sure to be allowed to."""
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
    """Keep the log while `between` closes all descriptors but those that it is given, and some of
    its own."""
    between(_outlet.descriptors())
    if _journal is not None:
        _journal.hold()


def hand_over(sink: Callable[[int, str], None]) -> None:
    """Give lines to `sink` from now on: to somebody who can reach the log, which we cannot."""
    global _sink
    _sink = sink


def write(level: int, line: str) -> None:
    """Write a line of one of syslog's levels. A log that cannot be written stops nobody."""
    if level > _threshold:
        return
    event = line if isinstance(line, Event) else None
    # What was escaped field by field passes unchanged; whatever else came along does no harm.
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
    """Something that the administrator should mend."""
    write(LEVELS["err"], line)


def warning(line: str) -> None:
    """Something that the administrator may want to mend."""
    write(LEVELS["warning"], line)


def notice(line: str) -> None:
    """A session's end, or a refused login."""
    write(LEVELS["notice"], line)


def info(line: str) -> None:
    """A login."""
    write(LEVELS["info"], line)


def debug(line: str) -> None:
    """A command or a reply."""
    write(LEVELS["debug"], line)


def is_on_stderr() -> bool:
    """Does the log go to stderr?"""
    return isinstance(_outlet, Stderr)


def is_verbose() -> bool:
    """Does `debug` go anywhere?"""
    return _threshold >= LEVELS["debug"]


def escape(value: bytes) -> str:
    """Octets from the network as one word of printable ASCII; "-" for none."""
    if not value:
        return "-"
    return "".join([chr(c) if c in _PLAIN else f"\\x{c:02x}" for c in value])


def printable(line: bytes, more: bytes = b"") -> str:
    """A line as printable ASCII, its spaces and quotes kept; of `more`, too, nothing is escaped."""
    if not line.translate(None, _PRINTABLE + more):
        return line.decode()
    kept = _PRINTABLE + more
    return "".join([chr(c) if c in kept else f"\\x{c:02x}" for c in line])


def _octets(text: str) -> bytes:
    """A text, octets of a file name in it as they were; what can be no octets, as it is written."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def event(what: str, **fields: object) -> Event:
    """A line: what happened, then the fields in their order.

    Octets come from the network, and are made one word, of which the beginning is enough. Texts
    are ours: those with spaces are quoted. No octets from the network ever hold a quote, so a field
    cannot be forged.
    """
    shown = {key: _shown(value) for key, value in fields.items()}
    words = [what]
    for key, value in shown.items():
        words.append(f'{key}="{value}"' if " " in value else f"{key}={value or '-'}")
    line = Event(" ".join(words))
    line.what, line.fields = what, shown
    return line


def _shown(value: object) -> str:
    """A field's value as printable ASCII; spaces are kept in texts."""
    if isinstance(value, bytes):
        return escape(value[:MAX_OCTETS]) if value else ""
    octets = _octets(str(value))
    return " ".join([escape(word) if word else "" for word in octets.split(b" ")])


def describe(error: BaseException) -> str:
    """An exception for the log: its type and where it was raised.

    Not its text, which may quote a secret (KeyError and ValueError do), except the system's own.
    """
    places = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    text = f" ({error.strerror})" if isinstance(error, OSError) else ""
    return f"{type(error).__name__}{text} at {' < '.join(reversed(places))}"
