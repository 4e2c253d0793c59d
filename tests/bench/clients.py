"""The load: a client in bytes, which does nothing but send, receive and look for the end."""

import multiprocessing
import socket
import statistics
import time

HOST = "127.0.0.1"
PATIENCE = 120  # seconds
BUFFER = 1 << 20
END = b"\r\n.\r\n"


class Client:
    """One connection."""

    def __init__(self, port):
        self.connection = socket.create_connection((HOST, port), PATIENCE)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(BUFFER)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def line(self):
        """A status line, which must be good; nothing else may be on its way."""
        received = b""
        while not received.endswith(b"\r\n"):
            octets = self.connection.recv(4096)
            if not octets:
                raise ConnectionError(f"closed, after {received!r}")
            received += octets
        if not received.startswith(b"+OK"):
            raise ConnectionError(received.decode(errors="replace"))
        return received

    def ask(self, command):
        self.connection.sendall(command + b"\r\n")
        return self.line()

    def ask_long(self, command, replies=1):
        """The octets of one reply, or of as many as `command` asks for. A lone dot ends each."""
        self.connection.sendall(command + b"\r\n")
        received = ended = 0
        tail = b""  # of what came before: an end may be cut anywhere
        while ended < replies:
            got = self.connection.recv_into(self.buffer)
            if not got:
                raise ConnectionError("closed within a reply")
            if not received and not self.buffer.startswith(b"+"):
                raise ConnectionError(bytes(self.buffer[:100]).decode(errors="replace"))
            received += got
            ended += (tail + self.buffer[: min(4, got)]).count(END)
            if replies == 1:  # nothing comes after it: where it is is known
                ended += self.buffer.endswith(END, 0, got)
            else:
                ended += self.buffer.count(END, 0, got)
            tail = (tail + self.buffer[max(0, got - 4) : got])[-4:]
        return received

    def login(self, user):
        self.line()
        self.ask(b"USER " + user.encode())
        return self.ask(b"PASS secret")


def greeting(port):
    """Seconds from connect to the greeting."""
    started = time.perf_counter()
    with Client(port) as client:
        client.line()
        seconds = time.perf_counter() - started
        client.connection.sendall(b"QUIT\r\n")
        client.connection.recv(4096)
    return seconds


def session(port, user):
    """A client that looks whether there is mail, and fetches one message."""
    with Client(port) as client:
        client.login(user)
        client.ask(b"STAT")
        client.ask_long(b"RETR 1")
        client.ask(b"QUIT")


def _sessions(port, user, until, done):
    count = failed = 0
    while time.perf_counter() < until:
        try:
            session(port, user)
            count += 1
        except ConnectionError:
            failed += 1
    done.put((count, failed))


def sessions(port, users, seconds):
    """Sessions of these users at the same time, for so long; returns how many were served, how
    many not, and the time."""
    done = multiprocessing.SimpleQueue()
    started = time.perf_counter()
    clients = [
        multiprocessing.Process(target=_sessions, args=(port, user, started + seconds, done))
        for user in users
    ]
    for client in clients:
        client.start()
    counts = [done.get() for _ in clients]
    for client in clients:
        client.join()
    served, failed = (sum(numbers) for numbers in zip(*counts, strict=True))
    return served, failed, time.perf_counter() - started


def retrieve(client, messages, window, seconds):
    """Octets per second of messages in windows of so many commands, for so long at most."""
    octets, first = 0, 1
    started = time.perf_counter()
    while first <= messages and time.perf_counter() < started + seconds:
        last = min(messages, first + window - 1)
        commands = b"\r\n".join(b"RETR %d" % number for number in range(first, last + 1))
        octets += client.ask_long(commands, last - first + 1)
        first = last + 1
    return octets / (time.perf_counter() - started)


def median(values):
    return statistics.median(values) if values else None
