"""The standalone door: bind `listen-address` and run the listener."""

from __future__ import annotations

import errno
import os
import stat
import sys

from tpop3d.config.addresses import IMMEDIATE, NONE, PLAIN, Tls, Unresolved
from tpop3d.config.directive import found
from tpop3d.configuration import WrongConfiguration, load
from tpop3d.listener import sd_notify
from tpop3d.settings import Config
from tpop3d.system import logs, signal, socket
from tpop3d.system.io import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from tpop3d.config.addresses import Address
    from tpop3d.doors.activation import Passed
    from tpop3d.listener.listener import Changed
    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.keyholder import Keyholder

    Place = tuple[str, int, str]  # see Address

BACKLOG = 128  # connections that the kernel keeps until they are accepted
PIDFILE_MODE = 0o644
HINTS = {
    errno.EACCES: " (it takes root, with CAP_NET_BIND_SERVICE)",
    errno.EADDRINUSE: " by another server, or by a socket of systemd's: see ss -ltnp",
}
READY = b"+"  # what a detached process tells its parent; anything else is an error's text


class CannotListen(Exception):
    """An address that cannot be listened to, and why, in one line."""


class Sockets:
    """The listening sockets by address, so that a reload re-binds only what has changed."""

    def __init__(self) -> None:
        self._bound: dict[Place, list[socket.socket]] = {}

    def bind(self, addresses: list[Address]) -> dict[socket.socket, Tls]:
        """Listen to all of these addresses and to no others; returns the sockets, each with its
        TLS. Raises `CannotListen`.

        Those that are bound already stay as they are. When one cannot be bound, all is as before.
        Sockets that are wanted no more are the caller's to close.
        """
        if not addresses:
            raise CannotListen("nothing to listen on: give listen-address in the configuration")
        wanted: dict[Place, Tls] = {}
        for address in addresses:
            wanted.setdefault(address.place, address.tls or PLAIN)
        new: dict[Place, list[socket.socket]] = {}
        leaving = [one for place, old in self._bound.items() if place not in wanted for one in old]
        try:
            # One that goes may have the port of one that comes (0.0.0.0 and 127.0.0.1).
            _share(leaving, True)
            for place in wanted:
                new[place] = self._bound.get(place) or _listen(*place[:2], share=bool(leaving))
        except CannotListen:
            _share(leaving, False)
            for place, sockets in new.items():
                if place not in self._bound:
                    for one in sockets:
                        one.close()
            raise
        self._bound = new
        for address in addresses:
            # For logins: no nameserver need answer for them.
            names = [one.getsockname() for one in new[address.place]]
            address.numeric = frozenset(str(name[0]) for name in names)
            address.bound = frozenset(name[1] for name in names)
        return {one: wanted[place] for place, sockets in new.items() for one in sockets}

    def look_up(self, addresses: list[Address]) -> None:
        """Look up what `bind` would."""
        known = {place[:2] for place in self._bound}
        for host, port in {(one.host, one.port) for one in addresses} - known:
            try:
                _addresses_of(host, port)
            except (OSError, UnicodeError):
                continue  # it is known now, too


def _share(sockets: list[socket.socket], on: bool) -> None:
    """May others of ours bind what these are bound to (socket(7), SO_REUSEPORT)?"""
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, on)


def _addresses_of(host: str, port: int) -> list[Any]:
    """The addresses of a host to listen on, as getaddrinfo(3) gives them."""

    def ask() -> list[Any]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)

    return found("address", f"{host} {port}", ask)


def _listen(host: str, port: int, share: bool) -> list[socket.socket]:
    """Listening sockets for every address of a host. Raises `CannotListen`."""
    made = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(_addresses_of(host, port)):
            one = socket.socket(family, kind, protocol)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # [::] and 0.0.0.0 are two addresses here, as they are two lines to configure.
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _share([one], share)
            one.bind(address)
            one.listen(BACKLOG)
            _share([one], False)  # not with the next one of ours
    except (OSError, UnicodeError) as error:
        for one in made:
            one.close()
        shown = f"[{host}]" if ":" in host else host
        why = error.strerror if isinstance(error, OSError) else "no name of a host"
        hint = HINTS.get(error.errno or 0, "") if isinstance(error, OSError) else ""
        raise CannotListen(f"cannot listen on {shown}:{port}: {why}{hint}") from None
    return made


