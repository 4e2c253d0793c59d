"""Power cuts: whatever of the last writes is on the disk, the spool is the old or the new one.

An expunge and a recovery are recorded. For every moment the disk is laid out as it might be then:
of each file what was there at its last fsync, any of the pages that were written since, any of the
sizes since; of the directory what was there at its fsync, and any of the changes since.
"""

import functools
import itertools
import os
import random
import tempfile
from pathlib import Path

import pytest

from spools import mbox, messages_of, opened
from tpop3d.mailspool import index as indexes
from tpop3d.system.refusal import Refusal

PAGE = 4096
SECTOR = 512
NEW = [mbox(b"Subject: new %d\n\nnew mail %d\n" % (n, n)) for n in range(2)]
SHAPES = {
    "small": mbox(*[b"message %d\n" % n for n in range(4)]),
    "pages": mbox(*[b"%d\n" % n + b"%d" % n * (3000 + 700 * n) + b"\n" for n in range(4)]),
    "large": mbox(b"a\n", b"y" * 30_000 + b"\n", b"b\n", b"z" * 9000 + b"\n"),
    # What they have for ids depends on who else is there, or was.
    "twins": b"".join(b"From a\n" + b"z" * 600 + b"%d\n\n" % n for n in (1, 2, 1, 1)),
}
OLD = {shape: octets + NEW[0] for shape, octets in SHAPES.items()}
# Marks for the four messages and for the new one behind them.
MARKS = [
    (1, 0, 0, 0, 0),
    (0, 1, 0, 0, 0),
    (0, 0, 0, 1, 0),
    (0, 1, 0, 1, 0),
    (1, 1, 1, 1, 0),
    (0, 0, 1, 1, 1),
    (1, 1, 1, 1, 1),
]


class Killed(BaseException):
    """The process that is recorded has ended here."""


