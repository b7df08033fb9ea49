"""Workers that are interpreters of their own, for systems without a nursery.

Each worker has a thread of the caller: it starts the process, waits for its end, and
does what the nursery does then. It kills the rest of the process group, writes status
and peak memory into the page, and shuts down its copy of the worker's socket, which
ends the stream.

    caller ──private socketpair──▶ worker      (descriptor 0)
       ├──── status page ────────▶             (3)
       └──── lifeline ───────────▶             (4; never written to)

Why a thread a worker: waiting for one child by its number is the one way that every
system has and that takes no other child's status from the user's own code. The thread
also starts the process, since Ctrl-C interrupts only the main thread: no interrupt can
come between the start and the moment when the number is known.

No way of dying leaves a process behind:

- the caller closes the starter or dies, SIGKILL included: the lifeline and the sockets
  end. A worker without a task ends by itself; in any other a thread kills its group
  after a moment (``lifeline.pyx``);
- a worker dies: its thread here kills the rest of its group. The user's code may have
  taken its status, with ``waitpid(-1)`` or by ignoring SIGCHLD; then the end is known
  all the same, and only the status is not.

A kill and an end race:

1. the worker ends, and its thread has taken its status, so its number is free;
2. before the thread has the lock, somebody asks for a kill, which goes to that number.

Numbers are given out in turn, so in that moment nobody else has got it: the kill finds
nothing. Once the thread has had the lock the number is not in `_pids` any more.

Ctrl-C may come between any two steps of Python code in the main thread. A ``with`` of a
lock written in C has no such step between taking it and being bound to give it back;
that of a ``threading.Condition`` has one, and the workers' threads would wait for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from _socket import SHUT_RDWR, socket
from _thread import RLock, allocate_lock

from fastjob._core.starting import start_bare_thread
from fastjob._pool.spawned import LIFELINE, PAGE
from fastjob._pool.starter import (
    FAREWELL,
    ONE_THREAD,
    Starter,
    end,
    interpreter_options,
    needs_site,
    search_path,
)
from fastjob.errors import NurseryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from fastjob._pool.spawned import main; main({slot}, {preload!r}, {site!r})"
)

#: The status of a worker that somebody else has reaped.
UNKNOWN = -1

#: What the system counts peak memory in, in KiB.
PEAK_UNIT = 1024 if sys.platform == "darwin" else 1

#: Descriptors from here on cannot be in the way of those that a worker is given.
FIRST_FREE = 10


def copy_above(fd: int) -> int:
    """A copy of a descriptor that no place of a worker's can collide with."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)


class Spawner(Starter):
    """The starter whose workers are interpreters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = RLock()
        #: Taken while there are workers: who waits for their end waits for it.
        self._occupied = allocate_lock()
        # All under the lock.
        self._pids: dict[int, int] = {}  # slot -> pid, from start to end
        self._links: dict[int, socket] = {}  # slot -> copy of the worker's end
        self._doomed: set[int] = set()  # slots to be killed as soon as they are born
        self._lifeline = -1  # writing end; -1 when not started or closed
        self._given: list[tuple[int, int]] = []  # (ours, the worker's) descriptors
        self._path: list[str] = []
        # All workers put sets into the same order, as the forks of one process do.
        self._hash_seed = str(int.from_bytes(os.urandom(3), "big"))

    def start(self) -> None:
        as_now = os.access in os.supports_effective_ids  # not as who started it
        if not os.access(sys.executable, os.X_OK, effective_ids=as_now):
            raise NurseryError(
                f"Cannot start {sys.executable} to make worker processes: there is no "
                "such program."
            )
        read, self._lifeline = os.pipe()
        self._given.append((copy_above(read), LIFELINE))
        os.close(read)
        self._given.append((copy_above(self.page.fd), PAGE))
        self._path = search_path()

    def preload(self, modules: Iterable[str]) -> None:
        self.preloaded.update(modules)
        self._path = search_path()

    def fork(self, slot: int, fd: int) -> None:
        boot = BOOT.format(
            path=self._path,
            slot=slot,
            preload=tuple(sorted(self.preloaded)),
            site=needs_site(),
        )
        argv = [sys.executable, *interpreter_options(), "-c", boot]
        environ = {"PYTHONHASHSEED": self._hash_seed, **os.environ, **ONE_THREAD}
        link = socket(fileno=copy_above(fd))
        with self._lock:
            self._occupied.acquire(False)
            self._links[slot] = link
        try:
            start_bare_thread(self._life, slot, link, argv, environ)
        except RuntimeError as error:
            self._over(slot, link)
            self.page.failed(slot, errno.EAGAIN)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

    def _life(
        self, slot: int, link: socket, argv: list[str], environ: dict[str, str]
    ) -> None:
        """The thread of one worker."""
        places = [(link.fileno(), 0), *self._given]
        try:
            pid = os.posix_spawn(
                sys.executable,
                argv,
                environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, *place) for place in places],
                # Ctrl-C at a terminal reaches the caller's group alone.
                setpgroup=0,
                setsigmask=(),
            )
        except OSError as error:
            self.page.failed(slot, error.errno or 0)
        else:
            with self._lock:
                self.page.born(slot, pid)
                self._pids[slot] = pid
                if slot in self._doomed:
                    end(pid)
            try:
                _, status, usage = os.wait4(pid, 0)
                peak = usage.ru_maxrss // PEAK_UNIT
            except ChildProcessError:
                status, peak = UNKNOWN, 0
            with self._lock:
                del self._pids[slot]
                end(pid)  # the rest of its group
            self.page.exited(slot, status, peak)
        self._over(slot, link)

    def _over(self, slot: int, link: socket) -> None:
        """End the stream of a worker that is gone: its fate is in the page."""
        with self._lock:
            shut(link)
            link.close()
            del self._links[slot]
            self._doomed.discard(slot)
            self._let_go()
            if not self._links and self._occupied.locked():
                self._occupied.release()

    def kill(self, slot: int) -> None:
        with self._lock:
            if slot in self._pids:
                end(self._pids[slot])
            elif slot in self._links:
                self._doomed.add(slot)

    def close(self) -> None:
        with self._lock:
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1
            for link in self._links.values():
                shut(link)
            self._let_go()

    def _let_go(self) -> None:
        """Close what is given to new workers, once there will be none."""
        if self._lifeline < 0 and not self._links:
            while self._given:
                os.close(self._given.pop()[0])

    def forget(self) -> None:
        # The threads are not in this process; one may have held the lock.
        for fd in (self._lifeline, *(ours for ours, _ in self._given)):
            if fd >= 0:
                os.close(fd)
        self._lifeline = -1
        self._given.clear()
        for link in self._links.values():
            link.close()

    def wait(self, seconds: float) -> bool:
        if self.alive():
            return False
        if not self._deserted(min(seconds, FAREWELL)):
            with self._lock:
                for pid in self._pids.values():
                    end(pid)
        return self._deserted(max(seconds - FAREWELL, 0))

    def _deserted(self, seconds: float) -> bool:
        """Wait for the end of the last worker; whether it has come."""
        if self._links and self._occupied.acquire(timeout=seconds):
            self._occupied.release()  # for others who wait
        return not self._links

    def alive(self) -> bool:
        return self._lifeline >= 0


def shut(link: socket) -> None:
    """End a stream for whoever holds an end of it."""
    try:
        link.shutdown(SHUT_RDWR)
    except OSError:
        return  # the other end is gone
