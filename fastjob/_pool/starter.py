"""What starts worker processes, and says how each has ended.

There are two kinds. On Linux a nursery forks the workers (`launch.Nursery`). Where
there is none, because the libraries of the system do not survive a fork without an exec
(macOS) or because there are no forks (Windows), each worker is an interpreter of its
own (`spawn.Spawner`). ``FASTJOB_START_METHOD``, one of "nursery" and "spawn", chooses.

Both keep one contract, and the rest of fastjob does not know which it has:

- a request returns at once, and none is lost: a worker's socket can be written to
  before the worker exists;
- once a worker has ended, its status is in its slot of the page, and only then does
  its stream end: whoever sees the end of the stream sees why;
- with the worker its process group ends, so that a program which its task has started
  does not outlive it;
- when the starter is closed, or the caller ends in whatever way, all workers end.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # it alone needs no enum
import os
import sys

from fastjob._core.status import StatusPage
from fastjob._core.wire import pair
from fastjob.errors import NurseryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _weakref import ref
    from collections.abc import Iterable

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


#: Seconds that workers have to end by themselves when the caller is gone.
FAREWELL = 0.15


def start_method() -> str:
    """How workers are started here: "nursery" or "spawn".

    Raises
    ------
    ValueError
        If ``FASTJOB_START_METHOD`` is set to anything else, or to what Windows lacks.
    """
    asked = os.environ.get("FASTJOB_START_METHOD") or None
    if asked not in (None, "nursery", "spawn"):
        raise ValueError(
            f"FASTJOB_START_METHOD is {asked!r}; it can be 'nursery' or 'spawn'"
        )
    if asked == "nursery" and sys.platform == "win32":
        raise ValueError(
            "FASTJOB_START_METHOD is 'nursery', which forks; Windows has 'spawn' only"
        )
    return asked or ("nursery" if sys.platform == "linux" else "spawn")


def end(pid: int) -> None:
    """Kill a worker's process group, and the worker if it has none yet; on POSIX."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            continue


def why_none() -> str | None:
    """Why there can be no worker processes here; None if there can.

    Cheap, and with nothing started: that a program does not exist is found last, when
    all that starting one needs has been allowed.
    """
    if not sys.executable:
        return "this Python is embedded in another program"
    if sys.platform != "win32" and not hasattr(os, "posix_spawn"):
        return "this system starts no programs"
    try:
        pair()
    except OSError as error:
        return f"no sockets: {error.strerror}"
    if sys.platform == "win32":
        return None
    try:
        pid = os.posix_spawn("", ["no program"], {})
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"no process can be started: {error.strerror}"
    # Under an emulator the child itself finds out, and ends.
    os.waitpid(pid, 0)
    return None


class Starter:
    """Starts workers: not started itself, running, or gone.

    Whoever makes one can keep it before it is started, so that an interrupt at any
    moment leaves nothing behind that nobody knows of.

    Attributes
    ----------
    page : StatusPage
        Shared with the workers.
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

    def start(self) -> None:
        """Make it ready: requests can be made at once."""
        raise NotImplementedError

    def preload(self, modules: Iterable[str]) -> None:
        """Have modules imported by, or before, each worker that starts from now on."""
        raise NotImplementedError

    def fork(self, slot: int, fd: int) -> None:
        """Have a worker started that serves the socket `fd`."""
        raise NotImplementedError

    def kill(self, slot: int) -> None:
        """Have a worker killed, unless it has ended already."""
        raise NotImplementedError

    def close(self) -> None:
        """Have all workers end."""
        raise NotImplementedError

    def forget(self) -> None:
        """In a forked child: let go of it without a word to anybody."""
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:
        """See it and its workers gone; False if they are not within `seconds`."""
        raise NotImplementedError

    def alive(self) -> bool:
        """Whether it can be asked for workers."""
        raise NotImplementedError

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
