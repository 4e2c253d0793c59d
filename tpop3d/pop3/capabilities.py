"""CAPA (RFC 2449).

The list is the same in both states, as RFC 2449 wants of capabilities of the AUTHORIZATION state;
but STLS is in it only where it is allowed (RFC 2595 section 4).
"""

from __future__ import annotations

from tpop3d.pop3 import replies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.pop3.commands import Command
    from tpop3d.pop3.replies import Reply

# What a command announces. A test proves that each of them is in a table of commands: to look here
# would import the other state's table before each greeting. APOP's tag is the banner.
OF_COMMAND = {
    b"USER": b"USER",
    b"AUTH": b"SASL PLAIN",
    b"UTF8": b"UTF8 USER",  # names and passwords may be UTF-8 too (RFC 6856 section 2.1)
    b"TOP": b"TOP",
    b"UIDL": b"UIDL",
}
PLAINTEXT = (b"USER", b"AUTH")  # not announced where they would be refused
# What holds in every state: codes (RFC 2449 section 8, RFC 3206), gathered replies
# (RFC 2449 section 6.6), and that no message is ever removed by the server itself.
ALWAYS = (
    b"RESP-CODES",
    b"AUTH-RESP-CODE",
    b"PIPELINING",
    b"EXPIRE NEVER",
    b"IMPLEMENTATION tpop3d",
)


def capa(command: Command, plaintext: bool, stls: bool = False) -> Reply:
    """Answer CAPA. `plaintext`: are passwords taken as they are? `stls`: may TLS begin now?"""
    if command.words():
        return replies.WRONG_ARGUMENTS
    announced = [
        tag for keyword, tag in OF_COMMAND.items() if plaintext or keyword not in PLAINTEXT
    ]
    if stls:
        announced.append(b"STLS")
    return replies.multi_line(b"+OK capabilities follow", (*announced, *ALWAYS))
