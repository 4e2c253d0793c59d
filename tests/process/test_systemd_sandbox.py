"""What a unit's sandbox forbids is told as that: in the log by those who are in it, and by
--check-config and --test-login, which are not. A real systemd is the judge of both."""

import grp
import os
import re

import pytest

from mailsite import poll
from samples import MESSAGES, spool_of
from systemdsite import SHA512_OF_SECRET, USERS
from test_systemd import DAEMON, EACH, LISTENER, SERVICE, STYLES
from tpop3d.commands.unit_sandbox import ANOTHER, HIDDEN, READ_ONLY, WRITABLE, Unit

SERVICES = SERVICE | {EACH: "tpop3d@.service"}
SPOOL = spool_of(MESSAGES)
ELSEWHERE = "/srv/mail"


def put_mail(box, directory=ELSEWHERE):
    """Mail for ann in another directory; returns its path outside."""
    place = box.path(directory)
    place.mkdir(parents=True, exist_ok=True)
    os.chown(place, 0, grp.getgrnam("mail").gr_gid)
    place.chmod(0o2775)
    spool = place / "ann"
    spool.write_bytes(SPOOL)
    spool.chmod(0o660)
    os.chown(spool, USERS["ann"], grp.getgrnam("mail").gr_gid)
    return spool


@pytest.fixture
def site(box):
    """The box, of which a test may change what `reset` does not."""
    yield box
    box.systemctl("stop", "tpop3d*")
    box.do("sh", "-c", "rm -rf /srv/* /tmp/mail /var/tmp/mail /var/vmail /home/ann/mbox /root/p")


def answer(box):
    """What ann gets to her password; the first line, where she is not asked for it."""
    wire = box.wire()
    line = wire.line()
    if line.startswith(b"+OK") and wire.ask("USER ann").startswith(b"+OK"):
        line = wire.ask("PASS secret")
        if line.startswith(b"+OK"):
            assert wire.ask("DELE 1").startswith(b"+OK")
            assert wire.ask("QUIT") == b"+OK goodbye\r\n"
    wire.close()
    return line


def warnings(box):
    """What --check-config says of units."""
    done = box.run("tpop3d", "--check-config")
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if ".service" in line]


def trial(box):
    """The exit status of --test-login for ann, and what it says of units."""
    done = box.run("sh", "-c", "echo secret | tpop3d --test-login ann")
    lines = [line.split(None, 1) for line in done.stdout.splitlines()]
    return done.returncode, [text for what, text in lines if what == "unit"]


@pytest.mark.parametrize("style", STYLES)
def test_mail_elsewhere(site, style):
    """The man page's own example; and what is said mends it."""
    put_mail(site)
    site.configure({"mailbox": f"bsd:{ELSEWHERE}/$(user)"})
    site.systemctl("start", style)
    service = SERVICES[style]
    assert answer(site) == b"-ERR [SYS/PERM] maildrop cannot be opened\r\n"
    poll(lambda: "maildrop refused" in site.journal(), "the reason")
    (line,) = [line for line in site.journal().splitlines() if "maildrop refused" in line]
    assert f"Read-only file system: ReadWritePaths= of {service} must let {ELSEWHERE} " in line
    (warning,) = warnings(site)
    assert warning.startswith("warning: /etc/tpop3d.conf:")
    assert f": mailbox: {ELSEWHERE}/$(user): {service} may not write to {ELSEWHERE} " in warning
    assert trial(site) == (5, [warning.partition("$(user): ")[2]])
    edited, setting = re.search(r"systemctl edit (\S+), .*: (\S+=\S+)$", warning).groups()
    assert edited == service
    key, _, value = setting.partition("=")
    site.systemctl("stop", style)
    site.adapt(service, **{f"Service_{key}": value})
    site.systemctl("start", style)
    assert answer(site).startswith(b"+OK maildrop has ")
    assert warnings(site) == []
    assert trial(site) == (0, [])


