"""TLS with the client, in a process that does nothing else.

A relay stands between the client and a socket on which gatekeeper and session speak POP3 as if
there were no TLS. It has the private keys, and what OpenSSL knows of the connection. It reads no
command and no mailbox, and is locked in as a gatekeeper is. It serves one connection and ends:
nobody's mail meets anybody else's in its memory.
"""

from __future__ import annotations

import select
from time import monotonic

from tpop3d.system import logs, processes, socket, titles
from tpop3d.system.io import LINGER_TIMES, PARTING_SECONDS, milliseconds, ready
from tpop3d.system.privileges import OUT_OF_MEMORY, confine
from tpop3d.tls import relay_channel
from tpop3d.tls.client import TlsClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

    from tpop3d.system.privileges import Sandbox
    from tpop3d.tls.relay_channel import RelayChannel, RelayOrder

MAX_UNSENT = 1 << 18  # octets of TLS that a client has not taken, before it is read from again
CHUNK = 1 << 17  # octets of a session's that are encrypted at a time
HUNG_UP = select.POLLHUP | select.POLLRDHUP | select.POLLERR


def run(sandbox: Sandbox, channel: RelayChannel, contexts: list[ssl.SSLContext]) -> int:
    """Be a relay, for one connection; returns the process's exit status."""
    try:
        wakeup, _ = processes.descriptors()
        titles.show(titles.RELAY)
        confine(sandbox, (channel.fileno(), *processes.descriptors()))
        channel.tell(relay_channel.READY)
        if (order := _await_order(channel, wakeup)) is not None:
            _serve(order, channel, contexts[order.index], wakeup)
    except ConnectionError:
        pass  # nobody is there any more to have a relay
    except MemoryError:
        channel.tell(relay_channel.BROKEN, OUT_OF_MEMORY)
    except Exception as error:
        channel.tell(relay_channel.BROKEN, f"internal error: {logs.describe(error)}")
        return 1
    return 0


def _await_order(channel: RelayChannel, wakeup: int) -> RelayOrder | None:
    """The order; None when the process is told to end before it comes."""
    if wakeup in ready(None, wakeup, channel.fileno()):
        return None
    return channel.take_order()


def _serve(order: RelayOrder, channel: RelayChannel, context: ssl.SSLContext, wakeup: int) -> None:
    fd_in, fd_out, inner = order.fds
    client = TlsClient(fd_in, fd_out, context, wakeup)
    if refused := client.shake_hands(monotonic() + order.seconds):
        channel.tell(relay_channel.FAILED, refused.reason)
        return
    channel.tell(relay_channel.SECURED, client.describe())
    RelayPump(client, inner, wakeup, order.patience).pump()
    if client.broken:
        channel.tell(relay_channel.FAILED, client.broken)


class RelayPump:
    """Passes octets between a client behind TLS and the `inner` socket, where POP3 is spoken."""

    def __init__(self, client: TlsClient, inner: int, wakeup: int, patience: float) -> None:
        self._client = client
        self._inner = socket.socket(fileno=inner)
        self._inner.setblocking(False)
        self._wakeup = wakeup
        self._buffer = memoryview(bytearray(CHUNK))
        self._to_session = memoryview(b"")  # what is decrypted, and not passed on yet
        self._is_told = False  # the session, that its client is over
        self._session_is_over = False
        self._patience = patience
        self._linger = 0.0  # when the client must have taken something, after the session's end
        self._end = 0.0  # when it must have taken all

    def pump(self) -> None:
        """Pass octets on, both ways, until the session is over. No side is read while the other
        takes nothing. Deadlines are the session's."""
        poll, client, inner = select.poll(), self._client, self._inner.fileno()
        masks: dict[int, int] = {}
        before: tuple[bool, ...] = ()
        self._keep(client.decrypt())  # what came behind the handshake
        while client.unsent or not self._is_at_end():
            if self._to_session or client.is_over:
                self._pass_on()
            if (now := self._state()) != before:
                before, wanted = now, self._interests()
                _register(poll, masks, wanted)
                masks = wanted
            left = self._linger - monotonic() if self._linger else None
            if left is not None and left < 0:
                return  # what is missing was not all, and must not look like it
            for fd, mask in poll.poll(None if left is None else milliseconds(left)):
                if fd == inner:
                    self._hear_session(mask)
                elif fd == self._wakeup:
                    # Whoever told us tells the session, too; or this is how it is told.
                    client.is_over = True
                else:
                    if client.send():
                        self._be_patient()
                    if fd == client.fd_in and mask & ~select.POLLOUT:
                        self._keep(client.receive())
        self._inner.close()
        client.bid_farewell(self._linger or monotonic() + PARTING_SECONDS)

    def _is_at_end(self) -> bool:
        # Of a client that is gone the session finds its socket closed, as it would the client's.
        return self._session_is_over or (self._client.is_gone and not self._to_session)

    def _be_patient(self) -> None:
        """Give a client that takes something further time, after the session's end."""
        if self._linger:
            self._linger = min(monotonic() + self._patience, self._end)

    def _keep(self, octets: list[bytes]) -> None:
        """Keep decrypted octets for the session."""
        if self._to_session or len(octets) > 1:
            octets = [b"".join((self._to_session, *octets))]
        if octets:
            self._to_session = memoryview(octets[0])

    def _state(self) -> tuple[bool, ...]:
        """All that `_interests` depends on."""
        client, unsent = self._client, len(self._client.unsent)
        over = client.is_over, self._session_is_over, self._linger > 0
        return (bool(self._to_session), unsent > 0, unsent < MAX_UNSENT, *over)

    def _interests(self) -> dict[int, int]:
        """The descriptors to wait for: a side is not read while the other has not taken what is
        there."""
        client, wanted = self._client, {}
        if not client.is_over:
            wanted[self._wakeup] = select.POLLIN
            # One that takes nothing must not make us answer it more and more, as TLS does.
            if not self._to_session and not self._linger and len(client.unsent) < MAX_UNSENT:
                wanted[client.fd_in] = select.POLLIN
        if client.unsent:
            wanted[client.fd_out] = wanted.get(client.fd_out, 0) | select.POLLOUT
        if not self._session_is_over:
            mask = 0 if self._linger else select.POLLRDHUP
            mask |= 0 if client.unsent else select.POLLIN
            mask |= select.POLLOUT if self._to_session else 0
            if mask:
                wanted[self._inner.fileno()] = mask
        return wanted

    def _hear_session(self, mask: int) -> None:
        """Take what the session says, for the client."""
        if mask & HUNG_UP and not self._linger:
            self._end = monotonic() + LINGER_TIMES * self._patience
            self._linger = monotonic() + self._patience
        if self._client.unsent or self._session_is_over:
            return
        try:
            length = self._inner.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if length:
            if self._client.encrypt(self._buffer[:length]):
                self._be_patient()
        else:
            self._session_is_over = True

    def _pass_on(self) -> None:
        """Give the session what the client sent, and after that its end."""
        try:
            while self._to_session:
                sent = self._inner.send(self._to_session, socket.MSG_NOSIGNAL)
                self._to_session = self._to_session[sent:]
            if self._client.is_over and not self._is_told:
                self._is_told = True
                self._inner.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._to_session = memoryview(b"")  # it is over, and its last words may be unread


def _register(poll: select.poll, before: dict[int, int], wanted: dict[int, int]) -> None:
    for fd in before.keys() - wanted.keys():
        poll.unregister(fd)
    for fd, mask in wanted.items():
        poll.register(fd, mask)
