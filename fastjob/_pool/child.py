"""A worker process, from the fork to its end."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # it alone needs no enum
import os
import sys

from fastjob._core.forks import register_at_fork
from fastjob._core.inheriting import settle_forks
from fastjob._core.status import StatusPage, die_with_parent
from fastjob._core.wire import Channel
from fastjob._core.worker import Worker
from fastjob._pool import lines
from fastjob._pool.state import Adopted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Modules that could not be preloaded, and why.
failed_preloads: dict[str, BaseException] = {}


def use_site() -> None:
    """Find modules through the hooks that ``site`` installs, and nowhere else."""
    import site

    path = sys.path[:]
    site.main()
    sys.path[:] = path


def take_over(first: int) -> int:
    """At the start of an interpreter: let go of everything of the caller.

    Parameters
    ----------
    first : int
        Descriptors from this one on are closed: C code of the caller may have left
        them open for any child to inherit.

    Returns
    -------
    int
        Descriptor of what was standard input, which is empty from now on.
    """
    limit = os.sysconf("SC_OPEN_MAX")
    try:
        limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    except OSError:
        limit = min(limit, 65536)  # no such list on this system
    os.closerange(first, limit)
    given = os.dup(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    return given


def preload(names: Iterable[str]) -> None:
    """Import modules.

    What cannot be imported is left to the task that needs it, or to the call that asked
    for it, which gets the error.
    """
    for name in names:
        failed_preloads.pop(name, None)
        try:
            __import__(name)
        except BaseException as error:
            failed_preloads[name] = error


def main(parent: int, fd: int, page: StatusPage, slot: int) -> int:
    """Serve the caller at the other end of `fd`, as a fork of the nursery.

    Returns
    -------
    int
        The exit code.
    """
    os.setpgid(0, 0)
    if not die_with_parent(parent):
        return 1
    serve(fd, page, slot)
    return 0


def serve(fd: int, page: StatusPage, slot: int, caller: int = 0) -> None:
    """Serve the caller at the other end of `fd` until it closes it.

    Parameters
    ----------
    fd : int
    page : StatusPage
    slot : int
    caller : int
        A handle of the caller's process, on Windows.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reseed()
    lines.install(page.fd)
    channel = Channel(fd)
    channel.reach(caller)
    # A process forked by a task must not keep the caller's socket.
    register_at_fork(after_in_child=channel.close)
    adopted = Adopted(failed_preloads)
    Worker(channel, page, slot, adopted).serve()
    adopted.notes.keep()  # from here on nobody listens
    run_exit_functions()
    settle_forks()  # or what their children had would stay for ever


def reseed() -> None:
    """Give this worker random numbers of its own.

    `random` reseeds itself after a fork, numpy does not.
    """
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def flush_streams() -> None:
    """Write what the tasks have printed."""
    lines.flush_all()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            continue  # the other end is gone, or a task has closed it


def run_exit_functions() -> None:
    """Run what tasks have registered with `atexit`, as the end of Python would."""
    import atexit

    atexit._run_exitfuncs()
