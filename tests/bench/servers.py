"""The servers that are measured: how each is started, on its own mailspools.

Each is a function that yields a `Server`; what is missing raises `Missing`. All check plaintext
passwords, so that no hash is measured, and all log nothing below an error where they can.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from clients import HOST

CHECKOUT = Path(__file__).resolve().parents[2]
UNPACKED = CHECKOUT / ".unpacked"
OWNER = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
CGROUPS = ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"]
# What mailutils needs besides what is installed anyway.
MAILUTILS = [
    "mailutils-pop3d", "libmailutils9", "libmu-dbm9", "libgsasl18", "libkyotocabinet16v5",
    "guile-3.0-libs", "libpq5", "libgc1", "libntlm0", "libldap-2.5-0", "libwrap0", "libnsl2",
    "libpython3.11", "libltdl7", "liblzo2-2", "libmariadb3",
]  # fmt: skip


class Missing(Exception):
    """A server is not here; the text says why."""


class Server:
    """A server that listens on `port`, with mailspools in `spools`; all its processes descend from
    `process`."""

    def __init__(self, name, directory, users):
        self.name = name
        self.directory = Path(directory)
        self.spools = self.directory / "spools"
        self.spools.mkdir(parents=True)
        self.spools.chmod(0o777 | 0o1000)
        self.directory.chmod(0o755)
        self.users = users
        self.caches = []  # what it remembers of mailspools, and may forget
        self.process = None
        self.group = _group(f"tpop3d-bench-{os.getpid()}-{self.directory.name}")
        with socket.create_server((HOST, 0)) as taken:
            self.port = taken.getsockname()[1]

    def start(self, command):
        """Start it, in a cgroup of its own where there can be one, and wait until it listens."""
        entering = ["sh", "-c", 'echo $$ >"$0"/cgroup.procs && exec "$@"', self.group]
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [*(entering if self.group else []), *map(str, command)],
            cwd=CHECKOUT,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection((HOST, self.port), 5) as connection:
                    if connection.recv(100).startswith(b"+OK"):
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Missing("it does not start: " + (self.directory / "log").read_text()[-500:])
            time.sleep(0.02)

    def pids(self):
        """All its processes."""
        if self.group:
            return [int(pid) for pid in Path(self.group, "cgroup.procs").read_text().split()]
        found, parents = [self.process.pid], _parents()
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu(self):
        """Seconds of processor that it has used so far."""
        if self.group and (usage := Path(self.group, "cpuacct.usage")).exists():
            return int(usage.read_text()) / 1e9
        if self.group:
            text = Path(self.group, "cpu.stat").read_text()
            return int(re.search(r"usage_usec (\d+)", text)[1]) / 1e6
        return sum(_ticks(pid) for pid in self.pids()) / os.sysconf("SC_CLK_TCK")

    def pss(self):
        """Octets of memory that it has, its share of what is shared included."""
        total = 0
        for pid in self.pids():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue  # gone
            total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1]) * 1024
        return total

    def forget(self):
        """Have it know nothing of its mailspools."""
        for cache in self.caches:
            for place in cache.glob(f"{OWNER.pw_uid}.*" if cache.name == "state" else "*"):
                shutil.rmtree(place)

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for pid in self.pids() if self.group else []:
            os.kill(pid, signal.SIGKILL)
        for _ in range(100 if self.group else 0):
            try:
                os.rmdir(self.group)
                break
            except OSError:
                time.sleep(0.02)


def _group(name):
    """A cgroup that counts processor time, version 1 or 2; None where none can be made."""
    for root in CGROUPS:
        path = f"{root}/{name}"
        try:
            os.mkdir(path)
        except OSError:
            continue
        if {"cpuacct.usage", "cpu.stat"} & set(os.listdir(path)):
            return path
        os.rmdir(path)
    return None


def _parents():
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
    return parents


def _ticks(pid):
    """Of a process and those of its children that are dead and buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0
    return sum(int(ticks) for ticks in fields[11:15])


@contextmanager
def _served(name, directory, users):
    server = Server(name, directory, users)
    try:
        yield server
    finally:
        server.stop()


