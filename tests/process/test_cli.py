"""The command line, and which door it opens."""

import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import LEAST, SERVER, at_door, converse, recorded_syslog, text_of, tpop3d
from mailsite import ENVIRONMENT, PATIENCE
from tpop3d import __version__, cli

QUIT = b"QUIT\r\n"


@pytest.fixture
def conf(tmp_path):
    file = tmp_path / "tpop3d.conf"
    settings = {"auth-passwd-enable": "yes", "log-stderr": "yes"}
    file.write_text(text_of(at_door(tmp_path) | settings))
    return file


def test_the_version():
    done = tpop3d("-V")
    assert (done.returncode, done.stdout) == (0, f"tpop3d {__version__}\n".encode())


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_names_every_option(option):
    done = tpop3d(option)
    assert (done.returncode, done.stderr) == (0, b"")
    for word in (
        b"-f FILE", b"--inetd", b"--check-config", b"--demo", b"-v ", b"--test-login USER",
        b"--from ADDRESS", b"--inspect MAILBOX", b"--json", b"-d ", b"--detach",
        b"-p PIDFILE", b"-V", b"-h",
    ):  # fmt: skip
        assert word in done.stdout
    assert b"/etc/tpop3d.conf" in done.stdout


WRONG_USE = [
    ["--nonsense"], ["-x"], ["-f"], ["--inetd", "-f"], ["-f", "--inetd"], ["-f", "-v"],
    ["argument"], ["--inetd", "argument"], ["--demo", "x"], ["--demo=1.5"], ["--inetd=yes"],
    ["-fx", "y"], ["-p"], ["--detach=yes"], ["-d", "--detach"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG_USE)
def test_wrong_use_is_told_with_status_2(arguments):
    done = tpop3d(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: tpop3d ")
    assert b"tpop3d: error: " in done.stderr


def test_a_port_that_is_none():
    done = tpop3d("--demo", "70000")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"70000" in done.stderr


STDIN = ["null", "pipe", "listening", "unconnected", "closed"]


def with_stdin(kind, *arguments):
    """Run the command with something on its stdin that is no connection."""
    command = [*SERVER, *map(str, arguments)]
    if kind == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command]
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, socket.socket() as unconnected:
        choice = {
            "null": subprocess.DEVNULL,
            "pipe": subprocess.PIPE,
            "listening": listening,
            "unconnected": unconnected,
            "closed": None,
        }
        return subprocess.run(
            command,
            stdin=choice[kind],
            env=ENVIRONMENT,
            cwd="/",
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )


NOTHING_TO_LISTEN_ON = b"nothing to listen on: give listen-address in the configuration\n"


@pytest.mark.parametrize("arguments", [[], ["-v"], ["-d"], ["--detach"]])
@pytest.mark.parametrize("stdin", STDIN)
def test_without_a_connection_the_command_listens_and_needs_an_address(conf, stdin, arguments):
    done = with_stdin(stdin, "-f", conf, *arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.endswith(NOTHING_TO_LISTEN_ON)
    assert done.stderr.startswith(b"tpop3d")
    assert len([one for one in done.stderr.splitlines() if b"/dev/log" not in one]) == 1


@pytest.mark.parametrize("arguments", [[], ["--detach"]])
def test_what_goes_to_syslog_is_seen_on_stderr_too(tmp_path, arguments):
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(text_of(at_door(tmp_path) | {"auth-passwd-enable": "yes"}))
    env, syslog = recorded_syslog(tmp_path)
    done = tpop3d("-f", conf, *arguments, env=ENVIRONMENT | env)
    assert (done.returncode, done.stdout) == (1, b"")
    told = done.stderr.splitlines(keepends=True)
    assert told[-1] == b"tpop3d: " + NOTHING_TO_LISTEN_ON
    assert all(b"/dev/log" in line for line in told[:-1])  # where there is none
    assert syslog.read_bytes() == NOTHING_TO_LISTEN_ON


@pytest.mark.parametrize("stdin", STDIN)
def test_without_a_connection_and_a_configuration_the_reason_is_on_stderr(tmp_path, stdin):
    done = with_stdin(stdin, "-f", tmp_path / "missing")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"tpop3d: {tmp_path}/missing: No such file or directory\n"


def test_inetd_without_stdin_is_wrong_use(conf):
    done = with_stdin("closed", "--inetd", "-f", conf)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"tpop3d: stdin or stdout is closed, so there is no connection\n"


# Both ways to be without systemd-python: the checkout's folder of unit files has the same name.
WITHOUT_SYSTEMD_PYTHON = {
    "nothing of that name": """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "systemd":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
""",
    "a folder of that name": """
sys.path[:] = [one for one in sys.path if "-packages" not in one]
import systemd
assert systemd.__file__ is None
""",
}
PASSED = 'os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="pop3")\n'
NAMES_THE_EXTRA = b"the package systemd-python"


def without_systemd_python(how, first, *arguments, **options):
    """Run the command after `first`, with no systemd-python."""
    start = "from tpop3d.cli import main\nraise SystemExit(main())\n"
    code = f"import os, sys\n{WITHOUT_SYSTEMD_PYTHON[how]}\n{first}{start}"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        **({"stdin": subprocess.DEVNULL, "env": ENVIRONMENT} | options),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        cwd="/",
    )


@pytest.mark.parametrize("how", WITHOUT_SYSTEMD_PYTHON)
def test_sockets_from_systemd_without_its_package_are_one_line(conf, how):
    done = without_systemd_python(how, PASSED, "-f", conf)
    assert (done.returncode, done.stdout) == (1, b"")
    assert NAMES_THE_EXTRA in done.stderr
    assert b"pip install 'tpop3d[systemd]'" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("how", WITHOUT_SYSTEMD_PYTHON)
def test_who_is_to_tell_systemd_needs_its_package_too(conf, how):
    env = ENVIRONMENT | {"NOTIFY_SOCKET": "/nonexistent/notify"}
    done = without_systemd_python(how, "", "-f", conf, env=env)
    assert (done.returncode, done.stdout) == (1, b"")
    assert NAMES_THE_EXTRA in done.stderr
    assert b"pip install 'tpop3d[systemd]'" in done.stderr
    assert done.stderr.count(b"\n") == 1


NOT_PASSED = {
    "to another process": 'os.environ.update(LISTEN_PID="1", LISTEN_FDS="1")\n',
    "none": 'os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="0")\n',
    "no number": "os.environ.update(LISTEN_PID=str(os.getpid()))\n",
    "to nobody": 'os.environ.update(LISTEN_FDS="1")\n',
}


@pytest.mark.parametrize("first", NOT_PASSED.values(), ids=NOT_PASSED)
def test_what_was_not_passed_to_us_is_left_alone(conf, first):
    done = without_systemd_python("nothing of that name", first, "-f", conf)
    assert done.returncode == 1
    assert done.stderr.endswith(NOTHING_TO_LISTEN_ON)


def test_inetd_does_not_ask_systemd(conf):
    """A service with Accept=yes and StandardInput=socket has both; the option decides."""
    done = without_systemd_python(
        "nothing of that name", PASSED, "--inetd", "-f", conf, stdin=None, input=QUIT
    )
    assert done.returncode == 0
    assert [line[:3] for line in done.stdout.splitlines()] == [b"+OK", b"+OK"]


def test_a_connection_on_stdin_needs_no_option(conf):
    ended = converse(conf, QUIT, command=SERVER)
    assert [line[:3] for line in ended.lines] == [b"+OK", b"+OK"]
    assert ended.status == 0


def test_inetd_speaks_on_anything(conf):
    done = tpop3d("--inetd", "-f", conf)  # stdin is /dev/null, stdout a pipe
    assert done.returncode == 0
    assert done.stdout.startswith(b"+OK POP3")
    done = tpop3d("--inetd", "-f", conf, stdin=None, input=QUIT)
    assert [line[:3] for line in done.stdout.splitlines()] == [b"+OK", b"+OK"]


def test_v_logs_commands_and_replies(conf):
    quiet = converse(conf, QUIT)
    assert b"QUIT" not in quiet.stderr
    ended = converse(conf, QUIT, "-v")
    # Marked as a gatekeeper's words, from whom nothing else is believed, either.
    assert b'gatekeeper rip=unix says="C: QUIT"\n' in ended.stderr
    assert b'gatekeeper rip=unix says="S: +OK goodbye"\n' in ended.stderr
    assert ended.client == quiet.client


def test_the_last_of_two_files_counts(conf):
    ended = converse("/nonexistent", QUIT, "-f", str(conf))
    assert ended.client.startswith(b"+OK")


MISTAKES = {
    "a missing file": None,
    "an unknown directive": b"colour: red\n",
    "two mistakes": b"colour: red\nmax-children: none\n",
    "octets that are no text": b"\xff\xfe: yes\nmax-children: \xff\n",
    "nobody can log in": b"",
    "a NUL": b"auth-flatfile-enable: yes\nauth-flatfile-mail-user: a\0b\n",
}


@pytest.mark.parametrize("fd2", ["pipe", "client", "closed"])
@pytest.mark.parametrize("content", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_configuration_is_one_refusal_and_the_reason_is_logged(
    tmp_path, content, fd2
):
    conf = tmp_path / "tpop3d.conf"
    if content is not None:
        conf.write_bytes(content)
    env, syslog = recorded_syslog(tmp_path)
    ended = converse(conf, QUIT, fd2=fd2, env=env)
    assert ended.client == b"-ERR [SYS/PERM] server is not configured\r\n"
    assert ended.status != 0
    log = ended.stderr.decode(errors="replace") if fd2 == "pipe" else syslog.read_text()
    reasons = [line for line in log.splitlines() if str(conf) in line]
    assert len(reasons) == (2 if content and content.count(b"\n") == 2 else 1) or b"\0" in content


@pytest.mark.parametrize("option", ["-d", "--detach", "-p"])
def test_what_only_a_listener_knows_makes_one_although_stdin_is_a_socket(tmp_path, option):
    """As when an administrator's shell, or a service manager, has one there."""
    ours, theirs = socket.socketpair()
    conf = tmp_path / "tpop3d.conf"
    conf.write_text(text_of(LEAST | at_door(tmp_path)))
    arguments = [option, tmp_path / "pid"] if option == "-p" else [option]
    with ours, theirs:
        done = tpop3d("-f", conf, *arguments, stdin=theirs)
    assert done.returncode == 1
    assert NOTHING_TO_LISTEN_ON in done.stderr


def test_it_may_be_started_by_somebody_who_ignores_his_children(conf):
    """With SIGCHLD ignored, which is inherited, nobody could wait for a gatekeeper."""
    ignoring = [*SERVER[:1], "-c", "import os, signal, sys\n"
                "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
                "os.execv(sys.argv[1], sys.argv[1:])", *SERVER, "--inetd"]  # fmt: skip
    ended = converse(conf, b"USER ann\r\nPASS wrong\r\nQUIT\r\n", command=ignoring)
    assert [line[:4] for line in ended.lines] == [b"+OK ", b"+OK ", b"-ERR", b"+OK "]
    assert b"internal error" not in ended.stderr


def test_it_may_be_started_by_somebody_who_has_blocked_signals(conf):
    blocking = [*SERVER[:1], "-c", "import os, signal, sys\n"
                "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
                "os.execv(sys.argv[1], sys.argv[1:])", *SERVER, "--inetd"]  # fmt: skip
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen([*blocking, "-f", conf], stdin=theirs, stdout=theirs,
                                   stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/")  # fmt: skip
        assert ours.recv(4) == b"+OK "
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("arguments", [[], ["-d"], ["--detach"]])
@pytest.mark.parametrize("content", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_configuration_keeps_the_listener_from_starting(
    tmp_path, content, arguments
):
    conf = tmp_path / "tpop3d.conf"
    if content is not None:
        conf.write_bytes(content)
    done = tpop3d("-f", conf, *arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    lines = done.stderr.decode(errors="replace").splitlines()
    assert lines
    assert all(line.startswith(f"tpop3d: {conf}:") for line in lines)
    told = tpop3d("--check-config", "-f", conf).stderr.decode(errors="replace").splitlines()
    assert {line.removeprefix("tpop3d: ") for line in lines} <= {*told}


# Arguments as the quick parser knows them, and as it does not.
WORDS = [
    "--inetd", "-v", "-f", "/etc/x", "x y", "-", "", "--", "-fx", "-vf", "--ine", "-V", "-d", "-p",
    "\udcff",
]  # fmt: skip
words = st.sampled_from(WORDS) | st.text(max_size=5)


@given(st.lists(words, max_size=6))
def test_the_quick_parser_says_what_argparse_says_or_nothing(arguments):
    quick = cli._quick_options(arguments)
    if quick is None:
        return
    slow = cli._options(arguments)
    for name in ("file", "inetd", "check_config", "demo", "verbose", "debug", "detach", "pidfile"):
        assert getattr(quick, name) == getattr(slow, name)


@given(
    st.lists(st.sampled_from([["--inetd"], ["-v"], ["-f", "/etc/x"], ["-f", "x y"]]), max_size=5)
)
def test_a_session_never_needs_argparse(groups):
    arguments = [word for group in groups for word in group]
    assert cli._quick_options(arguments) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["-V"], ["-h"], ["--check-config"], ["--demo"], ["-f"], ["-f", ""], ["x"], ["-vv"],
        ["-d"], ["--detach"], ["-p", "/run/x"],
    ],
)  # fmt: skip
def test_what_can_take_its_time_is_left_to_argparse(arguments):
    assert cli._quick_options(arguments) is None


def test_an_empty_file_name_is_not_the_default_one():
    """As in `-f "$CONF"` where nobody has set it."""
    done = tpop3d("--check-config", "-f", "")
    assert done.returncode == 2
    assert b"/etc/tpop3d.conf" not in done.stderr


NOT_TOGETHER = [
    "--check-config --recover", "--inetd --check-config", "--inspect /x --test-login anna",
    "--check-config --tls", "--recover --tls", "--test-login anna --tls",
    "--inetd -d", "--inetd -p /x", "--check-config --detach", "-d --test-login anna",
]  # fmt: skip


@pytest.mark.parametrize("options", NOT_TOGETHER)
def test_options_of_which_one_would_be_ignored_are_an_error(options):
    done = tpop3d(*options.split())
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.splitlines()[-1].startswith(b"tpop3d: error: ")
