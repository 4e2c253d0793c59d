"""Print what was found of a mailspool: as text for people, or as JSON for programs."""

from __future__ import annotations

import json
import os
import pwd
import stat
import time

from tpop3d.commands.inspection import display, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpop3d.commands.inspection.locks import Dotlock, Lock, Process
    from tpop3d.commands.inspection.mailbox import InspectedMailbox
    from tpop3d.commands.inspection.state_files import FoundFile

SENDER, SUBJECT = 30, 60  # characters that are shown
FULL_LINE = 200  # characters that are shown in JSON
SHOWN_ALIKE = 5  # problems of one kind that are shown


def as_text(mailbox: InspectedMailbox) -> Iterator[str]:
    """Yield lines for people: first about the whole mailspool, then one for each message."""
    listing, status = mailbox.listing, mailbox.status
    if listing is None:
        yield f"{_shown(mailbox.path)}: {mailbox.reason}"
    else:
        yield f"{_shown(mailbox.path)}: {_count(len(listing), 'message')}, {mailbox.octets} octets"
    if status is not None:
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.st_mtime))
        what = f"{status.st_size} octets, written {written}"
        whose = f"mode {stat.S_IMODE(status.st_mode):04o}, of {_user(status.st_uid)}"
        yield f"  file          {what}, {whose}"
    yield f"  session lock  {_lock(mailbox.session_lock)}"
    yield f"  fcntl lock    {_lock(mailbox.spool_lock)}"
    yield f"  flock         {_lock(mailbox.flock)}"
    yield f"  dotlock       {_dotlock(mailbox.dotlock)}"
    yield f"  state         {_shown(mailbox.place) or 'none: no session has been here'}"
    unused = "" if mailbox.settings.index else " (mailspool-index: no)"
    yield f"  index         {_found(mailbox.index)}{unused}"
    yield f"  journal       {_found(mailbox.journal)}"
    for name in mailbox.others:
        yield f"  also there    {_shown(name)}"
    yield f"  unique-ids    in the style of {mailbox.settings.style}"
    yield from _problems(mailbox)
    if listing is not None and len(listing):
        yield ""
        yield from _table(mailbox)


def _problems(mailbox: InspectedMailbox) -> Iterator[str]:
    if not mailbox.problems:
        yield "  problems      none"
    alike: dict[str, int] = {}
    for problem in mailbox.problems:
        alike[problem.kind] = alike.get(problem.kind, 0) + problem.count
        if alike[problem.kind] <= SHOWN_ALIKE:
            yield f"  problem       {problem.text}"
    for kind, number in alike.items():
        if number > SHOWN_ALIKE:
            yield f"  problem       ... and {number - SHOWN_ALIKE} more of this kind: {kind}"


def _table(mailbox: InspectedMailbox) -> Iterator[str]:
    listing = mailbox.listing
    assert listing is not None
    octets, offset = (max(6, len(str(max(one)))) for one in (listing.octets, listing.starts))
    wide = max(9, *map(len, mailbox.ids))
    columns = f"number {'octets':>{octets}} {'offset':>{offset}}  {'unique-id':<{wide}}"
    yield f"{columns}  sender, subject"
    for index, unique_id in enumerate(mailbox.ids):
        line, subject = mailbox.lines[index]
        sender = display.readable(line.partition(b" ")[0], SENDER)
        yield (
            f"{index + 1:>6} {listing.octets[index]:>{octets}} {listing.starts[index]:>{offset}}"
            f"  {unique_id.decode():<{wide}}  {sender}, {display.readable(subject, SUBJECT)}"
        )


