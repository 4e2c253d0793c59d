"""What README tells an administrator to type, typed into a new system; and what pip installs."""

import itertools
import os
import re
import subprocess
import sys

import pytest

import freshbox
import systemdbox
import trixie
from freshbox import README, FreshBox, commands, copy_source
from mailsite import CHECKOUT, ENVIRONMENT, PATIENCE, poll
from samples import MESSAGES, on_the_wire, spool_of

EXAMPLES = "share/doc/tpop3d/examples"
UNITS = sorted(path.name for path in (CHECKOUT / "systemd").glob("*.s*"))
# What the package brings besides the package, under the prefix.
FILES = {
    *(f"lib/systemd/system/{unit}" for unit in UNITS),
    "lib/sysusers.d/tpop3d.conf",
    "lib/tmpfiles.d/tpop3d.conf",
    "share/man/man5/tpop3d.conf.5",
    "share/man/man8/tpop3d.8",
    "share/doc/tpop3d/README",
    *(f"{EXAMPLES}/{name}" for name in ("tpop3d.conf", "tpop3d.pam", "vmail-sql.sql")),
    *(f"{EXAMPLES}/xinetd/{name}" for name in ("tpop3d", "tpop3d-tls", "tpop3d.busy")),
}
FAIL2BAN = CHECKOUT / "tpop3d/fail2ban"
FILES |= {
    f"{EXAMPLES}/fail2ban/{path.relative_to(FAIL2BAN)}"
    for path in FAIL2BAN.rglob("*")
    if path.is_file()
}


SHARED = {"lib/systemd", "share", "share/doc", "share/man"}
STLS = ("--ssl-reqd", "pop3://localhost/1")
PORT_995 = ("pop3s://localhost/1",)
LOGIN_DENIED = 67  # CURLE_LOGIN_DENIED
LEAVE_XINETD = "rm /etc/xinetd.d/tpop3d* && systemctl reload-or-restart xinetd && sleep 1"


@pytest.fixture(scope="module", params=[freshbox.THIS, trixie.ROOT], ids=["here", "debian-13"])
def machine(request):
    systemdbox.require()
    freshbox.require(request.param)
    box = FreshBox(request.param)
    try:
        box.install()
        box.path("/var/mail/ann").write_bytes(spool_of(MESSAGES))
        box.do("chown", "ann:mail", "/var/mail/ann")
        yield box
    finally:
        box.close()


@pytest.fixture(scope="module")
def server(machine):
    """The server as README's five lines install it. The last test that has it removes it."""
    machine.as_new = machine.tree()
    five = commands("INSTALL")
    assert len(five) == 5
    for command in five:
        machine.type(command)
    return machine


@pytest.fixture(scope="module")
def doors(server):
    """The server with what its listener needs under systemd."""
    for command in commands("The two doors that listen")[:2]:
        server.type(command)
    return server


