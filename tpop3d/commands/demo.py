"""`tpop3d --demo`: run the real server with sample mail and a configuration of its own.

Everything is in one temporary directory, which ^C removes.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from contextlib import suppress

from tpop3d.config.addresses import PLAIN
from tpop3d.configuration import read
from tpop3d.listener.listener import Listener
from tpop3d.privsep import gatekeeper
from tpop3d.privsep.sandbox import prepare_sandbox, refuse_lacking_root
from tpop3d.settings import Config, open_log
from tpop3d.system.privileges import Sandbox
from tpop3d.system.refusal import Refusal

HOST = "127.0.0.1"
PASSWORDS = {"anna": "wonderland", "bert": "open sesame", "clara": "empty"}

CONFIGURATION = """\
max-children: 16
max-children-per-source: 0
gatekeeper-user: nobody
shutdown-seconds: 1
auth-flatfile-enable: yes
auth-flatfile-passwd-file: {directory}/passwd
auth-flatfile-mail-user: {user}
auth-flatfile-mailbox: bsd:{directory}/mail/$(local_part)
state-directory: {directory}/state
auth-failure-delay-seconds: 1
log-stderr: yes
log-level: notice
"""

ANNA = """\
From rabbit@example.org Sun Nov 22 08:00:00 2026
From: White Rabbit <rabbit@example.org>
To: anna@example.org
Subject: I am late
Date: Sun, 22 Nov 2026 08:00:00 +0000
Message-ID: <1@example.org>

Oh dear! Oh dear! I shall be too late!

From hatter@example.org Sun Nov 22 18:00:00 2026
From: The Hatter <hatter@example.org>
To: anna@example.org
Subject: =?utf-8?q?Tea_at_six=2E_Always=2E?=
Date: Sun, 22 Nov 2026 18:00:00 +0000
Message-ID: <2@example.org>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

It\u2019s always six o\u2019clock now.
. <- a dot at the start of a line, which a server has to double
>From the tea-table.

From queen@example.org Sun Nov 22 20:00:00 2026
From: Queen of Hearts <queen@example.org>
To: anna@example.org
Subject: Croquet
Date: Sun, 22 Nov 2026 20:00:00 +0000
Message-ID: <3@example.org>

Get to your places!

"""

BERT = """\
From builder@example.org Sun Nov 22 09:00:00 2026
From: Builder <builder@example.org>
To: bert@example.org
Subject: build {number} passed
Date: Sun, 22 Nov 2026 09:00:00 +0000
Message-ID: <build.{number}@example.org>

{number} tests, no failures.

"""

WELCOME = """\
POP3 on {host}, port {port}, with sample mail in {directory}.

  user    password       maildrop
  anna    wonderland     3 messages
  bert    open sesame    100 messages
  clara   empty          no messages

Try, in another terminal:

  curl -u anna:wonderland pop3://{host}:{port}/1
  python3 -c "import poplib; p = poplib.POP3('{host}', {port}); p.user('anna'); \
p.pass_('wonderland'); print(p.list()); p.quit()"
  mutt -f pop://anna@{host}:{port}/

One line per session follows. ^C ends the server and removes the mail.
"""


def demo(port: int, verbose: bool) -> int:
    """Serve the samples until ^C or SIGTERM; returns the exit code. Port 0 is any free port."""
    if not 0 <= port < 65536:
        print(f"tpop3d: {port} is no port", file=sys.stderr)
        return 1
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        print(
            f"tpop3d: cannot listen on {HOST}, port {port}: {error.strerror}."
            " Give another port: --demo PORT",
            file=sys.stderr,
        )
        return 1
    listener.listen()
    listener.set_inheritable(False)
    directory = tempfile.mkdtemp(prefix="tpop3d-demo-")
    try:
        if os.geteuid() == 0 and (refused := refuse_lacking_root()) is not None:
            print(f"tpop3d: {refused.reason}", file=sys.stderr)
            return 1
        try:
            config = _furnish(directory)
        except OSError as error:
            print(f"tpop3d: {directory}: no sample mail: {error.strerror}", file=sys.stderr)
            return 1
        open_log(config, verbose, stderr_is_free=True)
        sandbox = prepare_sandbox(config)
        refused = sandbox if isinstance(sandbox, Refusal) else gatekeeper.prove(sandbox)
        if refused is not None:
            print(f"tpop3d: {refused.reason}", file=sys.stderr)
            return 1
        assert isinstance(sandbox, Sandbox)
        port = listener.getsockname()[1]
        print(WELCOME.format(host=HOST, port=port, directory=directory), flush=True)
        Listener(config, sandbox, {listener: PLAIN}).run()
    finally:
        # A session that just ended may have touched a file in the same moment.
        shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):  # the reader may be gone
        print("tpop3d: stopped, and the sample mail is removed", flush=True)
    return 0


def _furnish(directory: str) -> Config:
    """Make the sample mail, and the configuration. The mail belongs to the user that will serve
    it."""
    import pwd

    # For root the mail belongs to the user nobody, and sessions give root up as always.
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if owner is not None:
        os.chmod(directory, 0o755)
    mail = os.path.join(directory, "mail")
    os.mkdir(mail)
    spools = {
        "anna": ANNA,
        "bert": "".join(BERT.format(number=number) for number in range(1, 101)),
    }
    for user, content in spools.items():
        path = os.path.join(mail, user)
        with open(path, "wb") as file:
            file.write(content.encode())
        if owner is not None:
            os.chown(path, owner.pw_uid, owner.pw_gid)
    if owner is not None:
        os.chown(mail, owner.pw_uid, owner.pw_gid)
    with open(os.path.join(directory, "passwd"), "w", encoding="ascii") as file:
        for user, password in PASSWORDS.items():
            file.write(f"{user}:{{plaintext}}{password}\n")
    user_name = owner.pw_name if owner is not None else str(os.geteuid())
    content = CONFIGURATION.format(directory=directory, user=user_name)
    return read(content, "the demo's configuration")
