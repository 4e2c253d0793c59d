"""The CAPA command (RFC 2449 section 5).

Both states announce the same list, as RFC 2449 requires of capabilities of the AUTHORIZATION
state. STLS alone is announced only while it is allowed (RFC 2595 section 4).
"""

from __future__ import annotations

from tpop3d.pop3 import replies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.pop3.commands import Command
    from tpop3d.pop3.replies import Reply

# The tag that announces each command; the banner announces APOP. A test proves that each command is
# in a command table: a check here would import the other state's table before each greeting.
OF_COMMAND = {
    b"USER": b"USER",
    b"AUTH": b"SASL PLAIN",
    b"UTF8": b"UTF8 USER",  # names and passwords may be UTF-8, too (RFC 6856 section 2.1)
    b"TOP": b"TOP",
    b"UIDL": b"UIDL",
}
PLAINTEXT = (b"USER", b"AUTH")  # announced only if plaintext passwords are accepted
# Announced in every state: response codes (RFC 2449 section 8, RFC 3206), pipelining (RFC 2449
# section 6.6), and that the server itself never removes a message.
ALWAYS = (
    b"RESP-CODES",
    b"AUTH-RESP-CODE",
    b"PIPELINING",
    b"EXPIRE NEVER",
    b"IMPLEMENTATION tpop3d",
)


def capa(command: Command, plaintext: bool, stls: bool = False) -> Reply:
    """Answer CAPA. `plaintext`: are plaintext passwords accepted? `stls`: may TLS begin now?"""
    if command.words():
        return replies.WRONG_ARGUMENTS
    announced = [
        tag for keyword, tag in OF_COMMAND.items() if plaintext or keyword not in PLAINTEXT
    ]
    if stls:
        announced.append(b"STLS")
    return replies.multi_line(b"+OK capabilities follow", (*announced, *ALWAYS))
