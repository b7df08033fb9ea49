"""What a `Parallel` tells about its call: counts, messages, progress."""

from __future__ import annotations

import sys
from time import time

from fastjob._core.call import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class BatchCompletionCallBack:
    """Called each time some tasks of a call have completed.

    Replacing this class in ``fastjob.parallel`` by a subclass is a known way to follow
    the progress of calls made in other people's code; one is then made, and called,
    for each completion. Where nobody does so it costs nothing.

    Parameters
    ----------
    dispatch_timestamp : float
        When the call began, in seconds since the epoch.
    batch_size : int
        Number of tasks that have completed since last time.
    parallel : Parallel
        The object whose call it is.
    """

    def __init__(
        self, dispatch_timestamp: float, batch_size: int, parallel: Any
    ) -> None:
        self.dispatch_timestamp = dispatch_timestamp
        self.batch_size = batch_size
        self.parallel = parallel

    def __call__(self, out: object = None) -> None:
        """Be told of the completion."""


class Reporting:
    """The part of `Parallel` that others read, print and override.

    Attributes
    ----------
    verbose : int
        How much to print.
    n_tasks : int or None
        Length of the input of the current or last call, if it has one.
    """

    verbose: int
    progress: Any
    _backend: Any

    n_tasks: int | None = None
    _counters = Counters()
    _start_time = 0.0
    _pre_dispatch_amount = 0
    _reporter: Any = None
    _input_done = _said_finished = _aborting = False
    # None once all of the input has been taken: then the number of tasks is known.
    _original_iterator: object = None

    @property
    def n_dispatched_tasks(self) -> int:
        return self._counters.dispatched_tasks

    @property
    def n_dispatched_batches(self) -> int:
        return self._counters.dispatched_batches

    @property
    def n_completed_tasks(self) -> int:
        return self._counters.completed_tasks

    def _begin_report(self, n_jobs: int, ahead: int) -> None:
        """Begin to follow a call."""
        self._pre_dispatch_amount = ahead
        self._input_done = self._said_finished = self._aborting = False
        self._original_iterator = self if ahead else None
        if n_jobs > 1:
            self._print(
                f"Using backend {type(self._backend).__name__} with {n_jobs} "
                "concurrent workers."
            )
        if self.progress:
            from fastjob import progress

            self._reporter = progress.start(
                self.progress, self._counters, self.n_tasks, repr(self)
            )

    def _watch(self, tasks: Iterator[Any]) -> Iterator[Any]:
        """Pass on the input, and notice its end."""
        # Not `yield from`, which would close the caller's generator with this one.
        for task in tasks:  # noqa: UP028
            yield task
        self._input_done = True

    def _end_report(self, failed: bool) -> None:
        """Follow the call no more."""
        self._aborting = failed
        self._original_iterator = None
        if not (failed or self._said_finished):
            self.print_progress()
        reporter, self._reporter = self._reporter, None
        if reporter is not None:
            reporter.close()

    def print_progress(self) -> None:
        """Report the progress of the call; called on each completion.

        A subclass may override it. It may read `n_tasks`, `n_dispatched_tasks`,
        `n_dispatched_batches` and `n_completed_tasks`.
        """
        verbose = self.verbose
        if not verbose:
            return
        from fastjob import verbosity

        completed = self.n_completed_tasks
        dispatched = self.n_dispatched_tasks
        elapsed = time() - self._start_time
        message: str | None
        if self._original_iterator is not None:
            if verbosity.is_quiet(self.n_dispatched_batches, verbose):
                return
            message = verbosity.consuming(completed, self.n_tasks, elapsed)
        elif completed == dispatched and not self._aborting:
            self._said_finished = True
            message = verbosity.finished(completed, self.n_tasks, elapsed)
        else:
            message = verbosity.draining(
                completed,
                dispatched,
                self.n_tasks,
                elapsed,
                verbose,
                self._pre_dispatch_amount,
            )
        if message is not None:
            self._print(message)

    def _print(self, message: str) -> None:
        """Write a line to stderr, or to stdout where `verbose` is 50 or more."""
        if not self.verbose:
            return
        out = sys.stderr if self.verbose < 50 else sys.stdout
        out.write(f"[{self}]: {message}\n")