class File:
    """What the disk may hold of a file: pages and a size for certain, and more of each perhaps."""

    def __init__(self, octets=b""):
        self.size = len(octets)
        self.pages = dict(enumerate(pages_of(octets)))
        self.later = []  # pairs of page number and content
        self.sizes = [self.size]

    def changed(self, before, after):
        old = dict(enumerate(pages_of(before)))
        new = dict(enumerate(pages_of(after)))
        self.later += [(n, page) for n, page in new.items() if old.get(n) != page]
        if len(before) != len(after):
            self.sizes.append(len(after))

    def synced(self, octets):
        self.__init__(octets)

    def copy(self):
        copy = File()
        copy.size, copy.pages = self.size, dict(self.pages)
        copy.later, copy.sizes = list(self.later), list(self.sizes)
        return copy

    def layouts(self):
        """How many there are, each page torn or not aside."""
        return 2 ** len(self.later) * len(self.sizes)

    def layout(self, number, torn=None):
        """One of them; `torn` is a source of chance if a page may be old and new in parts."""
        chosen, size = divmod(number, len(self.sizes))
        pages = dict(self.pages)
        there = [one for bit, one in enumerate(self.later) if chosen >> bit & 1]
        for count, (at, page) in enumerate(there):
            if torn and count == len(there) - 1:
                old = pages.get(at, b"").ljust(PAGE, b"\0")
                cut = torn.randrange(0, PAGE, SECTOR)
                page = page.ljust(PAGE, b"\0")[:cut] + old[cut:]
            pages[at] = page
        size = self.sizes[size]
        octets = bytearray()
        for at in range(-(-size // PAGE)):
            octets += pages.get(at, b"").ljust(PAGE, b"\0")
        return bytes(octets[:size])


def pages_of(octets):
    return [octets[at : at + PAGE] for at in range(0, len(octets), PAGE)]


class Disk:
    """What was certain, and what was not, after each call; made by hooks in `os`."""

    def __init__(self, spool, state):
        self.state = state
        self.spool = os.stat(spool).st_ino
        self.files = {self.spool: File(spool.read_bytes())}
        self.names = {}  # certain: the name's inode
        self.doubtful = []  # changes of names that are not fsynced
        self.moments = []
        self.last = None
        self.first_sync = 0  # the moment before which what was delivered may get lost

    def deliver(self, path, octets):
        """Mail that is not fsynced, as procmail leaves it."""
        before = path.read_bytes()
        with path.open("ab") as file:
            file.write(octets)
        self.files[self.spool].changed(before, before + octets)

    def hook(self, monkeypatch):
        for name in ("open", "write", "pwrite", "ftruncate", "fsync", "rename", "unlink"):
            monkeypatch.setattr(os, name, self._instead_of(name, getattr(os, name)))

    def _instead_of(self, name, real):
        def call(*arguments, **named):
            before = self._contents()
            done = real(*arguments, **named)
            self._note(name, arguments, done, before)
            return done

        return call

    def _contents(self):
        found = {}
        for fd in os.listdir("/proc/self/fd"):
            try:
                inode = os.stat(f"/proc/self/fd/{fd}").st_ino
                if inode in self.files:
                    found[inode] = Path(f"/proc/self/fd/{fd}").read_bytes()
            except OSError:
                pass
        return found

    def _note(self, name, arguments, done, before):
        first = arguments[0]
        if name == "open":
            in_state = str(first).startswith(f"{self.state}/")
            if in_state and arguments[1] & os.O_CREAT and not first.endswith("/lock"):
                inode = os.fstat(done).st_ino
                if inode not in self.files:
                    self.files[inode] = File()
                    self.doubtful.append(("create", os.path.basename(first), inode))
            return
        if name in ("rename", "unlink"):
            if str(first).startswith(f"{self.state}/"):
                self.doubtful.append((name, *map(os.path.basename, arguments)))
                self._moment()
            return
        inode = os.fstat(first).st_ino
        if inode == os.stat(self.state).st_ino and name == "fsync":
            self.names = self.named(2 ** len(self.doubtful) - 1)
            self.doubtful = []
        elif inode not in self.files:
            return
        elif name == "fsync":
            self.files[inode].synced(Path(f"/proc/self/fd/{first}").read_bytes())
            if inode == self.spool and not self.first_sync:
                self.first_sync = len(self.moments)
        else:
            after = Path(f"/proc/self/fd/{first}").read_bytes()
            self.files[inode].changed(before[inode], after)
        self._moment()

    def named(self, chosen):
        """The names if of the doubtful changes those have come about."""
        names = dict(self.names)
        for bit, (what, name, *more) in enumerate(self.doubtful):
            if not chosen >> bit & 1:
                continue
            if what == "create":
                names[name] = more[0]
            elif name in names:
                inode = names.pop(name)
                if what == "rename":
                    names[more[0]] = inode
        return names

    def old(self, octets, number, shape):
        """What was there before, if these are on the disk after so many moments: what was delivered
        and is not on the disk yet was never there."""
        is_doubtful = not self.first_sync or number <= self.first_sync
        return octets if is_doubtful and octets.startswith(SHAPES[shape]) else OLD[shape]

    def _moment(self):
        files = {inode: file.copy() for inode, file in self.files.items()}
        self.moments.append((files, dict(self.names), list(self.doubtful)))
        if len(self.moments) == self.last:
            raise Killed


def layouts(moment, disk, chance, sample):
    """What may be on the disk: the spool, and the files of the state directory by name. A sample
    where that are too many."""
    files, names, doubtful = moment
    disk.names, disk.doubtful = names, doubtful
    ranges = range(files[disk.spool].layouts()), range(2 ** len(doubtful))
    if len(ranges[0]) * len(ranges[1]) <= sample:
        chosen = list(itertools.product(*ranges))
    else:
        chosen = [(chance.choice(ranges[0]), chance.choice(ranges[1])) for _ in range(sample)]
        chosen += itertools.product((0, ranges[0][-1]), (0, ranges[1][-1]))
    for number, change in chosen:
        torn = chance if chance.random() < 0.3 else None
        there = {}
        for name, inode in disk.named(change).items():
            file = files[inode]
            there[name] = file.layout(chance.randrange(file.layouts()))
        yield files[disk.spool].layout(number, torn), there


def lay_out(path, state, octets, files):
    """Make it so; the spool keeps its inode."""
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(octets)
    for name in os.listdir(state):
        os.unlink(f"{state}/{name}")
    for name, content in files.items():
        Path(state, name).write_bytes(content)


@pytest.fixture
def place():
    """A directory in memory where there is one: fsync is called thousands of times."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def patient(path):
    return opened(path, pause=lambda seconds: False)


def expunge(path, marks, disk):
    """Returns after how many moments the client may be told."""
    spool = patient(path)
    spool.unique_ids()
    try:
        refused = spool.expunge(bytearray(marks))
        told = len(disk.moments)
        spool.close()
    finally:
        spool.close()  # whoever was killed has no locks
    assert refused is None, refused
    return told


@functools.cache
def ids_of(octets):
    """The ids when all are there, and nobody has been there before."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "spool")
        path.write_bytes(octets)
        spool = patient(path)
        ids = list(spool.unique_ids())
        spool.close()
        return ids


def check_after(path, layout, old, marks, is_told):
    """After the power cut mail is delivered, and then somebody opens the spool."""
    state = f"{path}.state"
    lay_out(path, state, *layout)
    with path.open("ab") as file:
        file.write(NEW[1])
    spool = patient(path)
    assert not isinstance(spool, Refusal), spool
    assert spool.found is None or not spool.found.is_alarming, spool.found.line
    found = path.read_bytes()
    messages = list(itertools.zip_longest(messages_of(old), marks[: len(messages_of(old))]))
    new = b"".join([message for message, mark in messages if not mark])
    assert found in ([new + NEW[1]] if is_told else [old + NEW[1], new + NEW[1]])
    stored = [b"".join(spool.blocks(n)) for n in range(len(spool))]
    assert stored == [one.partition(b"\n")[2][:-1] for one in messages_of(found)]
    ids = ids_of(old + NEW[1])
    if found != old + NEW[1]:
        ids = [
            one
            for one, (_, mark) in itertools.zip_longest(ids, messages, fillvalue=(0, 0))
            if not mark
        ]
    assert list(spool.unique_ids()) == ids
    spool.close()
    assert not [name for name in os.listdir(state) if name.startswith("journal")]


def prepared(path, shape, state):
    state.mkdir(exist_ok=True)
    lay_out(path, state, SHAPES[shape], {})
    disk = Disk(path, str(state))
    disk.deliver(path, NEW[0])
    return disk


@pytest.mark.parametrize("shape", SHAPES)
def test_a_power_cut_while_messages_are_removed(place, monkeypatch, shape):
    monkeypatch.setattr(indexes, "WORTH", 0)
    chance = random.Random(shape)
    path, state = place / "spool", place / "spool.state"
    path.touch()
    cases = 0
    for marks in MARKS:
        disk = prepared(path, shape, state)
        with monkeypatch.context() as patch:
            disk.hook(patch)
            told = expunge(path, marks, disk)
        for number, moment in enumerate(disk.moments, 1):
            for layout in layouts(moment, disk, chance, 200):
                old = disk.old(layout[0], number, shape)
                check_after(path, layout, old, marks, is_told=number >= told)
                cases += 1
    print(f"{cases} power cuts")
    assert cases > 200


@pytest.mark.parametrize("shape", SHAPES)
def test_a_power_cut_while_it_is_recovered_that_somebody_was_killed(place, monkeypatch, shape):
    """What the one who was killed had not fsynced is as doubtful as before."""
    monkeypatch.setattr(indexes, "WORTH", 0)
    chance = random.Random(shape)
    path, state = place / "spool", place / "spool.state"
    path.touch()
    cases = 0
    for marks in MARKS:
        for last in itertools.count(2):
            disk = prepared(path, shape, state)
            disk.last = last
            with monkeypatch.context() as patch:
                disk.hook(patch)
                try:
                    expunge(path, marks, disk)
                    break
                except Killed:
                    disk.last = None
                    patient(path).close()
            for number, moment in enumerate(disk.moments[last:], last + 1):
                for layout in layouts(moment, disk, chance, 10):
                    old = disk.old(layout[0], number, shape)
                    check_after(path, layout, old, marks, is_told=False)
                    cases += 1
    print(f"{cases} power cuts")
    assert cases > 1500