# This server


def _configure(server):
    server.caches = [server.directory / "state"]
    passwords = server.directory / "passwd"
    passwords.write_text("".join(f"{user}:{{plaintext}}secret\n" for user in server.users))
    conf = server.directory / "tpop3d.conf"
    conf.write_text(
        f"listen-address: {HOST}:{server.port}\n"
        "max-children: 1000\nmax-children-per-source: 0\n"
        "gatekeeper-user: nobody\n"
        "auth-flatfile-enable: yes\n"
        f"auth-flatfile-passwd-file: {passwords}\n"
        f"auth-flatfile-mail-user: {OWNER.pw_name}\n"
        f"auth-flatfile-mailbox: {server.spools}/$(local_part)\n"
        f"state-directory: {server.directory}/state\n"
        "log-stderr: yes\nlog-level: err\n"
    )
    return [sys.executable, CHECKOUT / "tpop3d" / "bin" / "tpop3d", "-f", conf]


@contextmanager
def listener(directory, users):
    with _served("tpop3d listener", directory, users) as server:
        server.start([*_configure(server), "-d"])
        yield server


@contextmanager
def xinetd(directory, users):
    with _served("tpop3d xinetd", directory, users) as server:
        command = " ".join(map(str, [*_configure(server), "--inetd"]))
        _under_xinetd(server, sys.executable, command, f"env = PYTHONPATH={CHECKOUT}")
        yield server


@contextmanager
def activated(directory, users):
    program = shutil.which("systemd-socket-activate")
    if not program:
        raise Missing("systemd-socket-activate is not installed")
    with _served("tpop3d systemd", directory, users) as server:
        command = [*_configure(server), "--inetd"]
        options = ["-l", f"{HOST}:{server.port}", "--accept", "--inetd", "-E", "PYTHONPATH"]
        server.start([program, *options, *command])
        yield server


def _under_xinetd(server, program, command, more=""):
    if os.geteuid() != 0:
        raise Missing("only root can start services as another user")
    conf = server.directory / "xinetd.conf"
    conf.write_text(f"""
        service pop
        {{
            type = UNLISTED
            socket_type = stream
            protocol = tcp
            wait = no
            user = root
            bind = {HOST}
            port = {server.port}
            flags = NAMEINARGS
            server = {program}
            server_args = {command}
            {more}
            cps = 100000 1
            instances = UNLIMITED
            per_source = UNLIMITED
        }}
    """)
    xinetd_program = shutil.which("xinetd", path="/usr/sbin:/usr/bin")
    if not xinetd_program:
        raise Missing("xinetd is not installed")
    pidfile = server.directory / "xinetd.pid"
    options = ["-dontfork", "-f", conf, "-pidfile", pidfile, "-filelog", server.directory / "log"]
    server.start([*_own_places(server), xinetd_program, *options])


# Its peers

DOVECOT = """
base_dir = {run}
state_dir = {run}
log_path = {directory}/log
protocols = pop3
ssl = no
disable_plaintext_auth = no
mail_location = mbox:{directory}/mail/%u:INBOX={spools}/%u:INDEX={directory}/index/%u
mail_uid = {owner.pw_uid}
mail_gid = {owner.pw_gid}
first_valid_uid = 1
first_valid_gid = 1
mail_privileged_group =
mail_access_groups =
listen = {host}
auth_mechanisms = plain
auth_failure_delay = 0
mail_max_userip_connections = 1000
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {directory}/passwd
}}
userdb {{
  driver = static
  args = uid={owner.pw_uid} gid={owner.pw_gid} home={directory}/mail/%u
}}
service pop3-login {{
  process_limit = 1000
  inet_listener pop3 {{
    port = {port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
  {login}
}}
service pop3 {{
  process_limit = 1000
  {pop3}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
"""


