"""The log's lines about a connection: who, from where, and how it went."""

from __future__ import annotations

from time import monotonic

from tpop3d.system import logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.auth.driver import Verdict


class Summary:
    """What is known of one connection so far."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.started = monotonic()
        self.user = b""
        self.tls = ""
        self.needs_tls = False  # nobody can log in without
        self.cipher = ""
        self.method = ""
        self.driver = ""
        self.retrieved: object = "0/0"
        self.topped: object = "0/0"
        self.deleted = 0
        self.left = 0
        self.octets_in = 0
        self.octets_out = 0

    def note_attempt(self, method: str, verdict: Verdict) -> None:
        """Remember the latest attempt to log in."""
        self.method = method
        self.driver = verdict.driver
        self.user = verdict.account.name if verdict.account else b""

    def line(self, what: str, **more: object) -> str:
        """Make a line about what happened to whom."""
        return logs.event(
            what,
            rip=self.client,  # first: some log daemons cut long lines
            user=self.user,
            method=self.method,
            driver=self.driver,
            **self.secured(),
            **more,
        )

    def secured(self) -> dict[str, str]:
        """The fields about TLS: version and cipher; or that a login would need TLS."""
        if not self.tls:
            return {"tls": "needed"} if self.needs_tls else {}
        return {"tls": self.tls, "cipher": self.cipher}

    def log_end(self, end: str) -> None:
        """Log the one line at the end."""
        line = self.line(
            "session",
            retr=self.retrieved,
            top=self.topped,
            dele=self.deleted,
            left=self.left,
            octets_in=self.octets_in,
            octets_out=self.octets_out,
            seconds=f"{monotonic() - self.started:.3f}",
            end=end,
        )
        logs.notice(line)