def as_json(mailbox: InspectedMailbox) -> Iterator[str]:
    """Yield the same as one JSON object, piece by piece; see tpop3d(8) for the keys."""
    status, listing = mailbox.status, mailbox.listing
    whole = {
        "mailbox": _shown(mailbox.path),
        "reason": mailbox.reason or None,
        "file": None if status is None else _file(status),
        "state_directory": _shown(mailbox.place) or None,
        "locks": {
            "session": _lock_object(mailbox.session_lock),
            "fcntl": _lock_object(mailbox.spool_lock),
            "flock": _lock_object(mailbox.flock),
            "dotlock": _dotlock_object(mailbox.dotlock),
        },
        "index": _found_object(mailbox.index) | {"used": mailbox.settings.index},
        "journal": _found_object(mailbox.journal),
        "others": [_shown(name) for name in mailbox.others],
        "uidl_style": mailbox.settings.style,
        "problems": [
            {"kind": one.kind, "offset": one.offset, "message": one.message, "text": one.text}
            for one in mailbox.problems
        ],
        "count": None if listing is None else len(listing),
        "octets": None if listing is None else mailbox.octets,
    }
    yield json.dumps(whole, indent=1)[:-2] + ',\n "messages": ['
    if listing is not None:
        for index, unique_id in enumerate(mailbox.ids):
            line, subject = mailbox.lines[index]
            message = {
                "number": index + 1,
                "octets": listing.octets[index],
                "offset": listing.starts[index],
                "unique_id": unique_id.decode(),
                "from_line": display.readable(line, FULL_LINE),
                "subject": display.readable(subject, FULL_LINE),
            }
            comma = "," if index + 1 < len(listing) else ""
            yield f"  {json.dumps(message)}{comma}"
    yield " ]\n}"


def _file(status: os.stat_result) -> dict[str, object]:
    return {
        "octets": status.st_size,
        "modified": status.st_mtime,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def _lock_object(lock: Lock | None) -> dict[str, object] | None:
    if lock is None:
        return None
    holders = [
        {"pid": one.pid, "command": _shown(one.command), "uid": one.uid if one.uid >= 0 else None}
        for one in lock.holders
    ]
    return {"state": lock.state, "holders": holders, "reason": lock.reason or None}


def _dotlock_object(dotlock: Dotlock | None) -> dict[str, object] | None:
    if dotlock is None:
        return None
    return {
        "path": _shown(dotlock.path),
        "uid": dotlock.uid,
        "age_seconds": round(dotlock.age, 3),
        "lock_file": dotlock.is_lock,
        "pid": dotlock.pid or None,
        "alive": dotlock.is_alive,
        "stale": dotlock.is_stale,
    }


def _found_object(found: FoundFile) -> dict[str, object]:
    return {"state": found.state, "octets": found.octets, "reason": found.reason or None}


def _lock(lock: Lock | None) -> str:
    if lock is None:
        return "no file to lock"
    if lock.state == locks.HELD:
        by = ", ".join(map(_process, lock.holders)) or "somebody whom we cannot see"
        return f"held by {by}"
    return f"{lock.state}: {lock.reason}" if lock.reason else lock.state


def _process(process: Process) -> str:
    user = f", {_user(process.uid)}" if process.uid >= 0 else ""
    return f"pid {process.pid} ({_shown(process.command) or '?'}{user})"


def _dotlock(dotlock: Dotlock | None) -> str:
    if dotlock is None:
        return "none"
    age = f"{dotlock.age:.0f} s old, of {_user(dotlock.uid)}"
    if not dotlock.is_lock:
        holder = "not certainly a lock file, so that no session breaks it"
    elif not dotlock.pid:
        holder = "names no process"
    elif dotlock.is_alive is None:
        holder = f"names pid {dotlock.pid}, which may be in a container or on another machine"
    elif dotlock.is_alive:
        holder = f"names {_process(locks.Process(dotlock.pid))}, which lives"
    else:
        holder = f"names pid {dotlock.pid}, which is dead"
    stale = "; a session breaks it" if dotlock.is_stale else ""
    return f"{age}, {holder}{stale}"


def _found(found: FoundFile) -> str:
    octets = f", {found.octets} octets" if found.octets else ""
    reason = f": {found.reason}" if found.reason else ""
    return f"{found.state}{octets}{reason}"


def _user(uid: int) -> str:
    try:
        return f"{_shown(pwd.getpwuid(uid).pw_name)} ({uid})"
    except KeyError:
        return f"uid {uid}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _shown(text: str) -> str:
    """Escape a text of the system's, such as a path, which may hold anything."""
    return display.readable(os.fsencode(text), len(text)) if text else ""
