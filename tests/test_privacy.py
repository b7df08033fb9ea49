"""Who may talk to a worker: its caller, over a socket without a name, and nobody else.

Looked at from outside, through /proc, while a call is in the middle of its tasks and
of large arguments.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

import psutil
import pytest
from gates import Bell, Gate

import fastjob
from fastjob import Parallel, delayed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

#: An uid that nobody has.
STRANGER = 54321

#: Flag of a socket that listens, in /proc/net/unix.
LISTENS = 0x10000


def hold(bell, gate, data):
    bell.ring()
    gate.wait()
    return data


def descriptors(pid):
    """What the descriptors of a process are: ``{number: name}``."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def unix_sockets():
    """The sockets of this system: ``{inode: (flags, name)}``."""
    with open("/proc/net/unix") as table:
        rows = [line.split(maxsplit=7) for line in list(table)[1:]]
    return {row[6]: (int(row[3], 16), "".join(row[7:])) for row in rows}


def descendants():
    """Numbers of the processes that this one, and they, have started."""
    return {p.pid for p in psutil.Process().children(recursive=True)}


class Held:
    """A call in the middle of its tasks."""

    def __init__(self):
        others = descendants()  # servers of other tests
        self.before = set(descriptors(os.getpid()).items())
        self.bell, self.gate = Bell(), Gate()
        self.meeting_points = {self.bell.path, self.gate.path}
        self.results = Parallel(
            2, "processes", return_as="generator", batch_size=1, max_nbytes=1000
        )(delayed(hold)(self.bell, self.gate, bytes(1_000_000)) for _ in range(2))
        self.bell.wait(2)
        self.helpers = sorted(descendants() - others)

    def end(self):
        self.gate.open()
        assert [len(data) for data in self.results] == [1_000_000] * 2
        self.bell.close()

    def mine(self):
        """Descriptors that the call has made in this process."""
        now = set(descriptors(os.getpid()).items())
        return {
            fd: name
            for fd, name in now - self.before
            if name not in self.meeting_points
        }

    def all(self):
        """Descriptors of every process of the call: ``(pid, number, name)``."""
        found = [(os.getpid(), *item) for item in self.mine().items()]
        for pid in self.helpers:
            for fd, name in descriptors(pid).items():
                if fd not in (1, 2) and name not in self.meeting_points:
                    found.append((pid, fd, name))
        return found


@pytest.fixture(params=[None, "0"], ids=["memfd", "unlinked files"])
def memory(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setenv("FASTJOB_MEMFD", request.param)


@pytest.fixture(params=["nursery", "spawn"])
def held(request, memory, monkeypatch):
    fastjob.shutdown()
    monkeypatch.setenv("FASTJOB_START_METHOD", request.param)
    call = Held()
    yield call
    call.end()
    fastjob.shutdown()


def test_sockets_have_no_name_and_none_listens(held):
    sockets = {
        pid: [n[8:-1] for p, _, n in held.all() if p == pid and n.startswith("socket:")]
        for pid in (os.getpid(), *held.helpers)
    }
    assert all(sockets.values())
    known = unix_sockets()
    for inode in {inode for inodes in sockets.values() for inode in inodes}:
        flags, name = known[inode]  # of another family, as TCP, it would not be there
        assert (flags & LISTENS, name) == (0, "")


def test_a_worker_has_one_socket_which_no_other_worker_has(held):
    sockets = {
        pid: {n for p, _, n in held.all() if p == pid and n.startswith("socket:")}
        for pid in held.helpers
        if not psutil.Process(pid).children()
    }
    assert len(sockets) == 2
    first, second = sockets.values()
    assert len(first) == len(second) == 1
    assert first.isdisjoint(second)


def test_nothing_has_a_name_and_nothing_is_readable_by_others(held):
    files = 0
    for pid, fd, name in held.all():
        if name == os.devnull or name.startswith("anon_inode:"):
            continue
        state = os.stat(f"/proc/{pid}/fd/{fd}")
        if stat.S_ISREG(state.st_mode):
            files += 1
            assert state.st_nlink == 0, name
            assert state.st_uid == os.getuid(), name
            assert stat.S_IMODE(state.st_mode) & 0o077 == 0, name
        else:
            assert name.startswith(("socket:", "pipe:")), name
    assert files >= 3  # the status page, at least


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_can_open_none_of_it(held):
    """The kernel's own answer, in a process that has become another user."""
    paths = [f"/proc/{pid}/fd/{fd}" for pid, fd, _ in held.all()]
    paths += [
        f"/proc/{pid}/{what}"
        for pid in (os.getpid(), *held.helpers)
        for what in ("mem", "maps", "environ")
    ]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        opened = ["the test has failed before it had looked"]
        try:
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            opened = [path for path in paths if can_open(path)]
        finally:
            os.write(write, "\n".join(opened).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == ""
    os.waitpid(child, 0)
    assert any(can_open(path) for path in paths)  # this user may


def can_open(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        return False
    except OSError:
        return True  # allowed, and not a thing that can be opened
    return True


#: Each module that rebuilds objects from bytes, and where these bytes come from.
UNPICKLES = {
    "_core/arrays.pyx": "parts of a message",
    "_core/pickling.pyx": "the one way for all others",
    "_pool/nursery.py": "the control socket, inherited as standard input",
    "_pool/notes.py": "a NOTE frame",
    "_pool/state.py": "a STATE frame",
    "backends/cluster.py": "what dask or ray has brought",
    "backends/cluster_calls.py": "the same, in their workers",
    "backends/followed.py": "the pipes of multiprocessing, inherited",
    "backends/mapped.py": "the pipes of multiprocessing, inherited",
    "backends/multiprocessing.py": "the pipes of multiprocessing, inherited",
    "backends/returned.py": "the pipes of multiprocessing, inherited",
    "failure.py": "part of a REPLY, or what this process has just pickled",
    "peek.py": "what this process has pickled; makes stand-ins only",
    "variables.py": "part of the state",
    "wrap.py": "part of a pickle of the user's",
}


def test_bytes_are_unpickled_where_it_is_known_and_nowhere_else():
    package = Path(__file__).parents[1] / "fastjob"  # a wheel has no sources
    call = re.compile(
        r"\b(pickle|cloudpickle|marshal)\.loads?\(|[^.]\bloads\(|Unpickler\("
    )
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py*")
        if path.suffix in (".py", ".pyx")
        and any(
            call.search(line) and ">>>" not in line
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    }
    assert found == UNPICKLES.keys()