@contextmanager
def _dovecot(name, directory, users, login="", pop3=""):
    program = shutil.which("dovecot", path="/usr/sbin")
    if not program or not Path("/usr/lib/dovecot/pop3").exists():
        raise Missing("dovecot-pop3d is not installed")
    if os.geteuid() != 0:
        raise Missing("only root can start dovecot")
    with _served(name, directory, users) as server:
        server.caches = [server.directory / "index", server.directory / "mail"]
        for cache in server.caches:
            cache.mkdir(mode=0o700)
            os.chown(cache, OWNER.pw_uid, OWNER.pw_gid)
        passwords = server.directory / "passwd"
        passwords.write_text("".join(f"{user}:{{PLAIN}}secret\n" for user in users))
        conf = server.directory / "dovecot.conf"
        values = {"run": server.directory / "run", "directory": server.directory, "owner": OWNER}
        values |= {"spools": server.spools, "host": HOST, "port": server.port}
        conf.write_text(DOVECOT.format(**values, login=login, pop3=pop3))
        server.start([program, "-F", "-c", conf])
        yield server


def dovecot(directory, users):
    return _dovecot("dovecot", directory, users)


def fast_dovecot(directory, users):
    """As its documentation says for many logins: processes that serve one client after another."""
    login = "service_count = 0\n process_min_avail = 2"
    return _dovecot("dovecot high-perf.", directory, users, login, "service_count = 100")


@contextmanager
def popa3d(directory, users):
    program = unpacked("popa3d", ["popa3d"]) / "usr/sbin/popa3d"
    with _served("popa3d", directory, users) as server:
        _under_xinetd(server, program, str(program))
        yield server


@contextmanager
def mailutils(directory, users):
    root = unpacked("mailutils", MAILUTILS)
    program = root / "usr/sbin/pop3d"
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"
    with _served("mailutils", directory, users) as server:
        conf = server.directory / "pop3d.conf"
        conf.write_text('mailbox { mail-spool "/var/mail"; };\npam { service popa3d; };\n')
        command = f"{program} --inetd --config-file={conf}"
        _under_xinetd(server, program, command, f"env = LD_LIBRARY_PATH={libraries}")
        yield server


# popa3d and mailutils know their places and users only by their names: each has an /etc/passwd
# and a /var/mail of its own.
OWN_PLACES = """
mount -t tmpfs own /var/lib
mkdir -m 755 /var/lib/popa3d
mount --bind "$1/etc-passwd" /etc/passwd
mount --bind "$1/pam.d" /etc/pam.d
mount --bind "$1/spools" /var/mail
shift
exec "$@"
"""


def _own_places(server):
    if server.name.startswith("tpop3d"):
        return []
    place = server.directory
    (place / "pam.d").mkdir()
    permit = "auth required pam_permit.so\naccount required pam_permit.so\n"
    permit += "session required pam_permit.so\n"
    for service in ("popa3d", "other"):
        (place / "pam.d" / service).write_text(permit)
    accounts = ["root:x:0:0::/:/bin/sh", "popa3d:x:64999:64999::/:/bin/false"]
    accounts += [f"{user}:x:{OWNER.pw_uid}:{OWNER.pw_gid}::/:/bin/false" for user in server.users]
    (place / "etc-passwd").write_text("\n".join(accounts) + "\n")
    return ["unshare", "--mount", "sh", "-ec", OWN_PLACES, "sh", place]


def unpacked(name, packages):
    """Where Debian packages are unpacked that would get in each other's way if installed."""
    root = UNPACKED / name
    if root.exists():
        return root
    if not shutil.which("apt-get"):
        raise Missing("this is no Debian")
    work = UNPACKED / f"{name}.new"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if subprocess.run(
        ["apt-get", "-qq", "download", *packages], cwd=work, stderr=subprocess.DEVNULL
    ).returncode:
        raise Missing("apt-get cannot download " + " ".join(packages))
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, work / "root"], check=True)
    (work / "root").rename(root)
    shutil.rmtree(work)
    return root


# No server at all


@contextmanager
def null(directory, users):
    """Answers at once and reads nothing: how fast the clients are."""
    with _served("nothing", directory, users) as server:
        server.start([sys.executable, Path(__file__).with_name("null"), str(server.port)])
        yield server


SERVERS = [listener, xinetd, activated, dovecot, fast_dovecot, popa3d, mailutils, null]