# How the unit is changed, where mail is, and what the warning and the log name: "" for nothing.
CASES = {
    "as it is": ({}, "/var/mail", "", ""),
    "homes": ({}, "$(home)", "", ""),
    "homes that are hidden": (
        {"ProtectHome": "yes"},
        "$(home)",
        "tpop3d.service does not see /home",
        "ProtectHome= or InaccessiblePaths= of tpop3d.service hides /home",
    ),
    "homes that are empty": (
        {"ProtectHome": "tmpfs"},
        "$(home)",
        "tpop3d.service sees something else than /home",
        "ProtectHome=tmpfs gives tpop3d.service an empty /home",
    ),
    "homes to be read": (
        {"ProtectHome": "read-only"},
        "$(home)",
        "tpop3d.service may not write to /home (ProtectHome=read-only)",
        "ProtectHome= or ReadWritePaths= of tpop3d.service must let /home/ann ",
    ),
    "a /tmp of its own": (
        {},
        "/tmp/mail",
        "tpop3d.service sees something else than /tmp/mail (PrivateTmp=yes)",
        "PrivateTmp= gives tpop3d.service a /tmp of its own",
    ),
    "a link to elsewhere": ({}, "/var/vmail", "", ""),
    "a system that is full, not strict": ({"ProtectSystem": "full"}, ELSEWHERE, "", ""),
    "a list of what is to be read": (
        {"ReadOnlyPaths": "/var/mail"},
        "/var/mail",
        "tpop3d.service may not write to /var/mail (ReadOnlyPaths=/var/mail)",
        "ReadWritePaths= of tpop3d.service must let /var/mail ",
    ),
    "what is inaccessible": (
        {"InaccessiblePaths": "/var/mail"},
        "/var/mail",
        "tpop3d.service does not see /var/mail (InaccessiblePaths=/var/mail)",
        "ProtectHome= or InaccessiblePaths= of tpop3d.service hides /var/mail",
    ),
    "what is above": ({"ReadWritePaths": "/srv"}, ELSEWHERE, "", ""),
    "what is bound": ({"BindPaths": ELSEWHERE}, ELSEWHERE, "", ""),
    "what is bound to be read": (
        {"BindReadOnlyPaths": f"{ELSEWHERE}:/var/mail"},
        "/var/mail",
        "tpop3d.service may not write to /var/mail (BindReadOnlyPaths=/var/mail)",
        "ReadWritePaths= of tpop3d.service must let /var/mail ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_is_what_systemd_does(site, case):
    settings, place, warned, logged = CASES[case]
    if place == "/var/vmail":
        site.path("/srv/mail").mkdir()
        site.path(place).symlink_to("../srv/mail")  # for us, too, who see it from outside
    mailbox = f"bsd:{place}/$(user)"
    if place == "$(home)":
        mailbox = f"bsd:{place}/mbox"
        put_mail(site, "/home/ann").rename(site.path("/home/ann/mbox"))
        os.chown(site.path("/home/ann"), USERS["ann"], USERS["ann"])
        site.path("/home/ann").chmod(0o700)
    else:
        put_mail(site, place)
    put_mail(site, ELSEWHERE)
    site.configure({"mailbox": mailbox})
    if settings:
        site.adapt(DAEMON, **{f"Service_{key}": value for key, value in settings.items()})
    site.systemctl("start", DAEMON)
    got = answer(site)
    said, (status, found) = warnings(site), trial(site)
    if not warned:
        assert got.startswith(b"+OK maildrop has ")
        assert (said, status, found) == ([], 0, [])
        return
    assert got.startswith(b"-ERR [SYS/")
    assert len(said) == 1
    assert warned in said[0]
    assert status == 5
    assert len(found) == 1
    poll(lambda: logged in site.journal(), f"{logged} in the journal")


def test_a_state_directory_elsewhere(site):
    site.path("/srv/state").mkdir(mode=0o711)
    site.add("ann", SPOOL)
    site.configure({"state-directory": "/srv/state"})
    site.adapt(DAEMON, Service_Restart="no")
    assert site.run("systemctl", "start", DAEMON).returncode != 0
    site.wait_for_journal("ReadWritePaths= of tpop3d.service must let /srv/state be written to")
    site.systemctl("start", EACH)
    assert answer(site) == b"-ERR [SYS/PERM] server is not configured\r\n"
    site.wait_for_journal("ReadWritePaths= of tpop3d@.service must let /srv/state be written to")
    (warning,) = warnings(site)
    assert ": state-directory: tpop3d@.service may not write to /srv/state " in warning
    assert trial(site)[0] == 5


def test_a_password_file_that_is_hidden(site):
    """In /root, as many a file of secrets is."""
    path = site.path("/root/p")
    path.write_text(f"ann:{SHA512_OF_SECRET}\n")
    path.chmod(0o600)
    site.add("ann", SPOOL)
    site.path("/etc/tpop3d.conf").write_text(
        "auth-flatfile-enable: yes\nauth-flatfile-passwd-file: /root/p\n"
        "auth-flatfile-mail-user: ann\nauth-flatfile-mailbox: bsd:/var/mail/$(user)\n"
    )
    site.systemctl("start", LISTENER)
    assert answer(site).startswith(b"-ERR [SYS/TEMP] ")
    hides = "ProtectHome= or InaccessiblePaths= of tpop3d-listener.service hides /root"
    site.wait_for_journal(f"/root/p: No such file or directory: {hides}")
    (warning,) = warnings(site)
    does_not = "tpop3d-listener.service does not see /root/p (InaccessiblePaths=/root)"
    assert f": auth-flatfile-passwd-file: {does_not}" in warning
    assert trial(site) == (5, [warning.removeprefix("warning: ")])


def test_a_capability_that_is_taken_away(site):
    site.add("ann", SPOOL)
    site.adapt("tpop3d@.service", Service_CapabilityBoundingSet="~CAP_KILL CAP_CHOWN")
    site.systemctl("start", EACH)
    line = "tpop3d@.service lacks CAP_KILL, CAP_CHOWN (CapabilityBoundingSet=)"
    assert warnings(site) == [f"warning: {line}"]
    assert trial(site) == (5, [line])
    assert answer(site) == b"-ERR [SYS/PERM] server is not configured\r\n"


def test_units_that_are_not_in_use(site):
    """Those that are decide; where none is, any may be started, or xinetd."""
    put_mail(site)
    site.configure({"mailbox": f"bsd:{ELSEWHERE}/$(user)"})
    (warning,) = warnings(site)
    assert all(service in warning for service in SERVICES.values())
    status, (line,) = trial(site)
    assert (status, line) == (0, warning.partition("$(user): ")[2])
    site.adapt(SERVICES[LISTENER], Service_ReadWritePaths=ELSEWHERE)
    site.systemctl("enable", LISTENER)
    try:
        assert warnings(site) == []
        assert trial(site) == (0, [])
        site.systemctl("enable", "tpop3d-tls.socket")
        (warning,) = warnings(site)
        assert "tpop3d-tls@.service may not write" in warning
        assert trial(site)[0] == 5
    finally:
        site.systemctl("disable", LISTENER, SERVICES[LISTENER], "tpop3d-tls.socket")


STRICT = {"ProtectSystem": "strict", "PrivateTmp": "yes"}
RULES = [
    (STRICT, "/srv/mail", READ_ONLY, "ProtectSystem=strict"),
    (STRICT, "/home/anna", WRITABLE, ""),
    (STRICT, "/tmp/x", ANOTHER, "PrivateTmp=yes"),
    (STRICT, "/tmpx", READ_ONLY, "ProtectSystem=strict"),
    (STRICT | {"StateDirectory": "mail"}, "/var/lib/mail/x", WRITABLE, ""),
    (STRICT | {"ReadWritePaths": "-/srv"}, "/srv/mail", WRITABLE, "ReadWritePaths=/srv"),
    (STRICT | {"ReadWritePaths": '"/srv/my mail"'}, "/srv/my mail", WRITABLE, None),
    (
        STRICT | {"ReadWritePaths": "/srv", "ReadOnlyPaths": "+/srv/mail"},
        "/srv/mail/a",
        READ_ONLY,
        "ReadOnlyPaths=/srv/mail",
    ),
    ({"ProtectHome": "yes"}, "/home", HIDDEN, "ProtectHome=yes"),
    ({"ProtectHome": "yes"}, "/run/user/1/x", HIDDEN, "ProtectHome=yes"),
    ({"TemporaryFileSystem": "/srv:ro"}, "/srv/mail", ANOTHER, "TemporaryFileSystem=/srv"),
    (STRICT | {"BindPaths": "/a:/srv/mail:rbind"}, "/srv/mail", WRITABLE, None),
    ({"ProtectSystem": "full"}, "/etc/tpop3d", READ_ONLY, "ProtectSystem=full"),
    ({"ProtectSystem": "no", "PrivateTmp": "no"}, "/tmp", WRITABLE, ""),
    ({}, "/", WRITABLE, ""),
]


@pytest.mark.parametrize(("properties", "path", "effect", "setting"), RULES)
def test_rules(properties, path, effect, setting):
    found = Unit("x.service", properties, True).forbids(path, True)
    assert found[0] == effect
    assert setting is None or found[1] == setting
