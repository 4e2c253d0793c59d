"""Programs that deliver to mailspools, and POP3 clients that empty them meanwhile."""

import poplib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import doors
from flocking import Dma, Qmail
from mailsite import PATIENCE, Site
from neighbours import USERS, AnyDeliverer, Dovecot, Maildrop, Postfix, Procmail, numbers_in

CLIENTS = 8


class Clients:
    """POP3 clients that fetch and delete in a loop, until there is nothing more to wait for."""

    def __init__(self, door: doors.Door, users: Sequence[str]) -> None:
        self.door = door
        self.taken: list[int] = []
        self.sessions = self.refused = self.broken_off = 0
        self.enough = threading.Event()
        self.pool = ThreadPoolExecutor(CLIENTS)
        self.loops = [
            self.pool.submit(self.loop, users[number % len(users)]) for number in range(CLIENTS)
        ]

    def loop(self, user: str) -> None:
        while not self.enough.is_set():
            self.fetch_and_delete(user)

    def fetch_and_delete(self, user: str) -> None:
        """One session that takes everything: its numbers are the client's once QUIT is answered.

        It gets nothing while another one has the maildrop, or if a program rewrote it meanwhile.
        """
        client = poplib.POP3(self.door.host, self.door.port, 3 * PATIENCE)
        fetched: list[int] = []
        try:
            client.user(user)
            client.pass_("secret")
            for index in range(len(client.list()[1])):
                fetched += numbers_in(b"\n".join(client.retr(index + 1)[1]))
                client.dele(index + 1)
            client.quit()
        except poplib.error_proto as error:
            if b"[IN-USE]" in error.args[0]:
                self.refused += 1
            elif b"[SYS/TEMP]" in error.args[0]:
                self.broken_off += 1
            else:
                raise
        else:
            self.sessions += 1
            self.taken += fetched
        finally:
            client.close()

    def finish(self) -> None:
        self.enough.set()
        for loop in self.loops:
            loop.result()
        self.pool.shutdown()


@contextmanager
def all_deliverers(site: Site, patience: int) -> Iterator[list[AnyDeliverer]]:
    """Each of them, configured for a site."""
    kinds: list[type[AnyDeliverer]] = [Procmail, Maildrop, Dovecot, Postfix, Dma, Qmail]
    started: list[AnyDeliverer] = []
    try:
        for kind in kinds:
            started.append(kind(site, patience))
        yield started
    finally:
        for deliverer in started:
            deliverer.close()


def spools_for(deliverers: Sequence[AnyDeliverer], shared: bool) -> list[str]:
    """The user whose spool each has: a spool of its own, or one that is `shared`. There, too, those
    have one of their own who would not wait for the others, whatever we do, or whose mails would be
    glued to theirs."""
    return [
        USERS[0] if shared and deliverer.shares else USERS[index]
        for index, deliverer in enumerate(deliverers)
    ]


def exchange(
    site: Site,
    door: doors.Door,
    messages: int,
    deliverers: Sequence[AnyDeliverer],
    spools: Sequence[str],
) -> tuple[Clients, list[int]]:
    """Let these deliver so many numbered messages in all, while clients take them.

    Each into its spool of these. Returns the clients, and the numbers of all messages: those that
    they took and those that are left.
    """

    def work(index: int, deliverer: AnyDeliverer) -> None:
        for number in range(index, messages, len(deliverers)):
            deliverer.deliver(spools[index], number)
        deliverer.finish()

    users = sorted(set(spools))
    clients = Clients(door, users)
    try:
        with ThreadPoolExecutor(len(deliverers)) as pool:
            for delivery in [pool.submit(work, *one) for one in enumerate(deliverers)]:
                delivery.result()
    finally:
        clients.finish()
    left = [number for user in users for number in numbers_in(site.spool(user).read_bytes())]
    return clients, sorted(clients.taken + left)
