"""The backend that runs the tasks of a call in threads of this process."""

from __future__ import annotations

from fastjob._core.threads import ThreadEngine
from fastjob.backends.base import ParallelBackendBase, count_workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from fastjob._core.call import Call


class ThreadingBackend(ParallelBackendBase):
    """Threads that share the caller's memory; nothing is pickled or copied.

    The right choice for tasks that release the interpreter: input and output, and
    most of what NumPy, SciPy and compiled extensions do.  Threads stay alive between
    calls and end after ``idle_worker_timeout`` seconds without work (300 by default).

    A thread cannot be stopped.  When a call ends early (an error, Ctrl-C, a
    ``timeout``, a generator that is dropped), tasks that are running go on in the
    background until they return, and what they return is dropped.
    """

    uses_threads = True
    supports_sharedmem = True
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    valid_options: ClassVar[frozenset[str] | None] = frozenset({"idle_worker_timeout"})

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many threads a call would use.

        Raises
        ------
        ValueError
            If `n_jobs` is 0.
        """
        return count_workers(n_jobs)

    def open_call(self, call: Call) -> Any:
        """Return an engine for one call."""
        # Imported here because the configuration looks up backends.
        from fastjob.config import restore

        return ThreadEngine(call, restore)
