"""The caller's side of the nursery: start it, and tell it what to do.

The nursery is spawned, never forked: the caller may have threads, a BLAS with locks
held, a GPU context. Its standard input is one end of a packet socket; the caller
writes requests into the other end and never reads: everything that it has to learn
comes through the status page and the end of a worker's stream. So any number of
threads can ask for workers with one lock, and none waits for an answer.

Requests can be written before the nursery has come up: the socket holds them.
"""

from __future__ import annotations

import marshal
import os
import sys
from _signal import SIGINT  # type: ignore[import-not-found]  # signal is slower
from _socket import (  # socket itself costs 5 ms to import
    AF_UNIX,
    SCM_RIGHTS,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)
from functools import partial

from fastjob._core.status import StatusPage
from fastjob.errors import NurseryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from _weakref import ref
    from collections.abc import Iterable
    from typing import Any

    from fastjob._core.peer import Peer

#: While the nursery imports a library, its thread pool must not come to life: a
#: process with a second thread cannot be forked safely.  numba is not among them: it
#: starts no thread when it is imported, and its number could not be raised again.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
}

BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from fastjob._pool.nursery import main; main({site!r})"
)


def interpreter_options() -> list[str]:
    """Options that give a new interpreter the flags of this one."""
    flags = sys.flags
    options = ["-S"]  # the search path is handed over ready-made
    if flags.ignore_environment:
        options.append("-E")
    if flags.optimize:
        options.append("-" + "O" * flags.optimize)
    if flags.dont_write_bytecode:
        options.append("-B")
    if flags.bytes_warning:
        options.append("-" + "b" * flags.bytes_warning)
    if flags.dev_mode:
        options += ["-X", "dev"]
    if flags.utf8_mode:
        options += ["-X", "utf8"]
    return options


def needs_site() -> bool:
    """Whether modules are found through hooks that ``site`` installs.

    Editable installations do that; everything else is found by the search path.
    """
    return any(
        "editable" in (getattr(finder, "__module__", None) or "").lower()
        or "editable" in getattr(finder, "__name__", type(finder).__name__).lower()
        for finder in sys.meta_path
    )


def search_path() -> list[str]:
    """`sys.path`, with what fastjob itself was found through at the end."""
    path = [os.path.abspath(entry) for entry in sys.path]
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if own not in path:
        path.append(own)
    return path


class Nursery:
    """A nursery: not started, running, or gone.

    Whoever makes one can keep it before it is started, so that an interrupt at any
    moment leaves nothing behind that nobody knows of.

    Attributes
    ----------
    page : StatusPage
        Shared with the nursery and its workers.
    preloaded : set of str
        Modules that it has been asked to import.
    owners : dict
        Slot of the page -> weak reference to the `Peer` that used it last.
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise NurseryError(
                "This Python is embedded in another program: there is no interpreter "
                "to start worker processes with.",
                "Set sys.executable to one, or use backend='threading'.",
            )
        self.page = StatusPage()
        self.preloaded: set[str] = set()
        self.owners: dict[int, ref[Peer]] = {}
        self._next_slot = 0
        self._pids: list[int] = []
        self._control: socket | None = None
        self._ready = False

    def start(self) -> None:
        """Start the process; requests can be made at once."""
        self._control, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        boot = BOOT.format(path=search_path(), site=needs_site())
        spawn = partial(
            os.posix_spawn,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
            # Ctrl-C reaches it too, and must not end it before it has a handler.
            setsigmask=(SIGINT,),
        )
        argv = [sys.executable, *interpreter_options(), "-c", boot]
        environ = {**os.environ, **ONE_THREAD}
        try:
            # In one call of C code, which no signal handler can interrupt between the
            # start of the process and the moment when its number is known.
            self._pids.extend(map(spawn, [sys.executable], [argv], [environ]))
        except OSError as error:
            raise NurseryError(
                f"Cannot start {sys.executable} to make worker processes: {error}."
            ) from error
        finally:
            theirs.close()
        self._tell(("page",), self.page.fd)
        self._ready = True

    def _tell(self, message: tuple[Any, ...], fd: int = -1) -> None:
        assert self._control is not None, "started"
        passed = (
            [(SOL_SOCKET, SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if fd >= 0 else []
        )
        self._control.sendmsg([marshal.dumps(message)], passed)

    def preload(self, modules: Iterable[str]) -> None:
        """Have modules imported before the next worker is forked."""
        names = tuple(modules)
        self._tell(("preload", names, search_path()))
        self.preloaded.update(names)

    def fork(self, slot: int, fd: int) -> None:
        """Have a worker forked that serves the socket `fd`."""
        self._tell(("fork", slot), fd)

    def kill(self, slot: int) -> None:
        """Have a worker killed, unless it has ended already."""
        self._tell(("kill", slot))

    def free_slot(self) -> int:
        """A slot of the page that no living worker writes to."""
        page = self.page
        for step in range(page.n_slots):
            slot = (self._next_slot + step) % page.n_slots
            owner = self.owners.get(slot)
            if owner is None or (owner() is None and page.ended(slot)):
                self._next_slot = slot + 1
                return slot
        raise NurseryError(
            f"All {page.n_slots} places for worker processes are taken.",
            "Use fewer workers, or fewer calls at the same time.",
        )

    def in_use(self) -> bool:
        """Whether somebody holds a worker of it that is not lost."""
        peers = [owner() for owner in list(self.owners.values())]
        return any(peer is not None and not peer.lost for peer in peers)

    def close(self) -> None:
        """Tell the nursery to end its workers and itself."""
        self._ready = False
        if self._control is not None:
            self._control.close()

    def wait(self, seconds: float) -> bool:
        """Reap the nursery; False if it has not ended within `seconds`."""
        if not self._running():
            return True
        try:
            watch = os.pidfd_open(self._pids[0])
        except (OSError, AttributeError):
            return self._poll(seconds)
        import select

        try:
            select.select([watch], [], [], seconds)
        finally:
            os.close(watch)
        return not self._running()

    def _poll(self, seconds: float) -> bool:
        """`wait` on systems that cannot wait for a child with a time limit."""
        import time

        deadline = time.monotonic() + seconds
        while self._running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def alive(self) -> bool:
        """Whether it can be asked for workers."""
        return self._ready and self._running()

    def _running(self) -> bool:
        if not self._pids:
            return False
        try:
            return os.waitpid(self._pids[0], os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False  # reaped: here, by code of the user, or by the system
