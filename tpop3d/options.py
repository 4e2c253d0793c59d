"""The whole command line, read with argparse: the help, and which options exclude each other."""

from __future__ import annotations

import argparse

from tpop3d import DEFAULT_FILE, __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    Options = TypeVar("Options")

DEMO_PORT = 1110
# Options by their attribute. Each of these asks for a job of its own, so they exclude each other.
MODES = {
    "inetd": "--inetd",
    "check_config": "--check-config",
    "recover": "--recover",
    "test_login": "--test-login",
    "inspect": "--inspect",
    "demo": "--demo",
}
LISTENERS = {"debug": "-d", "detach": "--detach", "pidfile": "-p"}
NOT_IN_DEMO = {"file": "-f", "tls": "--tls", "inetd": "--inetd"} | LISTENERS


def parse(arguments: list[str], into: Options) -> Options:
    """Read the options into an object that has their defaults, and return it.

    For --help, -V and a wrong command line argparse prints what is to say, and ends the program.
    """
    parser = argparse.ArgumentParser(
        prog="tpop3d",
        description="POP3 server for BSD mailspools. Started by xinetd, inetd or a systemd socket,"
        " it serves what it is given; otherwise it listens to the addresses of its configuration.",
        epilog="See tpop3d(8) and tpop3d.conf(5).",
    )
    # argparse sets only what is given; the class has the defaults.
    parser.add_argument(
        "-f", dest="file", metavar="FILE", help=f"the configuration file (default {DEFAULT_FILE})"
    )
    parser.add_argument(
        "--inetd", action="store_true", help="speak POP3 on stdin and stdout, whatever they are"
    )
    parser.add_argument(
        "--tls", action="store_true", help="TLS from the first octet on, as on port 995 (pop3s)"
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="print the configuration in effect, or every error in it (exit status 2)",
    )
    parser.add_argument(
        "--recover",
        action="store_true",
        help="finish what a crash has interrupted, in all mailboxes (exit status 1: not in all)",
    )
    parser.add_argument(
        "--test-login",
        metavar="USER",
        help="try a login, and say what each driver answers, and whether the maildrop opens; the"
        " password is asked for, or the first line of stdin",
    )
    parser.add_argument(
        "--from",
        dest="client",
        metavar="ADDRESS",
        help="with --test-login: as if a client came from there",
    )
    parser.add_argument(
        "--inspect",
        metavar="MAILBOX",
        help="print what there is to know of a mailspool (a path), and change nothing",
    )
    parser.add_argument("--json", action="store_true", help="with --inspect: as JSON")
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
    parser.add_argument("-d", dest="debug", action="store_true", help="listener: log to stderr")
    parser.add_argument(
        "--detach", action="store_true", help="listener: go to the background when ready"
    )
    parser.add_argument(
        "-p", dest="pidfile", metavar="PIDFILE", help="listener: write the process id to a file"
    )
    parser.add_argument("-V", action="version", version=f"tpop3d {__version__}")
    options: Any = parser.parse_args(arguments, namespace=into)
    given = vars(options)
    unwanted = [option for key, option in NOT_IN_DEMO.items() if key in given]
    if options.demo is not None and unwanted:
        parser.error(f"--demo serves its own mail, in its own way: no {unwanted[0]}")
    modes = [option for key, option in MODES.items() if key in given]
    if len(modes) > 1:
        parser.error(f"{modes[0]} and {modes[1]} do not go together")
    if options.tls and modes and modes != ["--inetd"]:
        parser.error(f"--tls is for those who are served, and {modes[0]} serves nobody")
    for key, option in LISTENERS.items():
        if modes and key in given:
            parser.error(f"{option} is for a listener, and {modes[0]} is none")
    if options.debug and options.detach:
        parser.error("-d stays in the foreground, and --detach leaves it")
    if options.client and options.test_login is None:
        parser.error("--from goes with --test-login")
    if options.json and options.inspect is None:
        parser.error("--json goes with --inspect")
    return into
