"""The client, behind TLS: octets of records on the connection, octets of POP3 for the relay."""

from __future__ import annotations

import os
import select
import ssl
import stat
from time import monotonic

from tpop3d.session.wire import RECEIVE
from tpop3d.system import socket
from tpop3d.system.io import PARTING_SECONDS, milliseconds, ready, send_now, set_no_delay
from tpop3d.system.refusal import Refusal
from tpop3d.tls.certificates import reason_of

RECORD = 1 << 14  # the most octets that a TLS record holds (RFC 8446 section 5.1)
HANDSHAKE = 0x16  # what a TLS client's first octet is (RFC 8446 section 5.1)
NO_TLS = b"-ERR TLS was expected here\r\n"


class TlsClient:
    """One client. Its connection is a socket, or two pipes. Only the handshake and the farewell
    wait.

    `unsent` is encrypted and not sent yet: nothing further is encrypted before it is sent.
    `is_over`: the client sends nothing more. `is_gone`: it receives nothing more, either. `broken`
    is what broke the TLS, if anything did.
    """

    def __init__(self, fd_in: int, fd_out: int, context: ssl.SSLContext, wakeup: int) -> None:
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.unsent = memoryview(b"")
        self.is_over = False
        self.is_gone = False
        self.broken = ""
        self._wakeup = wakeup
        self._received, self._sending = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sending, server_side=True)
        self._socket: socket.socket | None = None
        self._is_one = fd_in == fd_out
        if stat.S_ISSOCK(os.fstat(fd_out).st_mode):
            self._socket = socket.socket(fileno=fd_out)
            set_no_delay(self._socket)

    def describe(self) -> str:
        """The version of TLS and the cipher."""
        cipher = self._tls.cipher()
        return f"{self._tls.version()} {cipher[0] if cipher else 'unknown'}"

    def shake_hands(self, deadline: float) -> Refusal | None:
        """Make the handshake, until a moment of monotonic() at most."""
        is_first = True
        while True:
            try:
                self._tls.do_handshake()
                return self._flush(deadline)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self._flush(deadline)  # an alert, for the client
                self._part()
                return Refusal(reason_of(error))
            if refused := self._flush(deadline) or self._wait(self.fd_in, select.POLLIN, deadline):
                return refused
            received = self._read()
            if received is None:
                continue
            if not received:
                return Refusal("eof")
            if is_first and received[0] != HANDSHAKE:
                self.unsent = memoryview(NO_TLS)
                self._flush(deadline)
                self._part()
                return Refusal("no tls")
            is_first = False
            self._received.write(received)

    def receive(self) -> list[bytes]:
        """What the client has sent, decrypted."""
        received = self._read()
        if received is None:
            return []
        if not received:
            self.is_over = True
            return []
        self._received.write(received)
        return self.decrypt()

    def decrypt(self) -> list[bytes]:
        """Decrypt the records that have come as a whole."""
        found = []
        try:
            while octets := self._tls.read(RECORD):
                found.append(octets)
                if not self._received.pending and not self._tls.pending():
                    break  # saves the exception
            else:
                self.is_over = True  # close_notify (RFC 8446 section 6.1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.is_over = True
            self.broken = reason_of(error)
        self._collect()  # an alert, or the answer to a change of keys
        return found

    def encrypt(self, view: memoryview) -> bool:
        """Encrypt octets for the client, and send as many as it takes; False: it takes none."""
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as error:
            self.broken = self.broken or reason_of(error)
            self.is_over = self.is_gone = True
        self._collect()
        return self.send()

    def send(self) -> bool:
        """Send as many octets as the client takes; False: it takes none."""
        before = len(self.unsent)
        try:
            while self.unsent and (sent := send_now(self._socket, self.fd_out, self.unsent)):
                self.unsent = self.unsent[sent:]
        except OSError:
            self.unsent = memoryview(b"")
            self.is_over = self.is_gone = True
        return len(self.unsent) < before

    def bid_farewell(self, deadline: float) -> None:
        """Tell the client that this was all (close_notify), and close."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it wants the client's answer, for which nobody waits
        if self._flush(deadline) is None:
            self._part()

    def _collect(self) -> None:
        """Take from OpenSSL what is to be sent."""
        if self._sending.pending:
            octets = self._sending.read()
            self.unsent = memoryview(b"".join((self.unsent, octets)) if self.unsent else octets)

    def _read(self) -> bytes | None:
        """Read what has come; b"" at the end, and after a reset; None where nothing has come."""
        try:
            if self._is_one and self._socket is not None:
                return self._socket.recv(RECEIVE, socket.MSG_DONTWAIT)
            return os.read(self.fd_in, RECEIVE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _flush(self, deadline: float) -> Refusal | None:
        """Send all that is to be sent."""
        self._collect()
        self.send()
        while self.unsent:
            if refused := self._wait(self.fd_out, select.POLLOUT, deadline):
                return refused
            self.send()
        return Refusal("eof") if self.is_gone else None

    def _wait(self, fd: int, mask: int, deadline: float) -> Refusal | None:
        """Wait for a descriptor, until the deadline or a signal to end."""
        poll = select.poll()
        poll.register(fd, mask)
        if not self.is_over:
            poll.register(self._wakeup, select.POLLIN)
        if (left := deadline - monotonic()) <= 0:
            return Refusal("timeout")  # also for a client that never stops
        found = dict(poll.poll(milliseconds(left)))
        if self._wakeup in found:
            return Refusal("signal")
        return None if found else Refusal("timeout")

    def _part(self) -> None:
        """Close so that the client receives the last octets (RFC 1122 section 4.2.2.13)."""
        if self._socket is None:
            return
        deadline = monotonic() + PARTING_SECONDS
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        while (left := deadline - monotonic()) > 0 and ready(left, self.fd_in):
            if self._read() == b"":
                return
