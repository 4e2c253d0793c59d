"""The command line, and which door it opens."""

import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import SERVER, converse, recorded_syslog, tpop3d
from mailsite import ENVIRONMENT, PATIENCE
from tpop3d import __version__, cli

QUIT = b"QUIT\r\n"


@pytest.fixture
def conf(tmp_path):
    file = tmp_path / "tpop3d.conf"
    file.write_text("auth-passwd-enable: yes\nlog-stderr: yes\n")
    return file


def test_the_version():
    done = tpop3d("-V")
    assert (done.returncode, done.stdout) == (0, f"tpop3d {__version__}\n".encode())


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_names_every_option(option):
    done = tpop3d(option)
    assert (done.returncode, done.stderr) == (0, b"")
    for word in (b"-f FILE", b"--inetd", b"--check-config", b"--demo", b"-v ", b"-V", b"-h"):
        assert word in done.stdout
    assert b"/etc/tpop3d.conf" in done.stdout


WRONG_USE = [
    ["--nonsense"], ["-x"], ["-f"], ["--inetd", "-f"], ["-f", "--inetd"], ["-f", "-v"],
    ["argument"], ["--inetd", "argument"], ["--demo", "x"], ["--demo=1.5"], ["--inetd=yes"],
    ["-fx", "y"],
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


@pytest.mark.parametrize("arguments", [[], ["-v"], ["-f", "/nonexistent"]])
@pytest.mark.parametrize("stdin", ["null", "pipe", "listening", "unconnected", "closed"])
def test_stdin_is_no_connection(stdin, arguments):
    command = [*SERVER, *arguments]
    if stdin == "closed":
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
        done = subprocess.run(
            command,
            stdin=choice[stdin],
            env=ENVIRONMENT,
            cwd="/",
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"tpop3d: stdin is no connection. ")
    assert b"--inetd" in done.stderr
    assert b"--demo" in done.stderr


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
    assert b"C: QUIT\n" in ended.stderr
    assert b"S: +OK goodbye\n" in ended.stderr
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


# Arguments as the quick parser knows them, and as it does not.
words = st.sampled_from(
    ["--inetd", "-v", "-f", "/etc/x", "x y", "-", "", "--", "-fx", "-vf", "--ine", "-V", "\udcff"]
) | st.text(max_size=5)


@given(st.lists(words, max_size=6))
def test_the_quick_parser_says_what_argparse_says_or_nothing(arguments):
    quick = cli._quick_options(arguments)
    if quick is None:
        return
    slow = cli._options(arguments)
    for name in ("file", "inetd", "check_config", "demo", "verbose"):
        assert getattr(quick, name) == getattr(slow, name)


@given(
    st.lists(st.sampled_from([["--inetd"], ["-v"], ["-f", "/etc/x"], ["-f", "x y"]]), max_size=5)
)
def test_a_session_never_needs_argparse(groups):
    arguments = [word for group in groups for word in group]
    assert cli._quick_options(arguments) is not None


@pytest.mark.parametrize(
    "arguments",
    [["-V"], ["-h"], ["--check-config"], ["--demo"], ["-f"], ["-f", ""], ["x"], ["-vv"]],
)
def test_what_can_take_its_time_is_left_to_argparse(arguments):
    assert cli._quick_options(arguments) is None


def test_an_empty_file_name_is_not_the_default_one():
    """As in `-f "$CONF"` where nobody has set it."""
    done = tpop3d("--check-config", "-f", "")
    assert done.returncode == 2
    assert b"/etc/tpop3d.conf" not in done.stderr
