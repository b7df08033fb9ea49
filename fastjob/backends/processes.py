"""The default backend: worker processes, forked in milliseconds and kept warm.

A first call has two interpreters to wait for: the nursery, and this one's own engine,
which is imported by then and not before.  They get ready at the same time.
"""

from __future__ import annotations

from fastjob._pool.pool import pool
from fastjob._pool.starter import why_none
from fastjob.backends.base import ParallelBackendBase, count_workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from fastjob._core.call import Call
    from fastjob.backends.process_engine import ProcessEngine

__all__ = ["LokyBackend", "ProcessBackend"]

_engine: type[ProcessEngine] | None = None


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
        global _engine
        if _engine is None:
            pool.prepare()
            from fastjob.backends.process_engine import ProcessEngine

            _engine = ProcessEngine
        return _engine(call)


LokyBackend = ProcessBackend
