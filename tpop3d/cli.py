"""The command line: what was asked for, and through which door it is done."""

from __future__ import annotations

import os
import sys

from tpop3d import __version__, logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.config import Config

OK = 0
FAILED = 1
WRONG_USE = 2  # argparse's, and that of a configuration with errors
DEMO_PORT = 1110


class Options:
    """What the command line says."""

    file: str | None = None  # None: the default one
    inetd = False
    check_config = False
    demo: int | None = None  # the port
    verbose = False


def main(arguments: list[str] | None = None) -> int:
    """The command `tpop3d`; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _quick_options(arguments) or _options(arguments)
    if options.check_config:
        from tpop3d.check import check_config

        return check_config(options.file)
    if options.demo is not None:
        from tpop3d.demo import demo

        return demo(options.demo, options.verbose)
    if options.inetd or _stdin_is_connection():
        return _inetd(options)
    print(
        "tpop3d: stdin is no connection. Run it from xinetd, inetd or a systemd socket with\n"
        "Accept=yes and StandardInput=socket; give --inetd to speak POP3 on stdin and stdout; or\n"
        "try --demo. This version has no listener of its own.",
        file=sys.stderr,
    )
    return WRONG_USE


def _quick_options(arguments: list[str]) -> Options | None:
    """The options of a session, without argparse, which costs more than a whole interpreter.

    None for anything but `--inetd`, `-v` and `-f FILE`: that can take its time.
    """
    options = Options()
    words = iter(arguments)
    for word in words:
        if word == "--inetd":
            options.inetd = True
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
    """The options, as argparse reads them; it also prints the help and ends the program."""
    import argparse

    from tpop3d.config import DEFAULT_FILE

    parser = argparse.ArgumentParser(
        prog="tpop3d",
        description="POP3 server for BSD mailspools. Started by a super-server, it serves the"
        " connection on stdin and stdout.",
        epilog="See tpop3d(8) and tpop3d.conf(5).",
    )
    parser.add_argument(
        "-f", dest="file", metavar="FILE", help=f"the configuration file (default {DEFAULT_FILE})"
    )
    parser.add_argument(
        "--inetd", action="store_true", help="speak POP3 on stdin and stdout, whatever they are"
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="print the configuration in effect, or every error in it (exit status 2)",
    )
    parser.add_argument(
        "--demo",
        metavar="PORT",
        nargs="?",
        type=int,
        const=DEMO_PORT,
        help=f"serve sample mail on 127.0.0.1, port {DEMO_PORT} or PORT (0: any free one)",
    )
    parser.add_argument(
        "-v",
        dest="verbose",
        action="store_true",
        help="log commands and replies, never passwords or mail",
    )
    parser.add_argument("-V", action="version", version=f"tpop3d {__version__}")
    return parser.parse_args(arguments, namespace=Options())


def _stdin_is_connection() -> bool:
    """Is stdin a connected socket?"""
    import _socket
    import stat

    try:
        if not stat.S_ISSOCK(os.fstat(0).st_mode):
            return False
        peer = _socket.socket(fileno=os.dup(0))
        try:
            peer.getpeername()
        finally:
            peer.close()
    except OSError:
        return False
    return True


def _inetd(options: Options) -> int:
    """Serve the connection on stdin and stdout."""
    from tpop3d.config import DEFAULT_FILE, load
    from tpop3d.doors import inetd

    try:
        connection = inetd.Connection()
    except OSError as error:
        print(f"tpop3d: {error}", file=sys.stderr)
        return WRONG_USE
    config = load(DEFAULT_FILE if options.file is None else options.file)
    if isinstance(config, list):
        if not connection.stderr_is_free:
            logs.start("mail", "info", to_stderr=False)
        inetd.turn_away(connection, config)
        return FAILED
    start_log(config, options.verbose, connection.stderr_is_free)
    inetd.serve(config, connection.fd_in, connection.fd_out)
    return OK


def start_log(config: Config, verbose: bool, stderr_is_free: bool) -> None:
    """Send the log where the configuration says. A client's connection is not stderr."""
    logs.start(
        config.log_facility,
        "debug" if verbose else config.log_level,
        config.log_stderr and stderr_is_free,
    )
