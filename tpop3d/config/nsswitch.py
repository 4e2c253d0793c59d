"""Ask for users and groups, and tell "there is none" from "nobody could say".

getpwnam_r(3) and its like return 0 if there is no such user, and an error number if a service could
not be asked; Python drops that number. It is lost before that if nscd(8) answers, or if the next
service in nsswitch.conf(5) does not know the name. So a name that was not found is looked for once
more, and this time each service has to answer.
"""

from __future__ import annotations

import os

from tpop3d.config import Unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# The functions of the C library, by database and type of the key.
FUNCTIONS = {
    ("passwd", str): "getpwnam_r",
    ("passwd", int): "getpwuid_r",
    ("group", str): "getgrnam_r",
    ("group", int): "getgrgid_r",
}
CONFIGURATION = "/etc/nsswitch.conf"
BUFFER = 1 << 16  # octets, for an entry; a group may have many members
MAX_BUFFER = 1 << 24
ERANGE = 34  # errno(3): the buffer is too small
ENTRY = 256  # octets, more than a struct passwd or a struct group has
STRICT = "UNAVAIL=return TRYAGAIN=return"
LOCAL = ("files", "compat", "altfiles", "extrausers")  # services that are files of this machine
# Services that need not answer: they have copies of files, or the transient users of systemd. They
# may not be there, and a process in the sandbox of a unit may not reach them.
SILENT = ("db", "systemd", "mymachines")
# Services that many machines list without using them, and the files that are there if they do.
UNUSED_WITHOUT = {"sss": ("/etc/sssd/sssd.conf", "/etc/sssd/conf.d")}


def is_absent(database: str, key: str | int, services: list[str] | None = None) -> bool:
    """Is a user or group that was not found really not there?

    `database` is "passwd" or "group", `key` a name or a number. All services are asked, or those
    given. From now on this process asks them directly, without nscd. Raises `Unanswered` if one
    cannot say.
    """
    # Imported late: it is rarely needed and costs 3 ms. None is this program with its libraries.
    import ctypes

    library = ctypes.CDLL(None)
    function = getattr(library, FUNCTIONS[database, type(key)])
    services = services or _services(database)
    # Only the GNU C library has it (<nss.h>), and such services.
    configure = getattr(library, "__nss_configure_lookup", None)
    if configure is not None and services:
        configure(database.encode(), _strict(services).encode())
    what = ctypes.c_uint(key) if isinstance(key, int) else os.fsencode(key)
    found, entry = ctypes.c_void_p(), ctypes.create_string_buffer(ENTRY)
    number, length = ERANGE, BUFFER
    while number == ERANGE and length <= MAX_BUFFER:
        buffer = ctypes.create_string_buffer(length)
        size = ctypes.c_size_t(length)
        number = function(what, entry, buffer, size, ctypes.byref(found))
        length *= 4
    if number:
        raise Unanswered(_complaint(database, services, number))
    return not found.value


def require_directories(name: str) -> None:
    """Check that every service beyond this machine answers a question about a user. Raises
    `Unanswered`.

    Whether a cache or a file knows that name does not matter.
    """
    services = _without(_services("passwd"), lambda service: service in LOCAL)
    if services:
        os.environ["SSS_NSS_USE_MEMCACHE"] = "NO"  # sssd(8) has to ask, however fresh its cache is
        is_absent("passwd", name, services)


def _complaint(database: str, services: list[str], number: int) -> str:
    """Say to the administrator which service does not answer."""
    names = [word for word in services if word[0] != "["]
    suspects = [name for name in names if name not in LOCAL] or names
    who = " or ".join(suspects) or "the system"
    return f"{who} does not answer: {os.strerror(number)}; see {database} in {CONFIGURATION}"


def _services(database: str) -> list[str]:
    """Return the line of a database in nsswitch.conf(5): services, and actions in brackets.

    Services that need not answer are left out. Without a line the list is empty.
    """
    try:
        with open(CONFIGURATION, encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError:
        return []
    found: list[str] = []
    for line in lines:
        name, colon, rest = line.partition("#")[0].partition(":")
        if colon and name.strip() == database:
            found = _words(rest)
    return _without(found, lambda service: not _is_used(service))


def _without(words: list[str], is_unwanted: Callable[[str], bool]) -> list[str]:
    """Leave out some services, with the actions behind them."""
    kept: list[str] = []
    is_kept = True
    for word in words:
        is_kept = is_kept if word[0] == "[" else not is_unwanted(word)
        if is_kept:
            kept.append(word)
    return kept


def _words(line: str) -> list[str]:
    words: list[str] = []
    while line := line.strip():
        if line[0] == "[":
            action, _, line = line.partition("]")
            words.append(f"{action}]")
        else:
            word = line.replace("[", " ").split()[0]
            words.append(word)
            line = line[len(word) :]
    return words


def _is_used(service: str) -> bool:
    """Is it trouble if this service does not answer?"""
    if service in SILENT:
        return False
    return service not in UNUSED_WITHOUT or any(map(_is_there, UNUSED_WITHOUT[service]))


def _is_there(path: str) -> bool:
    """Is this a file, or a directory that is not empty?"""
    try:
        return bool(os.listdir(path))
    except NotADirectoryError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it is there, and we may not look


def _strict(services: list[str]) -> str:
    """Write the line so that a service that cannot be asked is an error, unless the line itself
    says what to do then."""
    words: list[str] = []
    for word in services:
        if word[0] != "[":
            words += [word, f"[{STRICT}]"]
        elif words:
            words[-1] = f"[{STRICT} {word[1:-1].strip()}]"
    return " ".join(words)
