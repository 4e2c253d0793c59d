"""The service files in xinetd/, in the real xinetd: there stdout and stderr are the client's."""

import re
import shutil

import pytest

import doors
import tlskit
from authkit import recorded_syslog
from doors import Logs
from mailsite import CHECKOUT, IS_ROOT, has_ipv6, need, poll
from samples import MESSAGES, on_the_wire, spool_of
from tpop3d.pop3.replies import TOO_MANY_CONNECTIONS

FILE = CHECKOUT / "xinetd" / "tpop3d"
TLS_FILE = CHECKOUT / "xinetd" / "tpop3d-tls"
BUSY = CHECKOUT / "xinetd" / "tpop3d.busy"
DEFAULTS = {"instances": "64", "per_source": "16"}
IPV6 = "::1"


def attributes(text):
    """What a service file says: pairs of attribute and value."""
    return re.findall(r"^\t(\w+)\t+= ?(.*)$", text, re.MULTILINE)


def adapted(site, port, file, conf, path, host, **changed):
    """The file as an administrator adapts it, and an xinetd.conf that includes it.

    `path` is PYTHONPATH; `changed` are values of attributes that the file has.
    """
    said = dict(attributes(file.read_text()))
    server_args = f"{' '.join(doors.SERVER[1:])} {said['server_args']} -f {conf}"
    changed = {"server_args": server_args} | changed
    # The file's own are about IPv6, and with them xinetd takes no IPv4 address to bind to.
    flags = said["flags"] if host == IPV6 else "NORETRY"
    changed |= {
        "server": doors.SERVER[0],
        # More lines in its place.
        "flags": f"{flags}\n\tport = {port}\n\tbind = {host}\n\ttype = UNLISTED"
        f"\n\tenv = PYTHONPATH={path}",
    }
    if "banner_fail" in said:
        changed["banner_fail"] = str(site.path / "xinetd.d" / BUSY.name)
    text = file.read_text()
    for name, value in changed.items():
        text, count = re.subn(rf"^(\t{name}\t+=).*$", rf"\1 {value}", text, flags=re.MULTILINE)
        assert count == 1, f"{name} is not in {file}"
    directory = site.path / "xinetd.d"
    directory.mkdir(exist_ok=True)
    (directory / file.name).write_text(text)
    shutil.copy(BUSY, directory)
    main = site.path / "xinetd.conf"
    main.write_text(f"includedir {directory}\n")
    return main


@pytest.fixture
def door(site):
    """Start the xinetd that has the service, with `changed` attributes."""
    if not IS_ROOT:
        pytest.skip("only root can start services as root behind xinetd")
    program = need("xinetd")
    open_doors = []

    def start(file=FILE, conf=site.conf, path=CHECKOUT, host=doors.Door.host, **changed):
        logs = Logs(site.path / "xinetd.log")

        def command(port):
            main = adapted(site, port, file, conf, path, host, **changed)
            pidfile = site.path / "xinetd.pid"
            return [program, "-dontfork", "-f", main, "-pidfile", pidfile, "-filelog", logs.path]

        context = doors.door_of(*doors.listening(command, logs), logs)
        open_doors.append(context)
        opened = context.__enter__()
        opened.host = host
        return opened

    yield start
    for context in open_doors:
        context.__exit__(None, None, None)


def answer(port):
    """All that a client gets who says nothing."""
    return b"".join(iter(port.connect().line, b""))


def test_what_the_file_says():
    said = dict(attributes(FILE.read_text()))
    assert said["server"].endswith("/tpop3d")
    assert said["server_args"] == "--inetd"
    assert (said["socket_type"], said["wait"], said["user"]) == ("stream", "no", "root")
    assert {name: said[name] for name in DEFAULTS} == DEFAULTS
    assert said["flags"].split() == ["IPv6", "KEEPALIVE"]
    # A rate that no site reaches by itself; the pause after it is short, for all have to wait.
    rate, pause = map(int, said["cps"].split())
    assert rate >= int(said["instances"])
    assert 0 < pause < 10
    # Whom it refused only xinetd can tell; all else is in our own log.
    assert said["log_on_failure"].split() == ["HOST"]
    assert said["log_on_success"].split() == []
    assert BUSY.read_bytes() == TOO_MANY_CONNECTIONS
    assert said["banner_fail"].endswith(f"/{BUSY.name}")


