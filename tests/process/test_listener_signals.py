"""The listener is reloaded and stopped, with clients at work."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import doors
from authkit import but_for_syslogd
from mailsite import ENVIRONMENT, IS_ROOT, PATIENCE, poll
from spools import mbox

SPOOL = mbox(b"Subject: one\n\n1\n", b"Subject: two\n\n2\n")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def session(door, user):
    """One whole session; returns why it failed, or ""."""
    try:
        wire = door.connect()
        greeting = wire.line()
    except OSError as error:
        # Also one that the kernel had taken, and that nobody accepted before the end.
        return f"refused: {error}"
    if not (
        greeting.startswith(b"+OK")
        and wire.ask(f"USER {user}").startswith(b"+OK")
        and wire.ask("PASS secret").startswith(b"+OK")
    ):
        return "broken before the login"
    good = wire.ask("STAT").startswith(b"+OK 2 ") and wire.ask("QUIT").startswith(b"+OK")
    wire.close()
    return "" if good else "broken"


@contextmanager
def load(door, users):
    """Sessions of all these users, one after the other, until the block ends."""
    stop = threading.Event()
    results = []

    def work(user):
        while not stop.is_set():
            try:
                results.append(session(door, user))
            except OSError as error:
                results.append(f"broken: {error}")

    threads = [threading.Thread(target=work, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def reload(door, wanted="reload: "):
    count = len([line for line in door.logs.lines() if wanted in line])
    door.process.send_signal(signal.SIGHUP)
    poll(lambda: len([1 for line in door.logs.lines() if wanted in line]) > count, "the reload")


def test_a_reload_under_load_breaks_no_session(site):
    users = [f"user{n}" for n in range(6)]
    for user in users:
        site.add(user, SPOOL)
    with doors.standalone(site) as door:
        with load(door, users) as results:
            for _ in range(10):
                reload(door)
                done = len(results)
                poll(lambda done=done: len(results) > done + 5, "sessions after the reload")
        assert set(results) == {""}
        assert len(results) > 50


def test_a_reload_changes_limits_and_addresses_and_keeps_sessions(site):
    site.add("anna", SPOOL)
    with doors.standalone(site) as door:
        old, new = door.port, free_port()
        wire = door.connect()
        wire.login("anna")
        waiting = door.connect()
        assert waiting.line().startswith(b"+OK")
        site.configure({"listen-address": f"127.0.0.1:{new}", "max-children": 3})
        reload(door)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", old), PATIENCE)
        door.port = new
        third = door.connect()
        assert third.line().startswith(b"+OK")
        assert door.connect().line().startswith(b"-ERR [SYS/TEMP]")
        # Who was there before is served on.
        assert wire.ask("STAT").startswith(b"+OK 2 ")
        assert waiting.ask("CAPA").startswith(b"+OK")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max-children": "many"}, "max-children: must be a number"),
        ({"no-such-directive": "yes"}, "no-such-directive: unknown directive"),
        ({"listen-address": "192.0.2.1:110"}, "cannot listen on 192.0.2.1:110: Cannot assign"),
        ({"listen-address": "mail..example:110"}, "'mail..example' is no name of a host"),
        ({"listen-address": None}, "nothing to listen on: give listen-address"),
    ],
)
def test_a_bad_configuration_changes_nothing(site, settings, complaint):
    site.add("anna", SPOOL)
    with doors.standalone(site) as door:
        site.configure(settings)
        reload(door, "kept as it was")
        assert complaint in door.logs.text()
        assert session(door, "anna") == ""


def test_sigterm_lets_sessions_end_by_themselves_and_accepts_no_more(site):
    site.add("anna", SPOOL)
    with doors.standalone(site, settings={"shutdown-seconds": 60}) as door:
        wire = door.connect()
        wire.login("anna")
        assert wire.ask("DELE 1").startswith(b"+OK")
        door.process.send_signal(signal.SIGTERM)
        poll(lambda: refuses(door.port), "the listener to close")
        assert wire.ask("QUIT").startswith(b"+OK")
        assert door.process.wait(PATIENCE) == 0
    assert b"Subject: one" not in site.spool("anna").read_bytes()
    assert site.processes() == []


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return True
    return False


def test_after_shutdown_seconds_sessions_are_ended_and_nothing_is_deleted(site):
    site.add("anna", SPOOL)
    with doors.standalone(site, settings={"shutdown-seconds": 1}) as door:
        wire = door.connect()
        wire.login("anna")
        assert wire.ask("DELE 1").startswith(b"+OK")
        waiting = door.connect()
        assert waiting.line().startswith(b"+OK")
        started = time.monotonic()
        door.process.send_signal(signal.SIGTERM)
        assert wire.line() == b""
        assert waiting.line() == b""
        assert door.process.wait(PATIENCE) == 0
        assert time.monotonic() - started >= 1
        door.logs.wait_for("session .*user=anna .*dele=0 left=2 .*end=signal")
    assert site.spool("anna").read_bytes() == SPOOL
    assert site.processes() == []


def test_sigterm_under_load_breaks_no_session(site):
    users = [f"user{n}" for n in range(6)]
    for user in users:
        site.add(user, SPOOL)
    with doors.standalone(site) as door:
        with load(door, users) as results:
            poll(lambda: len(results) > 20, "sessions")
            door.process.send_signal(signal.SIGTERM)
            assert door.process.wait(PATIENCE) == 0
        # A client that the kernel had taken and nobody accepted is reset; no other.
        others = {result for result in results if result}
        assert {result for result in others if not result.startswith("refused")} == set()
    poll(lambda: site.processes() == [], "all others to end")
    for user in users:
        assert site.spool(user).read_bytes() == SPOOL


def run(site, *arguments, **options):
    command = [*doors.SERVER, "-f", str(site.conf), *arguments]
    return subprocess.run(
        command,
        **{"stdin": subprocess.DEVNULL, "env": ENVIRONMENT, "cwd": "/"} | options,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def complaint(site, **options):
    """The one line with which a listener ends that cannot listen."""
    site.configure({"log-stderr": "no"})
    done = run(site, **options)
    assert done.returncode == 1
    lines = but_for_syslogd(done.stderr).splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_taken_port_is_one_clear_line(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site.configure({"listen-address": f"127.0.0.1:{port}"})
        told = f"cannot listen on 127.0.0.1:{port}: Address already in use by another server"
        assert told in complaint(site)


def test_an_address_that_is_not_ours_is_one_clear_line(site):
    site.configure({"listen-address": "192.0.2.1:1110"})
    assert complaint(site).endswith(
        "cannot listen on 192.0.2.1:1110: Cannot assign requested address"
    )


def test_no_address_at_all_is_one_clear_line(site):
    assert "nothing to listen on: give listen-address" in complaint(site)


def test_a_port_that_one_may_not_have_is_one_clear_line(site):
    """As nobody, in a network namespace where low ports are privileged."""
    low = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if low < 2:
        pytest.skip("no port is privileged here")
    site.configure({"listen-address": "127.0.0.1:1"})
    drop = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n" if IS_ROOT else ""
    # What an interpreter in a home directory could not load as nobody any more.
    code = "import ctypes, encodings.idna, importlib\nfrom tpop3d import cli, settings\n"
    code += "from tpop3d.auth import flatfile, registry\n"
    code += "from tpop3d.commands import check_config\n"
    code += "from tpop3d.doors import standalone, activation\n"
    code += "from tpop3d.listener import sd_notify, listener\n"
    code += "from tpop3d.privsep import sandbox\n" + drop
    code += f"raise SystemExit(cli.main(['-f', {str(site.conf)!r}]))"
    site.conf.chmod(0o644)
    done = subprocess.run(
        [doors.SERVER[0], "-c", code], env=ENVIRONMENT, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "cannot listen on 127.0.0.1:1: Permission denied" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_pid_file_is_written_and_removed(site):
    pidfile = site.path / "pid"
    with doors.standalone(site, "-p", str(pidfile)) as door:
        poll(pidfile.exists, "the pid file")
        assert pidfile.read_text() == f"{door.process.pid}\n"
    assert not pidfile.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_line_that_it_listens_ends_it_in_good_order(
    site, monkeypatch, number
):
    code = "import os, sys\nfrom tpop3d.system import logs\nreal = logs.notice\n"
    code += "def notice(line):\n    real(line)\n    if line.startswith('listening'):\n"
    code += f"        os.kill(os.getpid(), {int(number)})\nlogs.notice = notice\n"
    code += "from tpop3d.cli import main\nraise SystemExit(main(sys.argv[1:]))"
    pidfile = site.path / "pid"
    site.configure({"listen-address": "127.0.0.1:0"})
    done = subprocess.run(
        [doors.SERVER[0], "-c", code, "-d", "-f", str(site.conf), "-p", str(pidfile)],
        env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.rstrip().endswith("stopped")
    assert not pidfile.exists()


@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize("before", [None, 0o666, 0o600])
def test_a_pid_file_is_for_others_to_read_and_for_nobody_to_change(site, umask, before):
    pidfile = site.path / "pid"
    if before is not None:
        pidfile.write_text("a longer text than that of a pid\n")
        pidfile.chmod(before)
    ours = os.umask(umask)
    try:
        with doors.standalone(site, "-p", str(pidfile)) as door:
            assert pidfile.read_text() == f"{door.process.pid}\n"
            assert pidfile.stat().st_mode & 0o7777 == 0o644
    finally:
        os.umask(ours)


NO_PIDFILES = {
    "a symbolic link": "a pid file must not be a link",
    "a symbolic link to nothing": "a pid file must not be a link",
    "a hard link": "a pid file must be a file, with no other name",
    "a fifo": "No such device or address",
    "another's": "a pid file must not belong to another user",
    "a directory": "Is a directory",
}


@pytest.mark.parametrize("kind", NO_PIDFILES)
def test_a_pid_file_is_never_written_through_a_link(site, kind):
    pidfile, other = site.path / "pid", site.path / "other"
    other.write_text("other\n")
    if kind == "a symbolic link":
        pidfile.symlink_to(other)
    elif kind == "a symbolic link to nothing":
        pidfile.symlink_to(site.path / "nothing")
    elif kind == "a hard link":
        pidfile.hardlink_to(other)
    elif kind == "a fifo":
        os.mkfifo(pidfile)
    elif kind == "a directory":
        pidfile.mkdir()
    else:
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        pidfile.touch()
        os.chown(pidfile, 65534, 65534)
    site.configure({"listen-address": f"127.0.0.1:{free_port()}"})
    done = run(site, "-p", str(pidfile))
    assert done.returncode == 1
    assert f"{pidfile}: {NO_PIDFILES[kind]}\n" in done.stderr
    assert other.read_text() == "other\n"
    assert not (site.path / "nothing").exists()


def test_detached_it_answers_when_the_command_returns(site):
    site.add("anna", SPOOL)
    pidfile, port = site.path / "pid", free_port()
    site.configure({"listen-address": f"127.0.0.1:{port}"})
    done = run(site, "--detach", "-p", str(pidfile))
    assert (done.returncode, but_for_syslogd(done.stderr)) == (0, "")
    pid = int(pidfile.read_text())
    try:
        assert os.getsid(pid) == pid
        with doors.Wire.on(socket.create_connection(("127.0.0.1", port), PATIENCE)).connection:
            pass
        assert re.search("NSpid", Path(f"/proc/{pid}/status").read_text())
        assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
    finally:
        os.kill(pid, signal.SIGTERM)
        poll(lambda: not site.processes(), "the daemon to end")


def test_detached_it_finds_its_files_where_they_were_meant(site):
    """It leaves the directory that it was started in, for good."""
    port = free_port()
    site.configure({"listen-address": f"127.0.0.1:{port}", "max-children": 1})
    site.configure({"max-children-per-source": 0})
    command = [*doors.SERVER, "-f", site.conf.name, "--detach", "-p", "pid"]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=site.path, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0
    pid = int((site.path / "pid").read_text())
    taken = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(2)]
    try:
        assert [one.recv(3) for one in taken] == [b"+OK", b"-ER"]
        site.configure({"max-children": 2})
        os.kill(pid, signal.SIGHUP)

        def let_in():
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as one:
                return one.recv(3) == b"+OK"

        poll(let_in, "the new limit")
    finally:
        for one in taken:
            one.close()
        os.kill(pid, signal.SIGTERM)
        poll(lambda: not Path(f"/proc/{pid}").exists(), "the daemon to end")
    assert not (site.path / "pid").exists()


CLOSED = {"all": "<&- >&- 2>&-", "stdin": "<&-", "stderr": "2>&-", "stdout and stderr": ">&- 2>&-"}


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("how", ["", "--detach"])
def test_it_may_be_started_without_standard_descriptors(site, closed, how):
    site.add("anna", SPOOL)
    pidfile, port = site.path / "pid", free_port()
    site.configure({"listen-address": f"127.0.0.1:{port}"})
    command = [*doors.SERVER, "-f", str(site.conf), "-p", str(pidfile), *how.split()]
    shell = ["/bin/sh", "-c", f'exec "$@" {CLOSED[closed]}', "sh", *command]
    process = subprocess.Popen(shell, env=ENVIRONMENT, cwd="/")
    try:
        poll(pidfile.exists, "the pid file")
        pid = int(poll(pidfile.read_text, "its content"))
        poll(lambda: not refuses(port), "it to listen")
        door = doors.Door(port, None)
        assert session(door, "anna") == ""
        files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]
        assert not any("socket" in file for file in files)
        assert not any("pipe" in file for file in files[:1])
    finally:
        os.kill(pid, signal.SIGTERM)
        process.wait(PATIENCE)
        poll(lambda: not site.processes(), "it to end")


def test_detached_it_fails_as_loudly_as_in_the_foreground(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site.configure({"listen-address": f"127.0.0.1:{taken.getsockname()[1]}"})
        done = run(site, "--detach")
        assert done.returncode == 1
        assert "Address already in use" in done.stderr
