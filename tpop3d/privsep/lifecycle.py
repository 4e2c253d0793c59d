"""Where a connection stands between its first octet and its last, as one table.

A connection is one client's, and several processes have to do with it: a gatekeeper speaks POP3
before login, a login process decides and then is the session, a relay speaks TLS. None of them is
asked where the connection stands. The monitor knows, by this table alone, from what they say and
from how they end.

A *state* says whom the connection waits for. An *event* is a message of a gatekeeper or of a relay,
the end of a process, or a moment. What a gatekeeper may say in a state, and what it means there, is
in the state's row; **what the row lacks is a Violation**: no gatekeeper of ours says that then, so
it is in somebody else's hands, and is evicted, with its connection. Events that are not of a
gatekeeper's making are in every row in which they can come.

    AUTHORIZING   a gatekeeper speaks with the client; here it may ask
    DECIDING      the auth switch is asked. The gatekeeper waits for a verdict
    REFUSING      the verdict is no. The gatekeeper is told when its time has come: guessing costs
                  time, and the place of a connection for as long
    UNSURE        the process that decided has died. Perhaps it has told the gatekeeper yes before,
                  so both are right now: that the gatekeeper reports a login, and that it waits
    SERVING       somebody is logged in: the session alone has the connection
    ENDED_EARLY   the session is over, and the gatekeeper's report of the login has not come yet
    ORPHANED      the gatekeeper has died while the auth switch was asked. That may go well: it may
                  have been a session by then, whose gatekeeper had no time to report it
    ALONE         a refusal is due, and nobody is there to be told; the place stays taken as long
    TLS_WANTED    the client has asked for TLS: is there a relay?
    LEAVING       there is. The gatekeeper lets go of the connection
    HANDSHAKE     a relay speaks with the client
    OVER          nobody has the connection

The two doors go the same way through it. Where one process serves one connection (per_connection)
it decides itself, LET_IN is its word for yes, and no gatekeeper reports anything then. The listener
hears of a yes from the gatekeeper (REPORTED), which the login process has told. If the gatekeeper
lies, the login process still ends with a no: that is REFUSED while SERVING.
"""

from __future__ import annotations

from tpop3d.system.io import Violation

# States. The strings are for people.
AUTHORIZING = "authorizing"
DECIDING = "deciding"
REFUSING = "refusing"
UNSURE = "unsure"
SERVING = "serving"
ENDED_EARLY = "ended early"
ORPHANED = "orphaned"
ALONE = "alone"
TLS_WANTED = "tls wanted"
LEAVING = "leaving"
HANDSHAKE = "handshake"
OVER = "over"

# Events: what a gatekeeper says, or that it has died;
ASKS_LOGIN = "a login request"
ASKS_TLS = "a request for tls"
REPORTED = "a report of a login"
LEFT = "a report that tls may begin"
ENDED = "a report of the end"
GONE = "the gatekeeper has died"
# how the auth switch, or the process that asks it, decides or ends;
LET_IN = "yes"
REFUSED = "no"
NO_PROCESS = "no process to ask it"
DIED = "the process that asks it has died"
SESSION_OVER = "the session is over"
# what becomes of TLS;
GRANTED = "there is a relay"
NO_RELAY = "there is no relay"
SECURED = "tls has begun"
FAILED = "tls has failed"
# what the clock says.
DUE = "the refusal is due"
LATE = "login-seconds are over"

TABLE: dict[str, dict[str, str]] = {
    AUTHORIZING: {ASKS_LOGIN: DECIDING, ASKS_TLS: TLS_WANTED, ENDED: OVER, GONE: OVER},
    DECIDING: {
        LET_IN: SERVING,
        REPORTED: SERVING,
        REFUSED: REFUSING,
        NO_PROCESS: AUTHORIZING,
        DIED: UNSURE,
        SESSION_OVER: ENDED_EARLY,
        GONE: ORPHANED,
        LATE: DECIDING,  # a slow driver is cut off by `auth-timeout-seconds`
    },
    REFUSING: {DUE: AUTHORIZING, GONE: ALONE, LATE: REFUSING},
    UNSURE: {DUE: AUTHORIZING, REPORTED: OVER, GONE: ALONE, LATE: UNSURE},
    SERVING: {SESSION_OVER: OVER, DIED: OVER, REFUSED: ALONE},
    ENDED_EARLY: {REPORTED: OVER, GONE: OVER},
    ORPHANED: {SESSION_OVER: OVER, DIED: OVER, REFUSED: ALONE, LATE: ORPHANED},
    ALONE: {DUE: OVER, LATE: ALONE},
    TLS_WANTED: {GRANTED: LEAVING, NO_RELAY: AUTHORIZING, GONE: OVER},
    LEAVING: {LEFT: HANDSHAKE, ENDED: OVER, GONE: OVER},
    HANDSHAKE: {SECURED: AUTHORIZING, FAILED: OVER},
    OVER: {},
}

BEGINNINGS = (AUTHORIZING, HANDSHAKE)  # the second where TLS comes first
# What we say now, the client reads as POP3: no TLS is about to begin.
IN_POP3 = (AUTHORIZING, DECIDING, REFUSING, UNSURE, TLS_WANTED)

# What is wrong with an event that a row lacks, for the log.
WRONG = {
    ASKS_LOGIN: "an attempt during another",
    ASKS_TLS: "TLS at the wrong time",
    LATE: "the gatekeeper does not answer",
}
WRONG_ENDING = "an ending at the wrong time"


def after(state: str, event: str) -> str:
    """The state that follows. Raises `Violation` where the table has none."""
    row = TABLE[state]
    if event not in row:
        raise Violation(WRONG.get(event, WRONG_ENDING))
    return row[event]
