"""The tasks of a batch, as one callable that can be pickled.

The tasks of a batch never raise to the backend: a batch returns what its tasks returned
and what they raised.  So all backends treat failures alike, one failed task does not
cost the results of its neighbours, and the error names its task.
"""

from __future__ import annotations

from _thread import get_native_id
from copy import copy
from os import getpid
from time import perf_counter, perf_counter_ns

from fastjob import config, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from fastjob._core.autobatch import AutoBatch
    from fastjob._core.call import Call

    Failure = tuple[int, Any, str, float]
    Outcome = tuple[list[Any], list[Failure], tuple[int, int, int]]


def size_within(tuner: AutoBatch, longest_ns: float) -> int:
    """Return the tuner's size of a batch, or less if that would last too long.

    Parameters
    ----------
    tuner : AutoBatch
    longest_ns : float
        Nanoseconds, as the tuner was told them.
    """
    size: int = tuner.size
    if tuner.fixed or tuner.task_ns <= 0:
        return size
    return max(1, min(size, int(longest_ns / tuner.task_ns)))


class BatchedCalls:
    """The tasks of a batch as one callable without arguments; can be pickled.

    Parameters
    ----------
    iterator_slice : iterable of tuple
        The tasks: ``(function, args, kwargs)``.
    backend_and_jobs : tuple or dict, optional
        What nested calls start from: a backend and its n_jobs, or a configuration
        made by `config.nested`.
    reducer_callback, pickle_cache
        Accepted for the sake of code written for joblib.
    """

    def __init__(
        self,
        iterator_slice: Iterable[Any],
        backend_and_jobs: Any = None,
        reducer_callback: Any = None,
        pickle_cache: Any = None,
    ) -> None:
        self.items = list(iterator_slice)
        if isinstance(backend_and_jobs, tuple):
            backend, n_jobs = backend_and_jobs
            backend_and_jobs = {"backend": backend, "n_jobs": n_jobs}
        self.nested = backend_and_jobs

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self) -> Any:
        """Run the tasks and return their results."""
        if self.nested is None:
            return self.run()
        token = config.restore(self.nested)
        try:
            return self.run()
        finally:
            config.reset(token)

    def run(self) -> Any:
        return [function(*args, **kwargs) for function, args, kwargs in self.items]


class GuardedCalls(BatchedCalls):
    """A batch that returns the failures of its tasks beside their results.

    Parameters
    ----------
    first : int
        Index of the first task.
    tasks : iterable of tuple
        The tasks.
    call : Call
        What the batch belongs to.
    packed : bool
        Whether exceptions must be packed to reach the caller.
    """

    def __init__(
        self, first: int, tasks: Iterable[Any], call: Call, packed: bool
    ) -> None:
        super().__init__(tasks, call.nested)
        self.first = first
        self.go_on = call.return_errors or call.retries > 0
        self.show_values = call.show_values
        self.packed = packed

    def run(self) -> Outcome:
        """Run the tasks, up to the first failure if that ends the call.

        Returns
        -------
        results : list
            One for each task that was run; None for one that failed.
        failures : list of tuple
            Offset in the batch, exception (packed or not), traceback, seconds.
        span : tuple of int
            Process or thread id, begin and end as of ``time.perf_counter_ns``.
        """
        begin_ns = perf_counter_ns()
        results: list[Any] = []
        failures: list[Failure] = []
        for offset, item in enumerate(self.items):
            begin = perf_counter()
            task: Any = self.load, (item,), {}
            try:
                task = self.load(item)
                function, args, kwargs = task
                results.append(self.dump(function(*args, **kwargs), offset, task))
            except BaseException as error:
                elapsed = perf_counter() - begin
                failed = (error, self.first + offset, *task, self.show_values)
                sent: Any = error
                if self.packed:
                    text = failure.describe(*failed)
                    sent = failure.pack(error, text)
                else:
                    text = failure.attach(*failed)
                failures.append((offset, sent, text, elapsed))
                results.append(None)
                if not self.go_on:
                    break
        lane = getpid() if self.packed else get_native_id()
        return results, failures, (lane, begin_ns, perf_counter_ns())

    def only(self, offset: int) -> GuardedCalls:
        """Return a batch of one task of this one, as it was captured."""
        one = copy(self)
        one.first += offset
        one.items = [self.items[offset]]
        return one

    def load(self, item: Any) -> Any:
        """Return a task; the counterpart of how `__init__` stores it."""
        return item

    def dump(self, result: Any, offset: int, task: Any) -> Any:
        """Return a result as it is sent to the caller."""
        return result

    @staticmethod
    def read(outcome: Any) -> Outcome:
        """Return what `run` returned, in the caller."""
        return outcome  # type: ignore[no-any-return]
