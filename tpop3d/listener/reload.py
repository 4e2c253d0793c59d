"""Reloads: the listener reads the configuration again, at SIGHUP, and goes by it if it is right."""

from __future__ import annotations

from time import monotonic

from tpop3d.configuration import WrongConfiguration
from tpop3d.listener import sd_notify
from tpop3d.listener.lookups import LookUp, NotAsked, knowing
from tpop3d.system import logs
from tpop3d.system.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tpop3d.listener.event_loop import Loop
    from tpop3d.listener.lookups import Answers
    from tpop3d.listener.sockets import Listening
    from tpop3d.settings import Config
    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.keyholder import Keyholder

    Changed = tuple[Config, Sandbox, Listening, Keyholder | None]

TRIES = 3  # of a reload whose file changes meanwhile


class Reload:
    """The reload that is under way, if there is one; the latest SIGHUP counts.

    `read` reads the configuration again; it raises `WrongConfiguration`. `look_up` asks for the
    names that `read` needs: another process calls it first, because nobody may answer for minutes,
    and the listener has clients. `change` has the listener go by what was read. `status` tells
    systemd how the listener is.
    """

    def __init__(
        self,
        loop: Loop,
        read: Callable[[], Changed | Refusal],
        look_up: Callable[[], None],
        change: Callable[[Config, Sandbox, Listening, Keyholder | None], None],
        status: Callable[[], str],
    ) -> None:
        self._loop = loop
        self._read = read
        self._look_up = look_up
        self._change = change
        self._status = status
        self._looking_up: LookUp | None = None
        self.trouble = ""  # why the latest reload was refused, "" if it was not

    def begin(self, tries: int = TRIES) -> None:
        """Begin a reload: look names up, and go on when they are known."""
        sd_notify.notify(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}")
        self.stop()  # the file may have changed since then
        try:
            self._looking_up = LookUp(
                self._loop, self._look_up, lambda answers: self._go_on(answers, tries)
            )
        except OSError as error:
            self._keep(f"no further process: {error.strerror}")
            sd_notify.notify("READY=1\n" + self._status())

    def stop(self) -> None:
        """Stop looking up."""
        if self._looking_up is not None:
            self._looking_up.stop()
            self._looking_up = None

    def _go_on(self, answers: Answers | None, tries: int) -> None:
        """Read the configuration again, and go by it. If it is refused, nothing changes."""
        self._looking_up = None
        self.trouble = "internal error, see the log"
        try:
            if answers is None:
                self._keep("the users, groups and hosts of the configuration cannot be looked up")
            elif isinstance(found := knowing(answers, self._read), Refusal):
                self._keep(found.reason)
            else:
                self._change(*found)
                self.trouble = ""
                logs.notice("reload: the configuration is read again")
        except WrongConfiguration as error:
            for problem in error.problems:
                logs.error(problem)
            logs.error("reload: the configuration has errors, and is kept as it was")
            self.trouble = sd_notify.summary(error.problems)
        except NotAsked:
            if tries > 1:
                self.begin(tries - 1)
            else:
                self._keep("the configuration changes while it is read")
        finally:
            if self._looking_up is None:
                sd_notify.notify("READY=1\n" + self._status())

    def _keep(self, why: str) -> None:
        """Log why the configuration stays as it is."""
        self.trouble = sd_notify.summary([why])
        logs.error(f"reload: {why}; the configuration is kept as it was")
