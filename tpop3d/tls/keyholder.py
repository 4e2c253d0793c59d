"""The process that has the private keys, and forks a relay for each connection.

The listener forks sessions, so it must never have had a key: its keyholder reads them. All relays
are forked by one keyholder, so a TLS session that began with one of them may be resumed with
another (RFC 8446 section 2.2). The keyholder is root's, and reads nothing that comes from a client.
"""

from __future__ import annotations

import gc
import os
import resource
import struct
from time import monotonic

from tpop3d.config.addresses import located
from tpop3d.system import logs, processes, signal, socket, titles
from tpop3d.system.io import PacketSocket, close_all_but, packet_pair, ready
from tpop3d.system.privileges import PR_SET_DUMPABLE
from tpop3d.system.refusal import PERMANENT, Refusal
from tpop3d.tls import relay_channel
from tpop3d.tls.relay_channel import RelayChannel

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

    from tpop3d.config.addresses import Pairs
    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.certificates import Serving

PATIENCE = 10.0  # seconds that reading the keys may take
MAX_AGE = 86400.0  # seconds after which there are new keys for tickets (RFC 8446 section 4.6.1)
MAX_ANSWER = 1 << 16  # octets
FORK = b"F"  # a relay with this number, on the descriptor that comes with it
KILL = b"K"  # it
KILLED = -1  # in place of a relay's number
READY = b"+"  # warnings follow, one a line
_ASKED = struct.Struct("!cI")  # kind, number


class Recipe:
    """What a keyholder is made of: `identities` has, for each address, its certificates and keys;
    addresses may share them."""

    def __init__(
        self, sandbox: Sandbox, identities: list[Pairs], min_version: str, ciphers: str
    ) -> None:
        self.sandbox = sandbox
        self.identities = identities
        self.min_version = min_version
        self.ciphers = ciphers

    def files(self) -> list[tuple[int, ...]]:
        """Identify the files: another file of the same name, or a changed one, is told apart."""
        paths = {path for pairs in self.identities for pair in pairs for path in pair}
        return [_identity(path) for path in sorted(paths)]


class Keyholder:
    """A keyholder, as the listener knows it. `files` are what it has read (`Recipe.files`)."""

    def __init__(
        self,
        recipe: Recipe,
        files: list[tuple[int, ...]],
        connection: PacketSocket,
        warnings: list[str],
    ) -> None:
        self.recipe = recipe
        self.files = files
        self.warnings = warnings
        self.started = monotonic()
        self._socket = connection
        self._number = 0
        self._relays = 0  # that have not ended
        self._is_retired = False

    def fileno(self) -> int:
        """The descriptor, readable when the keyholder has died."""
        return self._socket.fileno()

    def start_relay(self) -> tuple[int, RelayChannel]:
        """Have a relay forked; returns its number and its channel, which ends at once where there
        can be no relay. Raises OSError where there is no keyholder."""
        ours, theirs = relay_channel.pair()
        self._number += 1
        try:
            self._socket.send_packet(_ASKED.pack(FORK, self._number), theirs.fileno())
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._relays += 1
        return self._number, ours

    def kill(self, number: int) -> None:
        """Have a relay killed that is in somebody else's hands."""
        try:
            self._socket.send_packet(_ASKED.pack(KILL, number))
        except OSError:
            pass

    def release(self) -> None:
        """A relay has ended."""
        self._relays -= 1
        if self._is_retired and not self._relays:
            self._socket.close()

    def retire(self) -> None:
        """Let the keyholder end when its relays have ended."""
        self._is_retired = True
        if not self._relays:
            self._socket.close()


def start(recipe: Recipe) -> Keyholder | Refusal:
    """Fork a keyholder and wait until it has read the keys. A refusal is PERMANENT where only other
    files can mend it."""
    files = recipe.files()
    ours, theirs = [PacketSocket(end) for end in packet_pair()]
    try:
        processes.spawn(lambda: _keep(recipe, theirs))
    except OSError as error:
        ours.close()
        return Refusal(f"no further process: {error.strerror}")
    finally:
        theirs.close()
    answer = ours.receive_packet(MAX_ANSWER)[0] if ready(PATIENCE, ours.fileno()) else b""
    lines = os.fsdecode(answer[1:]).splitlines()
    if answer.startswith(READY):
        return Keyholder(recipe, files, ours, lines)
    ours.close()
    if lines:
        return Refusal(lines[0], PERMANENT)
    return Refusal("the process that reads the keys has died, or takes too long")


def _keep(recipe: Recipe, connection: PacketSocket) -> int:
    """Be a keyholder."""
    titles.show(titles.KEYHOLDER)
    processes.spare_from_hangup()
    wakeup = processes.catch(signal.SIGCHLD, signal.SIGHUP)
    keep = (connection.fileno(), *processes.descriptors())
    logs.reopen(lambda log: close_all_but((*keep, *log)))
    _let_go_of_output()
    # Nobody may look at this process's memory.
    recipe.sandbox.prctl(PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from tpop3d.tls import certificates, relay  # noqa: F401  before the first relay is wanted

    made: list[Serving] = []
    try:
        for pairs in recipe.identities:
            settings = recipe.min_version, recipe.ciphers
            made.append(certificates.serving(pairs, *settings, tickets=True, look=True))
    except certificates.UnusableCertificate as error:
        connection.send_packet(b"-" + os.fsencode(str(error)))
        return 0
    contexts = [one.context for one in made]
    warnings = dict.fromkeys(warning for one in made for warning in one.warnings)
    gc.collect()
    gc.freeze()
    connection.send_packet(READY + os.fsencode("\n".join(warnings))[: MAX_ANSWER - 1])
    relays: dict[int, int] = {}  # pid: number
    while True:
        found = ready(None, wakeup, connection.fileno())
        if wakeup in found and not _reap(os.read(wakeup, 4096), relays):
            return 0
        if connection.fileno() not in found:
            continue
        asked, fds = connection.receive_packet(_ASKED.size, 1)
        if not asked:
            return 0  # nobody wants further relays
        kind, number = _ASKED.unpack(asked)
        if kind == KILL:
            for pid in [pid for pid, its in relays.items() if its == number]:
                os.kill(pid, signal.SIGKILL)
                relays[pid] = KILLED
            continue
        end = RelayChannel(socket.socket(fileno=fds[0]))
        try:
            relays[_start_relay(recipe.sandbox, end, contexts)] = number
        except OSError as error:
            logs.error(f"no further relay: {error.strerror}")
        end.close()


def _start_relay(sandbox: Sandbox, channel: RelayChannel, contexts: list[ssl.SSLContext]) -> int:
    """Fork a relay; returns its pid. Raises OSError."""
    from tpop3d.tls import relay

    return processes.spawn(lambda: relay.run(sandbox, channel, contexts))


def _let_go_of_output() -> None:
    """Close the listener's output: whoever waits for its end does not wait for this process."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1) if logs.is_on_stderr() else (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _reap(numbers: bytes, relays: dict[int, int]) -> bool:
    """Reap relays that have ended. False: this process is told to end, which ends no relay."""
    while relays:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        if relays.pop(pid, None) == KILLED:
            continue  # as we were asked to; who asked has said why
        processes.log_death("relay", pid, status)
    return all(number in (signal.SIGCHLD, signal.SIGHUP) for number in numbers)


def _identity(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(located(path))
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
