"""A worker process, from the fork to its end."""

from __future__ import annotations

import os
import signal
import sys

from fastjob._core.status import StatusPage, die_with_parent
from fastjob._core.wire import Channel
from fastjob._core.worker import Worker
from fastjob._pool import lines
from fastjob._pool.state import Adopted

#: Modules that the nursery could not preload, and why.
failed_preloads: dict[str, BaseException] = {}


def main(parent: int, fd: int, page: StatusPage, slot: int) -> int:
    """Serve the caller at the other end of `fd`; the exit code."""
    os.setpgid(0, 0)
    if not die_with_parent(parent):
        return 1
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reseed()
    lines.install(page.fd)
    channel = Channel(fd)
    # A process forked by a task must not keep the caller's socket.
    os.register_at_fork(after_in_child=channel.close)
    Worker(channel, page, slot, Adopted(failed_preloads)).serve()
    run_exit_functions()
    return 0


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
