"""Real deliverers at work on the same spool: every message arrives, once, and none waits long."""

import os
import poplib
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import doors
from mailsite import MAIL_USER, need
from spools import mbox

MESSAGES = 60
MESSAGE = "From: d@example.org\nTo: anna@example.org\n\nnumber {number}\n"


def deliver(site, number):
    """Let procmail deliver one numbered message; returns how long that took, in seconds."""
    started = time.monotonic()
    recipe = site.path / "procmailrc"
    command = [
        need("procmail"),
        "-f",
        "d@example.org",
        "-m",
        f"DEFAULT={site.spool('anna')}",
        str(recipe),
    ]
    subprocess.run(
        command,
        input=MESSAGE.format(number=number).encode(),
        check=True,
        capture_output=True,
        user=MAIL_USER.pw_uid,
        group=MAIL_USER.pw_gid,
        extra_groups=[],
        env={"PATH": os.defpath, "HOME": str(site.spools)},
        cwd=site.spools,
    )
    return time.monotonic() - started


@pytest.fixture
def procmail_site(site):
    # It takes both locks, as procmail's default delivery does.
    recipe = site.path / "procmailrc"
    recipe.write_text(f"LOCKSLEEP=1\n:0:\n{site.spool('anna')}\n")
    recipe.chmod(0o644)
    return site


def numbers_in(octets):
    return [int(number) for number in re.findall(rb"^number (\d+)\r?$", octets, re.MULTILINE)]


def test_mail_delivered_during_a_session_survives_its_expunge(procmail_site):
    site = procmail_site
    site.add("anna", mbox(b"number 1\n", b"number 2\n"))
    with doors.inetd(site) as wire:
        wire.login("anna")
        deliver(site, 3)
        assert wire.ask("STAT").startswith(b"+OK 2 ")
        assert wire.ask("DELE 1").startswith(b"+OK")
        assert wire.ask("DELE 2").startswith(b"+OK")
        assert wire.ask("QUIT").startswith(b"+OK")
    assert numbers_in(site.spool("anna").read_bytes()) == [3]
    with doors.inetd(site) as wire:
        wire.login("anna")
        assert numbers_in(wire.ask_long("RETR 1")[1]) == [3]
        assert wire.ask("QUIT").startswith(b"+OK")


def fetch_and_delete(door):
    """One session that takes everything; returns the numbers that are then the client's."""
    try:
        client = door.poplib()
        client.user("anna")
        client.pass_("secret")
        taken = []
        for index in range(len(client.list()[1])):
            taken += numbers_in(b"\n".join(client.retr(index + 1)[1]))
            client.dele(index + 1)
        client.quit()
    except poplib.error_proto as error:
        if b"[IN-USE]" in error.args[0] or b"[SYS/TEMP]" in error.args[0]:
            return []
        raise
    return taken


def test_fetching_and_delivering_at_once_loses_and_doubles_nothing(procmail_site):
    site = procmail_site
    site.add("anna")
    taken = []
    with doors.systemd_accept(site) as door, ThreadPoolExecutor(3) as pool:
        deliveries = [pool.submit(deliver, site, number) for number in range(MESSAGES)]
        while not all(delivery.done() for delivery in deliveries):
            taken += fetch_and_delete(door)
        taken += fetch_and_delete(door)
    assert sorted(taken + numbers_in(site.spool("anna").read_bytes())) == list(range(MESSAGES))
    assert not os.path.exists(f"{site.spool('anna')}.lock")
    assert all(delivery.exception() is None for delivery in deliveries)
