"""The system's users and groups, where "there is none" and "nobody could say" are told apart.

getpwnam_r(3) and its like give 0 for who is not there, and an error's number where they could not
ask; Python throws that number away. And it is lost before where nscd(8) has answered, or where a
service that follows in nsswitch.conf(5) does not know the name. So whoever was not found is looked
for once more, with services each of which has to answer.
"""

from __future__ import annotations

import os

from tpop3d.config.directive import Unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# By the database, and the kind of what is looked for: the C library's function.
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
# Services that need not answer: they have copies of files, or the passing users of systemd, which
# may not be there, or not for who is as locked in as a unit of ours.
SILENT = ("db", "systemd", "mymachines")
# One that stands in the line on many a machine that has never had any use for it, and what is there
# where it is used.
UNUSED_WITHOUT = {"sss": ("/etc/sssd/sssd.conf", "/etc/sssd/conf.d")}


def is_absent(database: str, key: str | int, services: list[str] | None = None) -> bool:
    """Is what was not found in a database ("passwd", "group"), by name or number, not there? All
    services are asked, or these; from now on this process asks so, and asks no nscd(8).

    Raises `Unanswered` where one of them cannot say.
    """
    # Rarely needed, and 3 ms. None: this program and the libraries that it has.
    import ctypes

    library = ctypes.CDLL(None)
    function = getattr(library, FUNCTIONS[database, type(key)])
    services = services or _services(database)
    # Of the GNU C library, <nss.h>; others have no such services.
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
    """See that every service that is not of this machine answers a question for a user, whether or
    not a cache, or a file, knows that name. Raises `Unanswered`."""
    services = _without(_services("passwd"), lambda service: service in LOCAL)
    if services:
        os.environ["SSS_NSS_USE_MEMCACHE"] = "NO"  # sssd(8): ask, however fresh that is
        is_absent("passwd", name, services)


def _complaint(database: str, services: list[str], number: int) -> str:
    """Who does not answer, for the administrator."""
    names = [word for word in services if word[0] != "["]
    suspects = [name for name in names if name not in LOCAL] or names
    who = " or ".join(suspects) or "the system"
    return f"{who} does not answer: {os.strerror(number)}; see {database} in {CONFIGURATION}"


def _services(database: str) -> list[str]:
    """The line of a database in nsswitch.conf(5): services, and [what is done when]; none without
    a line. Those that need not answer are left out."""
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
    """Services but for some, and what is done when."""
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
    """May its silence be trouble?"""
    if service in SILENT:
        return False
    return service not in UNUSED_WITHOUT or any(map(_is_there, UNUSED_WITHOUT[service]))


def _is_there(path: str) -> bool:
    """Is there a file, or a directory that is not empty?"""
    try:
        return bool(os.listdir(path))
    except NotADirectoryError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True  # and not for us to see


def _strict(services: list[str]) -> str:
    """The same line; but a service that cannot be asked is not passed over, unless that is what
    the line says of it."""
    words: list[str] = []
    for word in services:
        if word[0] != "[":
            words += [word, f"[{STRICT}]"]
        elif words:
            words[-1] = f"[{STRICT} {word[1:-1].strip()}]"
    return " ".join(words)
