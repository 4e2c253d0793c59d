"""`tpop3d --test-login` at a terminal: the administrator's is none of a PAM module's business."""

import os
import pty

import pytest

from authkit import SERVER
from mailsite import ENVIRONMENT, IS_ROOT, MAIL_USER, need

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="only root may mount an /etc/pam.d")
pytest.importorskip("pam", reason="python-pam is not installed in this Python")

USER = MAIL_USER.pw_name
SERVICE = """\
auth     optional  pam_exec.so {script}
auth     required  pam_succeed_if.so quiet tty = tpop3d
auth     required  pam_permit.so
account  required  pam_permit.so
"""
# What the module's environment says; and, of the process that it runs in, stdin and the terminal.
SCRIPT = """\
#!/bin/sh
{{ env; readlink /proc/$PPID/fd/0; ps -o tty= -p $PPID; }} >{mark} 2>&1
"""
MOUNT = 'mount --bind "$0" /etc/pam.d && exec "$@"'


def at_a_terminal(command, said):
    """Run a command that has a terminal, at which something is typed; returns its exit status, and
    what it has shown."""
    pid, terminal = pty.fork()
    if not pid:
        os.execve(command[0], command, ENVIRONMENT | {"DISPLAY": ":0", "XAUTHORITY": "/root/.X"})
    shown, is_asked = b"", False
    try:
        while octets := os.read(terminal, 65536):
            shown += octets
            if not is_asked and b"Password of " in shown:
                is_asked = True
                os.write(terminal, said)
    except OSError:
        pass  # the last who had it is gone
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return status, shown.decode()


def test_pam_is_told_of_no_terminal_and_has_none(site):
    services = site.path / "pam.d"
    services.mkdir()
    script, mark = site.path / "script", site.path / "mark"
    script.write_text(SCRIPT.format(mark=mark))
    script.chmod(0o755)
    (services / "tpop3d").write_text(SERVICE.format(script=script))
    site.add(USER)
    site.configure(
        {
            "auth-flatfile-enable": None,
            "auth-pam-enable": "yes",
            "auth-pam-mailbox": f"bsd:{site.spools}/$(user)",
        }
        | {f"auth-flatfile-{name}": None for name in ("passwd-file", "mail-user", "mailbox")}
    )
    program = [*SERVER, "-f", str(site.conf), "--test-login", USER]
    command = [need("unshare"), "--mount", "/bin/sh", "-c", MOUNT, str(services), *program]
    status, shown = at_a_terminal(command, b"secret\n")
    assert (status, "secret" in shown) == (0, False), shown
    seen = mark.read_text().splitlines()
    assert "PAM_TTY=tpop3d" in seen
    assert not [line for line in seen if line.startswith("PAM_XDISPLAY=")]
    assert seen[-2:] == ["/dev/null", "?"]