def run(
    config: Config,
    file: str,
    passed: Passed | None,
    *,
    pidfile: str = "",
    detach: bool = False,
    start_log: Callable[[Config], None],
) -> int:
    """Run the listener on sockets that were passed, or on `listen-address`; returns the exit
    code."""
    from tpop3d.listener.listener import Listener
    from tpop3d.privsep import gatekeeper
    from tpop3d.privsep.sandbox import gatekeeper_user, prepare_sandbox
    from tpop3d.system import processes

    own = Sockets()
    domains: dict[str, frozenset[str] | None] = {}

    def bind(config: Config) -> dict[socket.socket, Tls]:
        if passed is None:
            return own.bind(config.listen_address)
        _look_up_domains(config, domains)
        return _with_tls(passed, config)

    sandbox = prepare_sandbox(config)
    if isinstance(sandbox, str):
        return _fail(sandbox)
    if why := gatekeeper.trial(sandbox):
        return _fail(why)
    try:
        listening = bind(config)
    except CannotListen as error:
        return _fail(str(error))
    tell = _detach() if detach else None
    keyholder = _keyholder(config, sandbox, listening.values())
    if isinstance(keyholder, str):
        return _fail(keyholder)
    # From here on there is something to put in order at the end, so no signal ends us before that.
    processes.unblock()
    processes.catch()
    if pidfile and (why := _write_pidfile(pidfile)):
        return _fail(why)
    _warn_of_no_tls(listening, config)
    listener = Listener(config, sandbox, listening, keyholder)
    places = _all_shown(listening)
    logs.notice(f"listening on {places}")

    def reload() -> Changed | str:
        nonlocal places
        again = load(file)
        sandbox = prepare_sandbox(again)
        if isinstance(sandbox, str):
            raise WrongConfiguration([sandbox])
        if why := gatekeeper.trial(sandbox):
            raise WrongConfiguration([why])
        # Before any address changes: a certificate that cannot be used must change nothing.
        wanted = [address.tls or PLAIN for address in again.listen_address]
        if passed is not None:
            wanted = [again.tls, Tls(IMMEDIATE, again.tls.pairs)] if again.tls.pairs else []
        keyholder = _keyholder(again, sandbox, wanted)
        if isinstance(keyholder, str):
            return keyholder
        try:
            now = bind(again)
        except CannotListen as error:
            if keyholder is not None:
                keyholder.retire()
            return str(error)
        start_log(again)
        _warn_of_no_tls(now, again)
        if (others := _all_shown(now)) != places:
            places = others
            logs.notice(f"listening on {places}")
        return again, sandbox, now, keyholder

    def look_up() -> None:
        try:
            again = load(file)
        except WrongConfiguration:
            return
        if os.geteuid() == 0:
            gatekeeper_user(again)
        if passed is None:
            own.look_up(again.listen_address)
        else:
            _look_up_domains(again, dict(domains), is_trial=True)

    listener.reload = reload
    listener.look_up = look_up
    if tell is not None:
        tell()
    try:
        listener.run()
    finally:
        if pidfile:
            _remove_pidfile(pidfile)
    logs.notice("stopped")
    return 0


def _look_up_domains(
    config: Config, known: dict[str, frozenset[str] | None], *, is_trial: bool = False
) -> None:
    """Find the addresses that logins may be made at, for the domain that is appended there, once
    for them all; `known` are those of the hosts that were there before a reload. What nobody can
    tell now is looked up when it is needed."""
    for address in config.listen_address if config.append_domain else ():
        address.numeric = known.get(address.host)
        try:
            if address.domain:
                address.look_up()
        except Unresolved as error:
            if not is_trial:
                logs.warning(str(error))
        known[address.host] = address.numeric


