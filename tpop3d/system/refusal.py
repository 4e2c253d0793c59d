"""An expected refusal, as a value: mypy sees to it that no caller forgets it.

Whatever must be expected to fail returns a `Refusal`: alone (`Refusal | None`) or in place of what
was wanted (`Spool | Refusal`). An exception is a bug or a broken machine (DESIGN, FAILURES).

Nothing on the way to the greeting imports this file, but for a balancer's header (the budget:
`tpop3d.system`). Code that refuses something there imports it where it does so, and its callers ask
for the good value: `isinstance(made, Sandbox)`.
"""

from __future__ import annotations

IN_USE = "in use"  # locked by another session or program: RFC 2449's [IN-USE]
TEMPORARY = "temporary"  # trying again later may help: RFC 3206's [SYS/TEMP]
PERMANENT = "permanent"  # somebody has to mend something: RFC 3206's [SYS/PERM]
PARTIAL = "partial"  # an expunge that began, and is finished later


class Refusal:
    """Why something was not done: `reason`, in words for the administrator and the log; and `kind`,
    for callers that act by it: what the client is told, or whether to try again."""

    __slots__ = ("kind", "reason")

    def __init__(self, reason: str, kind: str = TEMPORARY) -> None:
        self.reason = reason
        self.kind = kind

    def __repr__(self) -> str:
        return f"<Refusal {self.kind}: {self.reason}>"
