"""The default backend: worker processes, forked in milliseconds and kept warm."""

from __future__ import annotations

from sys import modules

from fastjob._core.arrays import Sharer
from fastjob._core.capture import Capture
from fastjob._core.dispatch import Dispatcher
from fastjob._pool import state
from fastjob._pool.memory import store_for, tidy
from fastjob._pool.pool import pool
from fastjob._pool.pump import Pump
from fastjob._pool.starter import why_none
from fastjob.backends.base import ParallelBackendBase, count_workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, ClassVar

    from fastjob._core.call import Call
    from fastjob._core.results import ResultStream
    from fastjob._core.wake import Wake

__all__ = ["LokyBackend", "ProcessBackend"]


class ProcessEngine:
    """Runs one call over worker processes."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def _dispatcher(self) -> Dispatcher:
        call = self.call
        sharer = Sharer(store_for(call.temp_folder), call.max_nbytes)
        sharing = modules.get("fastjob.sharing")
        explicit, live = (None, None) if sharing is None else sharing.current()
        capture = Capture(sharer, explicit)
        return Dispatcher(call, pool, capture, state.capture(call), live)

    def run(self, tasks: Iterator[Any]) -> list[Any]:
        """Run all tasks; the results in task order."""
        dispatcher = self._dispatcher()
        try:
            return dispatcher.run(tasks)
        finally:
            tidy()

    def stream(self, tasks: Iterator[Any]) -> Iterator[Any]:
        """Start the tasks; an iterator over the results."""
        return Pump(self.call.ordered).start(self.feeder(tasks))

    def feeder(self, tasks: Iterator[Any]) -> Callable[[ResultStream, Wake], None]:
        """What runs all tasks into a stream, in the state that holds now."""
        dispatcher = self._dispatcher()

        def feed(results: ResultStream, wake: Wake) -> None:
            try:
                dispatcher.run_into(tasks, results, wake)
            finally:
                tidy()

        return feed


class ProcessBackend(ParallelBackendBase):
    """Worker processes, forked by a clean interpreter and kept warm between calls.

    The right choice for tasks that compute in Python. Options, given to `Parallel` or
    `parallel_config`:

    idle_worker_timeout : float, default 300
        Seconds after which a worker without work ends.
    initializer, initargs : callable, tuple
        Run in each worker before its first task.
    preload : iterable of str
        Modules that are imported before the workers are forked, and so shared.
    max_tasks_per_worker : int
        A worker is replaced when it has run this many tasks.
    max_memory_per_worker : int
        Resident memory, in bytes, from which a worker is replaced between batches.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    valid_options: ClassVar[frozenset[str] | None] = frozenset(
        {
            "idle_worker_timeout",
            "initargs",
            "initializer",
            "max_memory_per_worker",
            "max_tasks_per_worker",
            "preload",
        }
    )

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why there can be no worker processes here, or None if there can."""
        return why_none()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers a call would use.

        Raises
        ------
        ValueError
            If `n_jobs` is 0.
        """
        return count_workers(n_jobs)

    def open_call(self, call: Call) -> ProcessEngine:
        """Return an engine for one call."""
        return ProcessEngine(call)


LokyBackend = ProcessBackend
