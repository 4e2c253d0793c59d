"""The command line: find out what is asked for, and have a door or a command do it."""

from __future__ import annotations

import os
import sys

from tpop3d import DEFAULT_FILE
from tpop3d.doors import inetd
from tpop3d.system import logs
from tpop3d.system.io import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.doors.activation import Passed
    from tpop3d.pop3.replies import Reply
    from tpop3d.settings import Config

OK = 0
FAILED = 1
WRONG_USE = 2  # also argparse's, and --check-config's for errors
LAST_WORDS = b"-ERR [SYS/PERM] the server is not set up as it should be\r\n"
# Options that print for people: no client reads their output.
PRINTING = frozenset(
    (
        "-h", "--help", "-V", "--check-config", "--demo", "--recover", "--test-login", "--inspect",
    )
)  # fmt: skip


class Options:
    """The options of the command line, with their defaults."""

    file = DEFAULT_FILE
    inetd = False
    tls = False
    check_config = False
    recover = False
    test_login: str | None = None  # the user
    client = ""  # the address from which that login is tried
    inspect: str | None = None  # the path of a mailspool
    json = False
    demo: int | None = None  # the port
    verbose = False
    debug = False
    detach = False
    pidfile = ""


def main(arguments: list[str] | None = None) -> int:
    """Be the command `tpop3d`; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if inetd.stderr_is_connection(arguments) and not PRINTING.intersection(arguments):
        return _without_stderr(arguments)
    options = _quick_options(arguments) or _options(arguments)
    if options.check_config:
        from tpop3d.commands.check_config import check_config

        return check_config(options.file)
    if options.recover:
        return _recover(options)
    if options.test_login is not None:
        from tpop3d.commands.try_login import try_login

        return try_login(options.file, options.test_login, options.client)
    if options.inspect is not None:
        from tpop3d.commands.inspection.command import inspect

        return inspect(options.inspect, options.file, options.json)
    if options.demo is not None:
        from tpop3d.commands.demo import demo

        return demo(options.demo, options.verbose)
    return _open_door(options)


def _open_door(options: Options) -> int:
    """Serve the connection or the sockets that are passed, or else be a listener."""
    if options.inetd:
        return _inetd(options)
    from tpop3d.doors import activation

    if activation.is_ours():
        return _activated(options)
    if inetd.stdin_is_connection() and not (options.debug or options.detach or options.pidfile):
        return _inetd(options)
    if options.tls:
        _complain("--tls is for a connection or sockets that are passed; here: tls-mode: immediate")
        return WRONG_USE
    return _listen(options, None)


def _quick_options(arguments: list[str]) -> Options | None:
    """Read the options of a session without argparse, which costs more than a whole interpreter.

    None if there is any option but `--inetd`, `--tls`, `-v` and `-f FILE`: argparse reads those.
    """
    options = Options()
    words = iter(arguments)
    for word in words:
        if word == "--inetd":
            options.inetd = True
        elif word == "--tls":
            options.tls = True
        elif word == "-v":
            options.verbose = True
        elif word == "-f":
            options.file = next(words, "")
            if not options.file or options.file.startswith("-"):
                return None
        else:
            return None
    return options


def _options(arguments: list[str]) -> Options:
    """Read the options with argparse, which also prints the help and ends the program."""
    from tpop3d.options import parse

    return parse(arguments, Options())


def _without_stderr(arguments: list[str]) -> int:
    """Serve a connection that is on stderr, too.

    If anything goes wrong from here on, the client sees one line, and no traceback.
    """
    import io

    logs.open_log("mail", "info", to_stderr=False)
    complaint = sys.stderr = io.StringIO()
    fd_out = -1
    try:
        if "LISTEN_FDS" in os.environ:
            from tpop3d.doors import activation

            if activation.is_ours():
                fd_out = activation.FIRST
                inetd.have_standard_descriptors(instead_of_sockets=True)
                return _activated(_quick_options(arguments) or _options(arguments))
        connection = inetd.take()
        if not isinstance(connection, inetd.Connection):
            logs.error(connection.reason)
            _refuse_waiting()
            return WRONG_USE
        fd_out = connection.fd_out
        options = _quick_options(arguments) or _options(arguments)
        return _serve(options, connection.fd_in, fd_out, stderr_is_free=False)
    except SystemExit:
        logs.error(complaint.getvalue().rstrip().rpartition("\n")[2])
        status = WRONG_USE
    except Exception as error:
        logs.error(f"internal error: {logs.describe(error)}")
        status = FAILED
    finally:
        sys.stderr = sys.__stderr__
    if fd_out >= 0:
        os.write(fd_out, LAST_WORDS)
    return status


def _inetd(options: Options) -> int:
    """Serve the connection on stdin and stdout."""
    try:
        connection = inetd.take()
    except OSError as error:
        return _refuse_connection(str(error))
    if not isinstance(connection, inetd.Connection):
        return _refuse_connection(connection.reason)
    return _serve(options, connection.fd_in, connection.fd_out, connection.stderr_is_free)


def _refuse_connection(why: str) -> int:
    """Say why stdin and stdout are no connection; returns the exit code."""
    _complain(why)
    _refuse_waiting()
    return WRONG_USE


def _refuse_waiting() -> None:
    """Refuse the clients that wait on stdin, if that is a listening socket."""
    from tpop3d.pop3 import replies

    inetd.refuse_waiting(replies.SERVER_MISCONFIGURED)


def _activated(options: Options) -> int:
    """Serve what systemd has passed."""
    from tpop3d.doors import activation

    stderr_is_free = sys.stderr is not None and sys.stderr is sys.__stderr__
    inetd.have_standard_descriptors()
    passed = activation.take()
    if not isinstance(passed, activation.Passed):
        (logs.error if not stderr_is_free else _complain)(passed.reason)
        return FAILED
    if passed.connected is not None:
        options.tls = options.tls or passed.is_tls(passed.connected)
        return _serve(options, passed.connected, passed.connected, stderr_is_free)
    if options.tls:
        passed.named_tls.update(one.fileno() for one in passed.listening)
    return _listen(options, passed)


def _serve(options: Options, fd_in: int, fd_out: int, stderr_is_free: bool) -> int:
    """Serve one connection. A bug is logged, and the client does not learn what it is."""
    from tpop3d.pop3 import replies

    if not stderr_is_free:
        logs.open_log("mail", "info", to_stderr=False)
    try:
        reply = _serve_or_refuse(options, fd_in, fd_out, stderr_is_free)
    except Exception as error:
        logs.error(f"internal error: {logs.describe(error)}")
        reply = replies.INTERNAL_ERROR
    if reply is None:
        return OK
    say(fd_out, reply.line)
    return FAILED


def _serve_or_refuse(
    options: Options, fd_in: int, fd_out: int, stderr_is_free: bool
) -> Reply | None:
    """Serve one connection. If that cannot be, log why and return the reply for the client."""
    from tpop3d import settings
    from tpop3d.config.addresses import IMMEDIATE, Tls
    from tpop3d.configuration import WrongConfiguration, load
    from tpop3d.pop3 import replies

    try:
        config = load(options.file)
    except WrongConfiguration as error:
        for problem in error.problems:
            logs.error(problem)
        return replies.SERVER_NOT_READY if error.may_pass else replies.SERVER_MISCONFIGURED
    settings.open_log(config, options.verbose, stderr_is_free)
    settings.log_warnings(config)
    from tpop3d.privsep.sandbox import prepare_sandbox
    from tpop3d.system.privileges import Sandbox

    sandbox = prepare_sandbox(config)
    if not isinstance(sandbox, Sandbox):
        from tpop3d.system.refusal import TEMPORARY

        logs.error(sandbox.reason)
        may_pass = sandbox.kind == TEMPORARY
        return replies.SERVER_NOT_READY if may_pass else replies.SERVER_MISCONFIGURED
    tls = config.tls
    if options.tls or tls.mode == IMMEDIATE:
        tls = Tls(IMMEDIATE, tls.pairs)
        if not tls.pairs:
            logs.error(f"{options.file}: tls-certificate: TLS is asked for, and there is none")
            return replies.SERVER_MISCONFIGURED
    from tpop3d.doors import per_connection

    per_connection.serve(config, sandbox, fd_in, fd_out, tls)
    return None


def _recover(options: Options) -> int:
    """Carry out all journals, and log on stderr what was done."""
    from tpop3d import settings
    from tpop3d.configuration import WrongConfiguration, load

    try:
        config = load(options.file)
    except WrongConfiguration as error:
        for problem in error.problems:
            _complain(problem)
        return FAILED
    from tpop3d.privsep import sandbox
    from tpop3d.session.recover_all import recover_all
    from tpop3d.system import processes

    if os.geteuid() == 0 and (refused := sandbox.refuse_lacking_root()) is not None:
        _complain(refused.reason)
        return FAILED
    processes.unblock()
    processes.catch()
    logs.open_log(config.log_facility, settings.level_of(config, options.verbose), to_stderr=True)
    return OK if recover_all(config) else FAILED


def _listen(options: Options, passed: Passed | None) -> int:
    """Run the listener on sockets from systemd, or on those of the configuration."""
    from tpop3d import settings
    from tpop3d.configuration import WrongConfiguration, load
    from tpop3d.doors import standalone
    from tpop3d.listener import sd_notify

    inetd.have_standard_descriptors()
    # A detached process leaves the directory that relative paths are meant in.
    options.file = os.path.abspath(options.file)
    options.pidfile = os.path.abspath(options.pidfile) if options.pidfile else ""
    try:
        config = load(options.file)
    except WrongConfiguration as error:
        for problem in error.problems:
            _complain(problem)
        sd_notify.tell_failure(error.problems)
        return FAILED
    if sd_notify.asks():
        try:
            sd_notify.notify("STATUS=starting")
        except ImportError:
            print(
                "tpop3d: systemd wants to be told when the listener is ready, and the package"
                " systemd-python is missing: pip install 'tpop3d[systemd]'",
                file=sys.stderr,
            )
            return FAILED

    def log_as(config: Config) -> None:
        if options.debug:
            level = settings.level_of(config, options.verbose)
            logs.open_log(config.log_facility, level, to_stderr=True)
        else:
            settings.open_log(config, options.verbose, stderr_is_free=not options.detach)
            if options.detach:
                settings.tell_of_no_log()  # whoever started us may still read it
        logs.prepare()
        settings.log_warnings(config)

    log_as(config)
    door = standalone.Standalone(options.file, passed, log_as)
    return door.run(config, pidfile=options.pidfile, detach=options.detach)


def _complain(problem: str) -> None:
    print(f"tpop3d: {problem}", file=sys.stderr)