def _with_tls(passed: Passed, config: Config) -> dict[socket.socket, Tls]:
    """The sockets from systemd, each with its TLS: from the first octet on for those that are
    named so. Raises `CannotListen`."""
    tls = config.tls
    immediate = Tls(IMMEDIATE, tls.pairs)
    if (passed.named_tls or tls.mode == IMMEDIATE) and not tls.pairs:
        raise CannotListen("a socket from systemd wants TLS, and there is no tls-certificate")
    return {one: immediate if passed.is_tls(one.fileno()) else tls for one in passed.listening}


def _keyholder(config: Config, sandbox: Sandbox, wanted: Iterable[Tls]) -> Keyholder | str | None:
    """A process with the keys for this TLS, if there is any; or why it cannot be."""
    identities = list(dict.fromkeys(tls.pairs for tls in wanted if tls.mode != NONE))
    if not identities:
        return None
    from tpop3d.tls import keyholder

    how = config.tls_min_version, config.tls_ciphers
    made = keyholder.start(keyholder.Recipe(sandbox, identities, *how))
    return made if isinstance(made, keyholder.Keyholder) else made.reason


def _warn_of_no_tls(listening: dict[socket.socket, Tls], config: Config) -> None:
    """Say so where clients cannot log in."""
    for one, tls in listening.items():
        host = name_of(one, "getsockname")[0]
        if tls.mode == NONE and not config.takes_plaintext(host):
            who = "only clients on this host" if config.takes_plaintext("unix") else "nobody"
            logs.warning(
                f"{_shown(one, tls)} has no TLS, and plaintext-logins is {config.plaintext_logins}:"
                f" {who} can log in there; give tls-certificate"
            )


def _all_shown(listening: dict[socket.socket, Tls]) -> str:
    return ", ".join(_shown(*one) for one in listening.items())


def _shown(one: socket.socket, tls: Tls) -> str:
    """A listening socket's address for people."""
    address = one.getsockname()
    ending = " (TLS)" if tls.mode == IMMEDIATE else ""
    if not isinstance(address, tuple):
        return f"unix:{os.fsdecode(address)}{ending}"
    host, port = address[:2]
    return f"[{host}]:{port}{ending}" if ":" in host else f"{host}:{port}{ending}"


def _fail(why: str) -> int:
    """One line where people and logs see it; returns the exit code."""
    sd_notify.tell_failure([why])
    logs.error(why)
    if not logs.is_on_stderr():
        print(f"tpop3d: {why}", file=sys.stderr)
    return 1


def _detach() -> Callable[[], None]:
    """Go on in the background (daemon(7)); the parent exits when the returned function is called.

    If the child ends before that, so does the parent, with status 1.
    """
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        os._exit(0 if os.read(read_end, 1) == READY else 1)
    os.close(read_end)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")

    def tell() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        os.write(write_end, READY)
        os.close(write_end)

    return tell


def _write_pidfile(path: str) -> str:
    """Write our pid, for others to read and nobody else to change; returns why that cannot be.

    Others may be able to write to the directory: no link of theirs leads us to another file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, PIDFILE_MODE)
    except OSError as error:
        if os.path.islink(path):
            return f"{path}: a pid file must not be a link"
        return f"{path}: {error.strerror}"
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return f"{path}: a pid file must be a file, with no other name"
        if status.st_uid != os.geteuid():
            return f"{path}: a pid file must not belong to another user"
        os.fchmod(fd, PIDFILE_MODE)  # whatever the umask says, or it was before
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except OSError as error:
        return f"{path}: {error.strerror}"
    finally:
        os.close(fd)
    return ""


def _remove_pidfile(path: str) -> None:
    """Remove the file if it is still ours."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            is_ours = os.read(fd, 32).strip() == b"%d" % os.getpid()
        finally:
            os.close(fd)
        if is_ours:
            os.unlink(path)
    except OSError:
        pass
