"""The standalone door: listen where the configuration or systemd says, and run the listener."""

from __future__ import annotations

import os
import sys

from tpop3d.config.addresses import NONE
from tpop3d.configuration import WrongConfiguration, load
from tpop3d.doors import daemon
from tpop3d.listener import sd_notify
from tpop3d.listener.listener import Listener
from tpop3d.listener.sockets import PassedSockets, Sockets, shown, warn_of_no_tls
from tpop3d.privsep import gatekeeper
from tpop3d.privsep.sandbox import gatekeeper_user, prepare_sandbox
from tpop3d.system import logs, processes
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.doors.activation import Passed
    from tpop3d.listener.reload import Changed
    from tpop3d.listener.sockets import Listening
    from tpop3d.settings import Config
    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.keyholder import Keyholder


class Standalone:
    """A listener, from its start to its end: one method for each step.

    `file` is the configuration's, which a reload reads again. `passed` are the sockets that systemd
    has passed; without them the listener binds `listen-address`. `open_log` sends the log where
    a new configuration says.
    """

    def __init__(
        self, file: str, passed: Passed | None, open_log: Callable[[Config], None]
    ) -> None:
        self._file = file
        self._start_log = open_log
        self._sockets: Sockets | PassedSockets = Sockets()
        if passed is not None:
            self._sockets = PassedSockets(passed.listening, passed.named_tls)
        self._places = ""  # where it listens, as the log has said
        self._tell_parent: Callable[[], None] | None = None

    def run(self, config: Config, *, pidfile: str = "", detach: bool = False) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code."""
        listener = self._start(config, pidfile, detach)
        if isinstance(listener, Refusal):
            return _fail(listener.reason)
        if self._tell_parent is not None:
            self._tell_parent()
        try:
            listener.run()
        finally:
            if pidfile:
                daemon.remove_pidfile(pidfile)
        logs.notice("stopped")
        return 0

    def _start(self, config: Config, pidfile: str, detach: bool) -> Listener | Refusal:
        """Do all that can be refused, so that a listener that runs can serve."""
        sandbox = _proven_sandbox(config)
        if isinstance(sandbox, Refusal):
            return sandbox
        listening = self._sockets.bind(config)
        if isinstance(listening, Refusal):
            return listening
        if detach:
            self._tell_parent = daemon.detach()
        keyholder = self._start_keyholder(config, sandbox)
        if isinstance(keyholder, Refusal):
            return keyholder
        # The pid file must be removed at the end, so from here on no signal may end us.
        processes.unblock()
        processes.catch()
        refused = daemon.write_pidfile(pidfile) if pidfile else None
        if refused is not None:
            return refused
        warn_of_no_tls(listening, config)
        listener = Listener(config, sandbox, listening, keyholder, self._read_again, self._look_up)
        self._log_places(listening)
        return listener

    def _start_keyholder(self, config: Config, sandbox: Sandbox) -> Keyholder | Refusal | None:
        """Start the process that holds the private keys; None if no socket has TLS."""
        wanted = self._sockets.tls_of(config)
        identities = list(
            dict.fromkeys(one.pairs for one in wanted if one.mode != NONE and one.pairs)
        )
        if not identities:
            return None
        from tpop3d.tls import keyholder

        how = config.tls_min_version, config.tls_ciphers
        made = keyholder.start(keyholder.Recipe(sandbox, identities, *how))
        return made if isinstance(made, keyholder.Keyholder) else Refusal(made.reason)

    def _log_places(self, listening: Listening) -> None:
        """Log where it listens, if that is news."""
        if (places := shown(listening)) != self._places:
            self._places = places
            logs.notice(f"listening on {places}")

    def _read_again(self) -> Changed | Refusal:
        """Read the configuration again, and do what can be refused. Raises `WrongConfiguration`.

        If it is refused, all is as before: addresses change last.
        """
        config = load(self._file)
        sandbox = _proven_sandbox(config)
        if isinstance(sandbox, Refusal):
            raise WrongConfiguration([sandbox.reason])
        keyholder = self._start_keyholder(config, sandbox)
        if isinstance(keyholder, Refusal):
            return keyholder
        listening = self._sockets.bind(config)
        if isinstance(listening, Refusal):
            if keyholder is not None:
                keyholder.retire()
            return listening
        self._start_log(config)
        warn_of_no_tls(listening, config)
        self._log_places(listening)
        return config, sandbox, listening, keyholder

    def _look_up(self) -> None:
        """Look up all that `_read_again` looks up by name, as far as it would come."""
        try:
            config = load(self._file)
        except WrongConfiguration:
            return
        if os.geteuid() == 0:
            gatekeeper_user(config)
        self._sockets.look_up(config)


def _proven_sandbox(config: Config) -> Sandbox | Refusal:
    """Prepare the sandbox, and prove that a gatekeeper comes up in it."""
    sandbox = prepare_sandbox(config)
    if isinstance(sandbox, Refusal):
        return sandbox
    refused = gatekeeper.prove(sandbox)
    return sandbox if refused is None else refused


def _fail(why: str) -> int:
    """Say in one line, to people, the log and systemd, why nothing is served; returns the exit
    code."""
    sd_notify.tell_failure([why])
    logs.error(why)
    if not logs.is_on_stderr():
        print(f"tpop3d: {why}", file=sys.stderr)
    return 1
