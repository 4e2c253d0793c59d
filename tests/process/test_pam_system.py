"""auth-pam with the system's own users: pam_unix(8) behind every door, in a systemd of our own."""

import re
import shutil
from pathlib import Path

import pytest

from mailsite import CHECKOUT, need, poll
from samples import MESSAGES, on_the_wire, spool_of
from systemdsite import SHA512_OF_SECRET

pytest.importorskip("pam", reason="python-pam is not installed in this Python")

SERVICE = "/etc/pam.d/tpop3d"
SETTINGS = {
    "auth-passwd-enable": "no",
    "auth-pam-enable": "yes",
    "auth-pam-mail-group": "mail",
}
EACH = "tpop3d.socket"  # one process for each connection
LISTENER = "tpop3d-listener.socket"
DAEMON = "tpop3d.service"
XINETD = "xinetd"
RUNNING = "tpop3d-xinetd.service"  # so that whoever stops all of ours stops it, too
IN = b"+OK"
WRONG = b"-ERR [AUTH] wrong name or password\r\n"
UNDECIDED = b"-ERR [SYS/TEMP] logins cannot be checked now, try again later\r\n"
ACCESS = "account  required pam_access"
FAILLOCK = """\
auth     required                    pam_faillock.so preauth deny=2
auth     [success=1 default=ignore]  pam_unix.so
auth     [default=die]               pam_faillock.so authfail deny=2
auth     required                    pam_permit.so
account  required                    pam_faillock.so
account  required                    pam_unix.so
"""


@pytest.fixture
def machine(box):
    """The box as an administrator prepares it for PAM; what a test does to its users is undone."""
    kept = {path: path.read_bytes() for path in map(box.path, ("/etc/shadow", "/etc/passwd"))}
    sample = box.path("/opt/tpop3d/checkout/tpop3d/auth/tpop3d.pam")
    box.path(SERVICE).write_bytes(sample.read_bytes())
    access = box.path("/etc/security/access.conf")
    kept[access] = access.read_bytes()
    box.configure(SETTINGS)
    for user in ("ann", "bob"):
        box.add(user, spool_of(MESSAGES))
    yield box
    for path, content in kept.items():
        path.write_bytes(content)
    box.path(SERVICE).unlink()


def start(box, style):
    if style != XINETD:
        box.systemctl("start", style)
        return
    need("xinetd")
    services = box.path("/etc/xinetd.d")
    services.mkdir(exist_ok=True)
    for file in (CHECKOUT / "xinetd").iterdir():
        (services / file.name).write_bytes(file.read_bytes())
    box.path("/etc/xinetd.conf").write_text("includedir /etc/xinetd.d\n")
    box.do("systemd-run", f"--unit={RUNNING}", "--", need("xinetd"), "-dontfork")
    poll(lambda: _answers(box), "xinetd to listen")


def _answers(box):
    try:
        box.connect().close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture(params=[EACH, LISTENER, DAEMON, XINETD])
def style(request, machine):
    start(machine, request.param)
    return request.param


def reply(box, user, password="secret", **where):
    """What a client is told that tries to log in: `IN`, or the whole line."""
    wire = box.wire(**where)
    assert wire.line().startswith(b"+OK")
    assert wire.ask(f"USER {user}") == b"+OK send PASS\r\n"
    line = wire.ask(f"PASS {password}")
    wire.ask("QUIT")
    wire.close()
    return IN if line.startswith(IN) else line


def reason(box, user, attempt=1):
    """What the log has of a refusal, which is the only one or the `attempt`-th."""
    pattern = rf"login (?:failed|undecided) rip=\S+ user={user} .*driver=pam reason=(.*)"

    def found():
        reasons = re.findall(pattern, box.journal())
        return reasons if len(reasons) >= attempt else None

    return poll(found, f"{user} in the journal")[attempt - 1]


# What bob's account is made to be, his password for it, and what the log has to say.
STATES = {
    "wrong": ((), "wrong", "wrong password"),
    "expired": (("chage", "-E", "0"), "secret", "expired account"),
    "expired password": (("chage", "-d", "0"), "secret", "expired password"),
    "locked": (("usermod", "-L"), "secret", "locked account"),
    "gone": (("userdel",), "secret", "unknown user"),
}


def test_who_gets_in_and_who_does_not(machine, style):
    """To the client all refusals are one, and the log tells each from the others."""
    client = machine.wire()
    client.login("ann")
    assert client.ask_long("RETR 1")[1] == on_the_wire(MESSAGES[0])
    assert client.ask("QUIT").startswith(b"+OK")
    machine.wait_for_journal("session rip=127.0.0.1 user=ann method=USER driver=pam ")
    bobs = {path: machine.path(path).read_bytes() for path in ("/etc/shadow", "/etc/passwd")}
    told, logged = set(), []
    for command, password, _ in STATES.values():
        if command:
            machine.do(*command, "bob")
        told.add(reply(machine, "bob", password))
        logged.append(reason(machine, "bob", len(logged) + 1))
        for path, content in bobs.items():
            machine.path(path).write_bytes(content)
    assert told == {WRONG}
    assert logged == [f'"{why}"' for _, _, why in STATES.values()]
    assert reply(machine, "bob") == IN


def test_the_clients_address_decides(machine, style):
    """pam_access(8), by a line that the sample has ready."""
    sample = machine.path(SERVICE).read_text()
    assert "\n#account  required pam_access.so" in sample
    machine.path(SERVICE).write_text(sample.replace("#account  required pam_access", ACCESS))
    machine.path("/etc/security/access.conf").write_text("+:ALL:127.0.0.1\n-:ALL:ALL\n")
    assert reply(machine, "ann") == IN
    assert reply(machine, "ann", source="127.0.0.2") == WRONG
    assert reason(machine, "ann") == '"PAM: Permission denied"'