def test_sessions_one_after_the_other_and_side_by_side(site, door):
    site.add("ann", spool_of(MESSAGES))
    site.add("bob")
    port = door()
    ann, bob = port.connect(), port.connect()
    ann.login("ann")
    bob.login("bob")
    for n, message in enumerate(MESSAGES, 1):
        assert ann.ask_long(f"RETR {n}")[1] == on_the_wire(message)
    assert ann.ask("DELE 1").startswith(b"+OK")
    assert ann.ask("QUIT").startswith(b"+OK")
    assert ann.line() == b""
    assert bob.ask("STAT") == b"+OK 0 0\r\n"
    again = port.connect()
    again.login("ann")
    assert again.ask("STAT").startswith(b"+OK %d " % (len(MESSAGES) - 1))


def test_a_session_over_ipv6(site, door):
    """With the flags that the file has: elsewhere in this file they are others."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    site.add("ann", spool_of(MESSAGES))
    environment, record = recorded_syslog(site.path)
    client = door(path=environment["PYTHONPATH"], host=IPV6).connect()
    client.login("ann")
    assert client.ask_long("RETR 1")[1] == on_the_wire(MESSAGES[0])
    assert client.ask("QUIT").startswith(b"+OK")
    assert client.line() == b""
    poll(lambda: "session rip=::1 user=ann " in record.read_text(), "the session's line")


def test_the_very_first_sessions_come_at_once(site, door):
    # Each finds no state directory, and each makes it.
    site.configure({"state-directory": site.path / "not-yet-there"})
    port = door()
    clients = [port.connect() for _ in range(12)]
    assert {client.line()[:3] for client in clients} == {b"+OK"}


@pytest.mark.parametrize("limit", ["instances", "per_source"])
def test_over_a_limit_the_client_is_told_so(site, door, limit):
    port = door(**{limit: "2"})
    inside = [port.connect() for _ in range(2)]
    assert all(client.line().startswith(b"+OK") for client in inside)
    for _ in range(3):
        assert answer(port) == TOO_MANY_CONNECTIONS
    # Those inside have noticed nothing, and the place of one that leaves is free again.
    assert inside[0].ask("QUIT").startswith(b"+OK")
    assert inside[1].ask("CAPA").startswith(b"+OK")

    def let_in():
        client = port.connect()
        line = client.line()
        client.close()
        return line.startswith(b"+OK")

    poll(let_in, "the place to be free")


BROKEN = {
    "an unknown directive": "no-such-directive: yes\n",
    "no driver": "timeout-seconds: 60\n",
    "no configuration at all": "GIF89a\0\xff\n",
    "an empty file": "",
}


MISUSES = {
    "an option that there is none": ("--inetd --bogus", "unrecognized arguments: --bogus"),
    "no file after -f": ("--inetd -f", "-f: expected one argument"),
    "options that exclude each other": ("-d --detach", "-d stays in the foreground"),
}


@pytest.mark.parametrize("how", MISUSES)
def test_a_command_line_that_is_wrong_is_one_line_to_the_client(site, door, how):
    arguments, reason = MISUSES[how]
    environment, record = recorded_syslog(site.path)
    server_args = f"{' '.join(doors.SERVER[1:])} {arguments}"
    refusal = answer(door(path=environment["PYTHONPATH"], server_args=server_args))
    assert refusal.startswith(b"-ERR [SYS/PERM] ")
    assert refusal.count(b"\n") == 1
    assert reason in record.read_text()


def test_a_server_that_is_not_whole_is_one_line_to_the_client(site, door):
    """As in the middle of an upgrade: one of its modules is of another time."""
    environment, record = recorded_syslog(site.path)
    with (site.path / "sitecustomize.py").open("a") as file:
        file.write("import sys\nsys.modules['tpop3d.settings'] = sys\n")
    refusal = answer(door(path=environment["PYTHONPATH"]))
    assert refusal.startswith(b"-ERR [SYS/")
    assert refusal.count(b"\n") == 1
    assert "ImportError" in record.read_text()


@pytest.mark.parametrize("how", [*BROKEN, "no file", "a directory", "a file nobody may read"])
def test_a_server_that_cannot_start_is_one_line_to_the_client(site, door, how):
    conf = site.path / "broken.conf"
    if how in BROKEN:
        conf.write_text(BROKEN[how])
    elif how == "a directory":
        conf.mkdir()
    elif how == "a file nobody may read":
        conf = "/proc/self/mem"  # which is true for root, too
    environment, record = recorded_syslog(site.path)
    refusal = answer(door(conf=conf, path=environment["PYTHONPATH"]))
    assert refusal.startswith(b"-ERR [SYS/PERM] ")
    assert refusal.endswith(b"\r\n")
    assert refusal.count(b"\n") == 1
    assert b"conf" not in refusal.replace(b"configur", b"")  # neither file names nor contents
    assert str(conf) in record.read_text()  # the reason is in the log


def test_the_file_for_tls_says_the_same_but_for_that():
    said, others = dict(attributes(TLS_FILE.read_text())), dict(attributes(FILE.read_text()))
    assert said.pop("server_args") == f"{others.pop('server_args')} --tls"
    del others["banner_fail"]  # without TLS, and so not for these clients
    assert said == others
    services = [re.findall(r"^service (\w+)$", file.read_text(), re.M) for file in (FILE, TLS_FILE)]
    assert services == [["pop3"], ["pop3s"]]


@pytest.mark.parametrize("host", [doors.Door.host, IPV6])
def test_sessions_over_tls(site, door, host):
    if host == IPV6 and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    site.add("ann", spool_of(MESSAGES))
    tlskit.secure(site, host, **{"plaintext-logins": "no"})
    environment, record = recorded_syslog(site.path)
    port = door(TLS_FILE, path=environment["PYTHONPATH"], host=host)
    ann, other = (
        tlskit.wrap(port.connect(), name=host, suppress_ragged_eofs=False) for _ in range(2)
    )
    assert other.line().startswith(b"+OK")
    ann.login("ann")
    for n, message in enumerate(MESSAGES, 1):
        assert ann.ask_long(f"RETR {n}")[1] == on_the_wire(message)
    assert ann.ask("DELE 1").startswith(b"+OK")
    assert ann.ask("QUIT").startswith(b"+OK")
    assert ann.line() == b""
    assert site.spool("ann").read_bytes() == spool_of(MESSAGES[1:])
    ending = f"session rip={host} user=ann .* tls=TLSv1.3 .* end=quit"
    poll(lambda: re.search(ending, record.read_text()), "the session's line")
    assert other.ask("CAPA").startswith(b"+OK")


@pytest.mark.parametrize("limit", ["instances", "per_source"])
def test_over_a_limit_a_client_with_tls_is_left(site, door, limit):
    tlskit.secure(site)
    port = door(TLS_FILE, **{limit: "1"})
    inside = tlskit.wrap(port.connect())
    assert inside.line().startswith(b"+OK")
    assert answer(port) == b""
    assert inside.ask("QUIT").startswith(b"+OK")


def test_without_a_certificate_tls_is_not_served(site, door):
    environment, record = recorded_syslog(site.path)
    refusal = answer(door(TLS_FILE, path=environment["PYTHONPATH"]))
    assert refusal == b"-ERR [SYS/PERM] server is not configured\r\n"
    assert "tls-certificate" in record.read_text()


NOT_CONFIGURED = b"-ERR [SYS/PERM] server is not configured\r\n"


def test_with_wait_each_client_is_refused_once_and_the_log_says_what_to_change(site, door):
    """xinetd starts the server again as long as anybody waits on the socket."""
    environment, record = recorded_syslog(site.path)
    port = door(path=environment["PYTHONPATH"], wait="yes")
    for _ in range(3):
        assert answer(port) == NOT_CONFIGURED
    poll(lambda: not site.processes() or site.processes() == [port.process.pid], "the end of all")
    told = record.read_text().splitlines()
    assert 1 <= len(told) <= 3
    assert all("stdin is a listening socket" in line for line in told)
    assert all("wait = no" in line for line in told)
