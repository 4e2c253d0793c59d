"""The states of a connection between its first octet and its last, as one table.

Several processes work on a connection: a gatekeeper speaks POP3 before login, a login process
decides and becomes the session, a relay speaks TLS. The monitor asks none of them for the state. It
follows this table, by their messages and by their deaths. The usual ways through it:

    a login              AUTHORIZING  DECIDING  SERVING  OVER
    a wrong password     AUTHORIZING  DECIDING  REFUSING  AUTHORIZING ...
    STLS                 AUTHORIZING  TLS_WANTED  LEAVING  HANDSHAKE  AUTHORIZING ...
    TLS first            HANDSHAKE  AUTHORIZING ...
    QUIT before login    AUTHORIZING  OVER

A *state* says whom the connection waits for. An *event* is a message of a gatekeeper or a relay,
the death of a process, or a time. The row of a state has the messages that a gatekeeper may send in
it, and what follows. **What the row lacks is a Violation**: no gatekeeper of ours sends that in
this state, so it is in an attacker's hands, and is evicted with its connection. Events that do not
come from a gatekeeper are in each row in which they can occur.

    AUTHORIZING   a gatekeeper speaks with the client; it may ask for a login or for TLS
    DECIDING      the auth switch is asked, and the gatekeeper waits for a verdict
    REFUSING      the verdict is no, and the gatekeeper is told later: a guess costs time, and
                  takes the place of a connection for that time
    UNSURE        the login process has died. It may have told the gatekeeper yes before, so two
                  things are right now: the gatekeeper reports a login, or it waits
    SERVING       a user is logged in, and the session alone has the connection
    ENDED_EARLY   the session is over, and the gatekeeper has not reported the login yet
    ORPHANED      the gatekeeper has died while the auth switch was asked. That may be harmless:
                  the login process may be a session whose gatekeeper died before its report
    ALONE         a refusal is due, and there is no gatekeeper to tell; the place stays taken
    TLS_WANTED    the client has asked for TLS: is there a relay?
    LEAVING       there is a relay, and the gatekeeper lets go of the connection
    HANDSHAKE     a relay speaks with the client
    OVER          no process has the connection

Both doors use the table. The process of per_connection decides itself: its yes is LET_IN, and then
no gatekeeper reports anything. In the listener the login process tells the gatekeeper yes, and the
gatekeeper reports it (REPORTED). If the gatekeeper lies, the login process still ends with a no:
that is REFUSED while SERVING.
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

# Events: the messages of a gatekeeper, and its death;
ASKS_LOGIN = "a login request"
ASKS_TLS = "a request for tls"
REPORTED = "a report of a login"
LEFT = "a report that tls may begin"
ENDED = "a report of the end"
GONE = "the gatekeeper has died"
# the decision of the auth switch, and the end of the process that asks it;
LET_IN = "yes"
REFUSED = "no"
NO_PROCESS = "no process to ask it"
DIED = "the process that asks it has died"
SESSION_OVER = "the session is over"
# the progress of TLS;
GRANTED = "there is a relay"
NO_RELAY = "there is no relay"
SECURED = "tls has begun"
FAILED = "tls has failed"
# times.
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
        LATE: DECIDING,  # `auth-timeout-seconds` cuts a slow driver off
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

BEGINNINGS = (AUTHORIZING, HANDSHAKE)  # HANDSHAKE if TLS comes first
# The states in which the client reads our octets as POP3: it expects no TLS.
IN_POP3 = (AUTHORIZING, DECIDING, REFUSING, UNSURE, TLS_WANTED)

# The reason of a Violation, for the log, by the event that a row lacks.
WRONG = {
    ASKS_LOGIN: "an attempt during another",
    ASKS_TLS: "TLS at the wrong time",
    LATE: "the gatekeeper does not answer",
}
WRONG_ENDING = "an ending at the wrong time"


def after(state: str, event: str) -> str:
    """The state that follows `event` in `state`. Raises `Violation` if the table has none."""
    row = TABLE[state]
    if event not in row:
        raise Violation(WRONG.get(event, WRONG_ENDING))
    return row[event]