# What follows is the same behind every door.


@pytest.fixture
def listener(machine):
    machine.systemctl("start", LISTENER)
    return machine


def test_an_account_without_a_password_takes_no_other_one(listener):
    """With nullok, as Debian has it, pam_unix(8) would let it in with whatever is said."""
    listener.do("passwd", "-d", "bob")
    listener.path(SERVICE).write_text(
        "auth required pam_unix.so nullok\naccount required pam_unix.so\n"
    )
    for password in ("secret", "x", ""):
        assert reply(listener, "bob", password) == WRONG
    listener.configure(SETTINGS | {"permit-empty-password": "yes"})
    listener.systemctl("restart", LISTENER)
    assert reply(listener, "bob", "x") == WRONG
    assert reply(listener, "bob", "") == IN


def test_root_is_refused(listener):
    listener.do("usermod", "-p", SHA512_OF_SECRET, "root")
    assert reply(listener, "root") == WRONG
    assert reason(listener, "root") == '"root has no mailbox here"'


def test_where_the_spool_is_and_in_which_group_it_is_opened(listener):
    """Only the group may write there, which the dot-lock and the expunge need."""
    spools = listener.path("/home/spools")
    spools.mkdir()
    listener.do("chown", "root:mail", "/home/spools")
    spools.chmod(0o2775)
    listener.spool("ann").rename(spools / "ann")
    try:
        listener.configure(SETTINGS | {"auth-pam-mailspool-dir": "/home/spools"})
        listener.systemctl("restart", LISTENER)
        client = listener.wire()
        client.login("ann")
        client.ask("DELE 1")
        assert client.ask("QUIT").startswith(b"+OK")
        assert (spools / "ann").read_bytes() == spool_of(MESSAGES[1:])
    finally:
        shutil.rmtree(spools)


def test_mailbox_says_where_the_spool_is(listener):
    listener.configure(SETTINGS | {"mailbox": "bsd:$(home)/mbox"})
    listener.systemctl("restart", LISTENER)
    listener.spool("ann").rename(listener.path("/home/ann/mbox"))
    try:
        client = listener.wire()
        client.login("ann")
        assert client.ask("STAT").startswith(b"+OK %d " % len(MESSAGES))
    finally:
        listener.path("/home/ann/mbox").unlink()


def test_pam_that_is_down_does_not_lock_out_others(listener):
    listener.path(SERVICE).write_text("auth required pam_debug.so auth=authinfo_unavail\n")
    listener.path("/etc/tpop3d.passwd").write_text("flat:{plaintext}secret\n")
    listener.path("/etc/tpop3d.passwd").chmod(0o600)
    flatfile = {"enable": "yes", "passwd-file": "/etc/tpop3d.passwd", "mail-user": "bob"}
    both = SETTINGS | {f"auth-flatfile-{name}": value for name, value in flatfile.items()}
    for order in ("pam flatfile", "flatfile pam"):
        listener.configure(both | {"auth-drivers": order})
        listener.systemctl("restart", LISTENER)
        assert reply(listener, "flat") == IN
        assert reply(listener, "ann") == UNDECIDED
        assert reply(listener, "flat", "wrong") == UNDECIDED


# Behind the units' hardening, one of each kind.
HARDENED = [EACH, LISTENER]


@pytest.mark.parametrize("unit", HARDENED)
def test_the_hardening_is_there(machine, unit):
    """PAM calls back into Python, for which no memory need be writable and executable."""
    machine.systemctl("start", unit)
    client = machine.wire()
    client.login("ann")
    pattern = {EACH: "tpop3d@*.service", LISTENER: "tpop3d-listener.service"}[unit]
    services = machine.do("systemctl", "list-units", "--plain", "--no-legend", pattern).split()
    for setting in ("MemoryDenyWriteExecute", "NoNewPrivileges"):
        assert machine.show(services[0], setting) == "yes"
    for pid in machine.pids(services[0]):
        assert "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("unit", HARDENED)
def test_pam_may_keep_count_of_failures(machine, unit):
    """pam_faillock(8) writes in /run, and an error of its own would be *cannot say*."""
    machine.path(SERVICE).write_text(FAILLOCK)
    machine.systemctl("start", unit)
    try:
        for _ in range(2):
            assert reply(machine, "bob", "wrong") == WRONG
        assert reply(machine, "bob") == WRONG
        assert reply(machine, "ann") == IN
        machine.do("faillock", "--user", "bob", "--reset")
        assert reply(machine, "bob") == IN
    finally:
        shutil.rmtree(machine.path("/run/faillock"))


@pytest.mark.parametrize("unit", HARDENED)
def test_what_hangs_is_cut_off_with_all_that_it_has_started(machine, unit):
    began = machine.path("/home/began")
    script = machine.path("/etc/pam-hangs")
    script.write_text("#!/bin/sh\ntouch /home/began\nsleep 7654 & wait\n")
    script.chmod(0o755)
    sample = machine.path(SERVICE).read_text()
    machine.path(SERVICE).write_text(f"auth optional pam_exec.so /etc/pam-hangs\n{sample}")
    machine.configure(SETTINGS | {"auth-timeout-seconds": 1})
    machine.systemctl("start", unit)
    assert reply(machine, "ann") == UNDECIDED
    assert reason(machine, "ann") == '"driver gave no answer in 1 seconds"'
    began.unlink()
    left = ["pgrep", "-f", "sleep 7654|pam-hangs"]
    poll(lambda: machine.run(*left).returncode == 1, "the script to end")
    machine.path(SERVICE).write_text(sample)
    assert reply(machine, "ann") == IN
