"""Workers that are interpreters of their own, for systems without a nursery.

Each worker has a thread of the caller: it starts the process, waits for its end, and
does what the nursery does then: it kills what is left of what the worker has started,
writes status and peak memory into the page, and shuts down its copy of the worker's
socket, which ends the stream.

What is special to a system (how a worker is given its socket, and started, and killed)
is in ``hosting_posix.py`` and ``hosting_windows.py``.

No way of dying leaves a process behind:

- the caller closes the starter or dies, in whatever way: its end of the sockets, and
  the lifeline or the jobs, end too, and the workers with them;
- a worker dies: its thread here kills the rest of its group. The user's code may have
  taken its status, with ``waitpid(-1)`` or by ignoring SIGCHLD; then the end is known
  all the same, and only the status is not.

A kill and an end race:

1. the worker ends, and its thread has taken its status, so its number is free;
2. before the thread has the lock, somebody asks for a kill, which goes to that number.

Numbers are given out in turn, so in that moment nobody else has got it: the kill finds
nothing. Once the thread has had the lock the number is not in `_living` any more.

Ctrl-C may come between any two steps of Python code in the main thread. A ``with`` of a
lock written in C has no such step between taking it and being bound to give it back;
that of a ``threading.Condition`` has one, and the workers' threads would wait for ever.
"""

from __future__ import annotations

import errno
import os
import sys
from _socket import SHUT_RDWR, socket
from _thread import RLock, allocate_lock

from fastjob._core.starting import start_bare_thread
from fastjob._pool.starter import (
    FAREWELL,
    ONE_THREAD,
    Starter,
    interpreter_options,
    needs_site,
    search_path,
)
from fastjob.errors import NurseryError

if sys.platform == "win32":
    from fastjob._pool.hosting_windows import Host, Process
else:
    from fastjob._pool.hosting_posix import Host, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from fastjob._pool.spawned import main; "
    "main({slot}, {preload!r}, {site!r}, *{ends!r})"
)


class Spawner(Starter):
    """The starter whose workers are interpreters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = RLock()
        #: Taken while there are workers: who waits for their end waits for it.
        self._occupied = allocate_lock()
        # All under the lock.
        self._living: dict[int, Process] = {}  # by slot, from start to end
        #: By slot, also after the end: what a worker has sent may still be fetched.
        self._known: dict[int, Process] = {}
        self._links: dict[int, socket] = {}  # slot -> copy of the worker's end
        self._doomed: set[int] = set()  # slots to be killed as soon as they are born
        self._host: Host | None = None  # None when not started, or gone
        self._open = False
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
        self._host = Host(self.page)
        self._open = True
        self._path = search_path()

    def preload(self, modules: Iterable[str]) -> None:
        self.preloaded.update(modules)
        self._path = search_path()

    def fork(self, slot: int, fd: int) -> None:
        host = self._host
        assert host is not None  # it is alive
        boot = BOOT.format(
            path=self._path,
            slot=slot,
            preload=tuple(sorted(self.preloaded)),
            site=needs_site(),
            ends=host.ends(),
        )
        argv = [sys.executable, *interpreter_options(), "-c", boot]
        environ = {"PYTHONHASHSEED": self._hash_seed, **os.environ, **ONE_THREAD}
        link = host.copy(fd)
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
        host = self._host
        try:
            assert host is not None  # it has a link
            process = host.start(link, argv, environ)
        except OSError as error:
            self.page.failed(slot, error.errno or 0)
        else:
            with self._lock:
                self.page.born(slot, process.pid, process.handle)
                self._living[slot] = self._known[slot] = process
                process.begin()
                if slot in self._doomed:
                    process.end()
            status, peak = process.wait()
            with self._lock:
                del self._living[slot]
                process.end()  # what its tasks have started
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
            if slot in self._living:
                self._living[slot].end()
            elif slot in self._links:
                self._doomed.add(slot)

    def close(self) -> None:
        with self._lock:
            self._open = False
            if self._host is not None:
                self._host.sever()
            for link in self._links.values():
                shut(link)
            self._let_go()

    def _let_go(self) -> None:
        """Close what is given to new workers, once there will be none."""
        if self._host is not None and not self._open and not self._links:
            self._host.close()
            self._host = None

    def forget(self) -> None:
        # The threads are not in this process; one may have held the lock.
        self._open = False
        if self._host is not None:
            self._host.sever()
            self._host.close()
            self._host = None
        for link in self._links.values():
            link.close()

    def wait(self, seconds: float) -> bool:
        if self.alive():
            return False
        if not self._deserted(min(seconds, FAREWELL)):
            with self._lock:
                for process in self._living.values():
                    process.end()
        return self._deserted(max(seconds - FAREWELL, 0))

    def _deserted(self, seconds: float) -> bool:
        """Wait for the end of the last worker; whether it has come."""
        if self._links and self._occupied.acquire(timeout=seconds):
            self._occupied.release()  # for others who wait
        return not self._links

    def alive(self) -> bool:
        return self._open


def shut(link: socket) -> None:
    """End a stream for whoever holds an end of it."""
    try:
        link.shutdown(SHUT_RDWR)
    except OSError:
        return  # the other end is gone
