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
from _socket import (  # socket itself costs 5 ms to import
    AF_UNIX,
    SCM_RIGHTS,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)

from fastjob._core.status import StatusPage
from fastjob.errors import NurseryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: While the nursery imports a library, its thread pool must not come to life: a
#: process with a second thread cannot be forked safely.  numba is not among them: it
#: starts no thread when it is imported, and its number could not be raised again.
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "POLARS_MAX_THREADS",
    )
}

BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from fastjob._pool.nursery import main; main({site!r})"
)


def interpreter_options() -> list[str]:
    """Options that give a new interpreter the flags of this one."""
    flags = sys.flags
    options = ["-S"]  # the search path is handed over ready-made
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
    """A running nursery.

    Attributes
    ----------
    page : StatusPage
        Shared with the nursery and its workers.
    pid : int
        Process number of the nursery.
    preloaded : set of str
        Modules that it has been asked to import.
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
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        self._control = ours
        boot = BOOT.format(path=search_path(), site=needs_site())
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, *interpreter_options(), "-c", boot],
                {**os.environ, **ONE_THREAD},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
                setsigmask=(),
            )
        except OSError as error:
            ours.close()
            raise NurseryError(
                f"Cannot start {sys.executable} to make worker processes: {error}."
            ) from error
        finally:
            theirs.close()
        self._tell(("page",), self.page.fd)

    def _tell(self, message: tuple[object, ...], fd: int = -1) -> None:
        passed = (
            [(SOL_SOCKET, SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if fd >= 0 else []
        )
        self._control.sendmsg([marshal.dumps(message)], passed)

    def preload(self, modules: Iterable[str]) -> None:
        """Have modules imported before the next worker is forked."""
        names = tuple(modules)
        self._tell(("preload", names))
        self.preloaded.update(names)

    def fork(self, slot: int, fd: int) -> None:
        """Have a worker forked that serves the socket `fd`."""
        self._tell(("fork", slot), fd)

    def kill(self, slot: int) -> None:
        """Have a worker killed, unless it has ended already."""
        self._tell(("kill", slot))

    def close(self) -> None:
        """Tell the nursery to end its workers and itself."""
        self._control.close()

    def wait(self, seconds: float) -> bool:
        """Reap the nursery; False if it has not ended within `seconds`."""
        import select

        try:
            watch = os.pidfd_open(self.pid)
        except (OSError, AttributeError):
            watch = -1
        try:
            if watch >= 0:
                select.select([watch], [], [], seconds)
            return os.waitpid(self.pid, os.WNOHANG if watch >= 0 else 0)[0] != 0
        except ChildProcessError:
            return True  # the user's code reaped it
        finally:
            if watch >= 0:
                os.close(watch)

    def alive(self) -> bool:
        """Whether the nursery still runs."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            try:
                os.kill(self.pid, 0)
            except OSError:
                return False
            return True
