"""Mail that a real program delivers in mid-session is neither shown nor lost."""

import doors
from neighbours import Procmail, numbers_in
from spools import mbox


def test_mail_delivered_during_a_session_survives_its_expunge(site):
    site.add("anna", mbox(b"number 1\n", b"number 2\n"))
    with doors.inetd(site) as wire:
        wire.login("anna")
        Procmail(site, patience=1).deliver("anna", 3)
        assert wire.ask("STAT").startswith(b"+OK 2 ")
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("DELE 2").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
    assert numbers_in(site.spool("anna").read_bytes()) == [3]
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert numbers_in(wire.ask_long("RETR 1")[1]) == [3]
        assert wire.ask("QUIT").startswith(b"+OK")
