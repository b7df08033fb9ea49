"""What a worker of ``multiprocessing`` has from its caller besides its tasks.

The caller's folder, search path, warning filters, log levels and context variables, as
of the call, come with each batch, since nothing else reaches one worker of a pool.
The warnings and log records of the tasks return with the results of the batch, and are
then given to the filters and handlers of the caller: see `_pool.notes`.

What tasks print appears in whole lines, and at the latest at the end of their batch.

A worker that was forked has the caller's handlers as well.  Those are passed over, or a
record would be handled in two processes; a handler that an initializer or a task has
added takes its records itself.

Ctrl-C at a terminal reaches all processes; the caller alone acts on it, and ends its
workers.  They have a handler that does nothing, instead of the caller's, or of one that
prints a traceback; until they have it, the signal is blocked (`interrupts_blocked`).
Not so in a worker of ``forkserver``, which begins with the mask of the server: that
serves others, too.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import contextmanager

from fastjob._core.pickling import dumps, loads
from fastjob._pool import lines, state
from fastjob._pool.levels import LevelKeeper, capture_levels
from fastjob._pool.notes import Notes
from fastjob.variables import Variables, capture_variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from fastjob._core.call import Call

    T = TypeVar("T")


def capture(call: Call) -> bytes:
    """Pickle the state that the workers of a call must adopt."""
    return dumps(
        {
            "cwd": state.working_directory(),
            "path": sys.path,
            "filters": state.plain_filters(),
            "levels": capture_levels(),
            "variables": capture_variables(),
            "forward": call.forward_logs,
        }
    )


class Follower:
    """In a worker: keeps to the state of the caller, and gathers what tasks say."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.notes.by_default = _handlers()
        self.levels = LevelKeeper()
        self.variables = Variables()
        #: What the initializer has raised. It is the error of each batch: were it that
        #: of the worker, the pool would start one after the other.
        self.broken: Exception | None = None

    def run(self, data: bytes, batch: Callable[[], T]) -> tuple[T, list[bytes]]:
        """Run a batch in the caller's state; what it returns, and what it has said."""
        if self.broken is not None:
            raise self.broken
        said: list[bytes] = []
        notes = self.notes
        self._adopt(loads(data))
        notes.send = said.append
        notes.open = True
        try:
            return batch(), said
        finally:
            with notes.lock:
                notes.send_waiting(last=True)
            lines.flush_all()

    def _adopt(self, found: dict[str, Any]) -> None:
        cwd = found["cwd"]
        if cwd is not None and cwd != state.working_directory():
            os.chdir(cwd)
        sys.path[:] = found["path"]
        state.set_filters(found["filters"])
        # What is shown once is shown once a batch.
        warnings._filters_mutated()  # type: ignore[attr-defined]
        self.levels.adopt(found["levels"])
        self.variables.set(found["variables"])
        if found["levels"] is not None:
            self.notes.patch_logging()
        if found["forward"]:
            self.notes.forward()
        else:
            self.notes.keep()


def _handlers() -> list[logging.Handler]:
    """Return the handlers that this process has of its caller."""
    if "logging" not in sys.modules:
        return []
    import logging

    found = logging.root.handlers[:]
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):  # not a placeholder
            found += logger.handlers
    return found


@contextmanager
def interrupts_blocked(context: Any) -> Iterator[None]:
    """Block SIGINT in this thread and what it starts: the threads of a pool, workers.

    Parameters
    ----------
    context : multiprocessing context
        Of the pool.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # These serve the whole program, so their start must not fall in here; besides, that
    # of the tracker would unblock the signal.
    if context.get_start_method() == "spawn":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
    elif context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts() -> None:
    # Of an event loop in the caller, if it was forked with one.
    signal.set_wakeup_fd(-1)
    # By a handler: programs that a task starts would inherit SIG_IGN.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


_follower: Follower | None = None


def start(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """Begin the life of a worker: the initializer of its pool."""
    global _follower
    _ignore_interrupts()
    _follower = Follower()
    # The workers of a pool have no file in common on which to wait for each other: the
    # system keeps lines apart that fit into a pipe at once.
    lines.install(-1)
    if initializer is not None:
        try:
            initializer(*initargs)
        except Exception as error:
            _follower.broken = error


def run(data: bytes, batch: Callable[[], T]) -> tuple[T, list[bytes]]:
    """Run a batch in this worker, as of `Follower.run`."""
    assert _follower is not None, "the pool has called its initializer"
    return _follower.run(data, batch)