def fetches(box, options):
    """Ann's first message is what curl gets, over TLS or not at all; returns what was logged."""
    cursor = box.do("journalctl", "--lines=0", "--show-cursor").split()[-1]
    command = ["curl", "--silent", "--show-error", "--insecure", "--user", "ann:secret"]
    # Debian 13 says that xinetd is there before it is.
    command += ["--retry", "30", "--retry-delay", "1", "--retry-connrefused"]
    done = box.run(*command, *options, text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == on_the_wire(MESSAGES[0])

    def journal():
        lines = box.do("journalctl", "--output=cat", f"--after-cursor={cursor}")
        return lines if " user=ann method=" in lines else None

    return poll(journal, "the session in the journal", 3 * PATIENCE)


def test_five_commands_make_a_server(server):
    assert "Active: active (listening)" in server.do("systemctl", "status", "tpop3d.socket")
    assert "UnitFileState=enabled" in server.systemctl("show", "tpop3d.socket")
    journal = fetches(server, STLS)
    assert " driver=pam " in journal
    assert " tls=TLSv1.3 " in journal
    assert "tpop3d@" in journal  # the service of this connection
    denied = server.run("curl", "-sk", "--ssl-reqd", "-u", "ann:wrong", "pop3://localhost/")
    assert denied.returncode == LOGIN_DENIED


def test_the_sample_configuration_has_no_errors_as_it_stands(server):
    done = server.run("/opt/tpop3d/bin/tpop3d", "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    chosen = [line for line in done.stdout.splitlines() if not line.endswith("# default")]
    assert "auth-pam-enable: yes" in chosen


def test_port_995_is_one_line_more(server):
    (line,) = commands("One that is renewed")
    server.type(line)
    assert " tls=TLSv1.3 " in fetches(server, PORT_995)
    server.systemctl("disable", "--now", "tpop3d-tls.socket")


def test_man_pages_are_found(server):
    for page in ("tpop3d", "tpop3d.conf"):
        found = server.do("man", "-M", "/opt/tpop3d/share/man", "--where", page)
        assert found.startswith("/opt/tpop3d/share/man/man")


def test_an_upgrade_keeps_it_running(server):
    for line in commands("To upgrade"):
        server.type(line)
    fetches(server, STLS)


def test_other_doors(doors):
    server = doors
    server.type(commands("The two doors that listen")[2])
    assert server.show("tpop3d.socket", "ActiveState") == "inactive"
    fetches(server, STLS)
    assert server.show("tpop3d-listener.service", "ActiveState") == "active"
    server.systemctl("disable", "--now", "tpop3d-listener.socket", "tpop3d-listener.service")
    (line,) = commands("and for the fourth")
    server.type(line)
    for options in (STLS, PORT_995):
        fetches(server, options)
    leave_xinetd(server)


def leave_xinetd(server):
    server.type(LEAVE_XINETD)
    # What the second in it is for, and a second is not always enough here.
    for port in (110, 995):
        poll(lambda p=port: connection(server, p) is None, "xinetd to let go", 3 * PATIENCE)


# Each after each other, and what opens it, with port 995. README has two of them in prose.
WALK = "each listener daemon xinetd each daemon listener xinetd listener each xinetd daemon each"
ONCE = "each listener xinetd daemon"
OPEN = {
    "each": "systemctl enable --now tpop3d.socket tpop3d-tls.socket",
    "listener": commands("To change the door later")[1],
    "daemon": "systemctl enable --now tpop3d.service",
    "xinetd": commands("and for the fourth")[0],
}
BOTH_PORTS = "listen-address: 0.0.0.0 [::] 0.0.0.0;tls=immediate [::];tls=immediate"


def test_every_door_can_follow_every_other_and_is_there_after_a_boot(doors):
    server = doors
    server.type(f"echo '{BOTH_PORTS}' >>/etc/tpop3d.conf")
    doors = (WALK if server.system == freshbox.THIS else ONCE).split()
    words = " ".join(README.split())
    assert all(command in words for command in (LEAVE_XINETD, OPEN["daemon"]))
    assert {*itertools.pairwise(WALK.split())} == {*itertools.permutations(OPEN, 2)}
    before = None
    for door in doors:
        if before == "xinetd":
            leave_xinetd(server)
        server.type(commands("To change the door later")[0])
        server.type(OPEN[door])
        for port in (110, 995):
            poll(lambda p=port: connection(server, p), "a new door", 3 * PATIENCE).close()
        server.reboot()
        for options in (STLS, PORT_995):
            fetches(server, options)
        before = door
    server.type(f"sed -i '/^{BOTH_PORTS[:14]}/d' /etc/tpop3d.conf")


@pytest.fixture
def installed(doors):
    """The server, also after it was removed; nothing of it runs."""
    server = doors
    if server.path("/run/installed.tar").exists():
        server.do("tar", "-C", "/", "-xf", "/run/installed.tar")
        server.systemctl("daemon-reload")
        server.systemctl("reset-failed")
    else:
        server.type(commands("To change the door later")[0])
        server.do("tar", "-C", "/", "-cf", "/run/installed.tar", *REMOVED)
    return server


REMOVED = ("opt/tpop3d", "etc", "var/lib/tpop3d")
BY_HAND = {"by hand": "/opt/tpop3d/bin/tpop3d --detach"}


@pytest.mark.parametrize("opening", (OPEN | BY_HAND).values(), ids=OPEN | BY_HAND)
def test_all_can_be_removed(installed, opening):
    """Files, and what runs of them: the listener, and those who are served."""
    settings = "listen-address: 0.0.0.0\nshutdown-seconds: 1"  # sessions need not take longer
    installed.type(f"echo '{settings}' >>/etc/tpop3d.conf")
    installed.type(opening)
    with poll(lambda: connection(installed), "the port", 3 * PATIENCE) as client:
        client.settimeout(3 * PATIENCE)
        assert client.recv(1000).startswith(b"+OK")
        assert running(installed)
        for line in commands("To remove all"):
            installed.type(line)
        said = client.recv(1000)  # if its gatekeeper ends first, the listener may still say so
        assert not said or said.startswith(b"-ERR [SYS/TEMP]")
        poll(lambda: not running(installed), "all to end", 3 * PATIENCE)
    poll(lambda: connection(installed) is None, "nobody there", 3 * PATIENCE)
    after = installed.tree()
    assert sorted(after) == sorted(installed.as_new)
    assert [name for name in after if after[name] != installed.as_new[name]] == []


def connection(box, port=110):
    try:
        return box.connect(port=port)
    except ConnectionRefusedError:
        return None


def running(box):
    """The command lines of what runs there of ours."""
    listed = box.do("ps", "-e", "-o", "args=").splitlines()
    return [line for line in listed if "/opt/tpop3d" in line]


def test_without_a_directory_of_its_own(machine):
    """Under /usr/local, where systemd finds it by itself, by Debian's own Python."""
    before = machine.tree()
    (install,) = re.findall(r'"(pip install --break-system-packages .*)"', README)
    machine.type(install)
    machine.systemctl("daemon-reload")
    for unit in UNITS:
        loaded = unit.replace("@", "@instance")
        where = f"/usr/local/lib/systemd/system/{unit}"
        assert machine.show(loaded, "FragmentPath") == where
        if unit.endswith(".service"):
            assert "path=/usr/local/bin/tpop3d ;" in machine.show(loaded, "ExecStart")
    assert "POP3" in machine.do("man", "--pager=cat", "tpop3d")
    machine.do("systemd-sysusers")
    machine.do("getent", "passwd", "tpop3d")
    machine.do("userdel", "tpop3d")
    machine.type("pip uninstall --yes --break-system-packages tpop3d python-pam crypt_r")
    left = {name: content for name, content in machine.tree().items() if content is not None}
    assert left == {name: content for name, content in before.items() if content is not None}


# -- without a system of its own


def pip(venv, *arguments):
    """What pip does for a virtual environment that has none itself; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", venv, "--disable-pip-version-check", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=venv.parent,
        env=ENVIRONMENT | {"PYTHONPATH": "", "PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def venv(tmp_path):
    """A virtual environment, and beside it the sources."""
    if not freshbox.WHEELS.is_dir():
        pytest.skip("tests/run has not fetched what pip wants")
    copy_source(tmp_path / "source")
    path = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    return path


def install(venv, *options):
    wheels = ["--no-index", "--find-links", freshbox.WHEELS]
    pip(venv, "install", *wheels, "--no-deps", *options, venv.parent / "source")


def files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def directories(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_dir()}


def test_what_is_installed_and_what_uninstalling_leaves(venv):
    before, directories_before = files(venv), directories(venv)
    left_by_another = venv.parent / "source/build/lib/tpop3d/stale.py"
    left_by_another.parent.mkdir(parents=True)
    left_by_another.touch()
    install(venv)
    new = files(venv) - before
    package = {name for name in new if "/site-packages/" in name}
    assert new - package == FILES | {"bin/tpop3d"}
    modules = {name.partition("/site-packages/")[2] for name in package}
    ours = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "tpop3d").rglob("*.py")}
    assert {name for name in modules if name.startswith("tpop3d/") and name.endswith(".py")} == ours
    _names_the_command(venv, f"{venv}/bin/tpop3d")
    pip(venv, "uninstall", "--yes", "tpop3d")
    assert files(venv) == before
    # pip leaves empty directories that other packages would use, too.
    assert directories(venv) - directories_before <= SHARED


def _names_the_command(prefix, command):
    """Whatever starts the command does so where it is; no other file was touched."""
    done = subprocess.run([command, "-V"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tpop3d ")
    for unit in UNITS:
        text = (prefix / "lib/systemd/system" / unit).read_text()
        assert re.findall(r"^ExecStart=(\S+)", text, re.M) == [command] * unit.endswith(".service")
        original = (CHECKOUT / "systemd" / unit).read_text()
        assert text == original.replace("/usr/local/bin/tpop3d", command)
    for name in ("tpop3d", "tpop3d-tls"):
        text = (prefix / EXAMPLES / "xinetd" / name).read_text()
        assert re.findall(r"^\s*server\s*= (.*)$", text, re.M) == [command]
    for name in ("README", "man/tpop3d.8"):
        installed = prefix / (
            "share/man/man8/tpop3d.8" if "man" in name else "share/doc/tpop3d/README"
        )
        assert installed.read_bytes() == (CHECKOUT / name).read_bytes()
