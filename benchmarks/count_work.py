"""What ``counts`` counts: small fixed programs, each run in a new interpreter.

Each program warms the pool, then does a number of units of work between two marks
that are visible in a trace of system calls.  The number of tasks a batch is fixed:
what the autotuner chooses depends on the machine, and counts must not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import tasks

#: Files that do not exist; asking for them marks the begin and the end in a trace.
MARKS = ("/count-begin", "/count-end")


class Counted:
    """An argument that counts how often it is pickled and unpickled.

    The counts are of the class, so that those of workers can be read there.
    """

    pickles = 0
    unpickles = 0

    def __reduce__(self) -> tuple[Callable[[], Counted], tuple[()]]:
        Counted.pickles += 1
        return rebuild, ()

    def __call__(self, number: int) -> int:
        return number


def rebuild() -> Counted:
    """Count one unpickling and return a new `Counted`."""
    Counted.unpickles += 1
    return Counted()


def unpickles(counted: Counted) -> tuple[int, int]:
    """Return the process id, and how often this process has unpickled a `Counted`."""
    return os.getpid(), Counted.unpickles


class Work:
    """The programs, for one library.

    Parameters
    ----------
    library : str
        A module with ``Parallel`` and ``delayed``.
    """

    def __init__(self, library: str) -> None:
        module = __import__(library)
        self._parallel, self._delayed = module.Parallel, module.delayed
        self._library = library

    def _call(self, function: Any, items: Any, **options: Any) -> list[Any]:
        delayed = self._delayed
        parallel = self._parallel(**{"n_jobs": 2, **options})
        return parallel(delayed(function)(item) for item in items)

    def _warm(self, **options: Any) -> None:
        for _ in range(3):
            self._call(tasks.nap, [0.02] * 4, batch_size=1, **options)

    def _copies(self) -> int:
        """Return how many buffers the caller has copied; of another library, 0."""
        if self._library != "fastjob":
            return 0
        from fastjob._pool import memory

        return int(memory.store_for(None).copies)

    def calls(self, count: int) -> None:
        """Warm calls of two tasks on processes, one for each worker."""
        self._warm()
        mark(0)
        for _ in range(count):
            self._call(tasks.tiny, range(2), batch_size=1)
        mark(1)

    def batches(self, count: int, **options: Any) -> None:
        """Batches of ten tiny tasks on processes, in one call."""
        self._warm()
        mark(0)
        self._call(tasks.tiny, range(10 * count), batch_size=10, **options)
        mark(1)

    def batches_recorded(self, count: int) -> None:
        """The same, with a recorder of the timeline that writes no file."""
        from fastjob.recorder import Recorder

        self.batches(count, timeline=Recorder("run.json"))

    def tasks(self, count: int, **options: Any) -> None:
        """Tiny tasks on processes in batches of 1000, in one call."""
        self._warm()
        mark(0)
        self._call(tasks.tiny, range(count), batch_size=1000, **options)
        mark(1)

    def tasks_with_progress(self, count: int) -> None:
        """The same, with a function that is told of the progress."""
        self.tasks(count, progress=bool)

    def closures(self, count: int) -> dict[str, float]:
        """Batches of ten tasks of one closure that holds a counted object."""
        held = Counted()

        def closure(number: int) -> int:
            return held(number)

        # The first closure of a worker loads cloudpickle.
        self._call(lambda seconds: tasks.nap(seconds), [0.02] * 4, batch_size=1)
        self._warm()
        Counted.pickles = 0
        mark(0)
        self._call(closure, range(10 * count), batch_size=10)
        mark(1)
        return {"pickles a call": Counted.pickles}

    def shared_object(self, count: int) -> dict[str, float]:
        """Batches of ten tasks that are all given the same object."""
        self._warm()
        held = Counted()
        Counted.pickles = 0
        mark(0)
        found = self._call(unpickles, [held] * (10 * count), batch_size=10)
        mark(1)
        # A worker's own count grows from task to task: its last one is the largest.
        by_worker: dict[int, int] = {}
        for worker, so_far in found:
            by_worker[worker] = max(so_far, by_worker.get(worker, 0))
        return {
            "pickles a call": Counted.pickles,
            "unpickles a call": sum(by_worker.values()),
        }

    def shared_array(self, count: int) -> dict[str, float]:
        """Tasks that are all given the same 8 MB array."""
        import numpy as np

        from benchmarks import array_tasks

        array = np.ones(1_000_000)
        self._warm()
        mark(0)
        self._call(array_tasks.ends, [array] * count, batch_size=1)
        mark(1)
        return {"copies a call": self._copies()}

    def fresh_arrays(self, count: int) -> dict[str, float]:
        """Tasks that are each given an 8 MB array of their own."""
        import numpy as np

        from benchmarks import array_tasks

        self._warm()
        mark(0)
        self._call(
            array_tasks.ends, (np.ones(1_000_000) for _ in range(count)), batch_size=1
        )
        mark(1)
        return {"copies a call": self._copies()}

    def array_results(self, count: int) -> dict[str, float]:
        """Tasks that each return an 8 MB array, which the caller lets go."""
        from benchmarks import array_tasks

        self._warm()
        self._call(array_tasks.filled, [(1_000_000, 1.0)] * 4, batch_size=1)
        mark(0)
        stream = self._parallel(n_jobs=2, batch_size=1, return_as="generator")(
            self._delayed(array_tasks.filled)((1_000_000, 1.0)) for _ in range(count)
        )
        for _ in stream:
            pass
        mark(1)
        return {"copies a call": self._copies()}

    def thread_calls(self, count: int) -> None:
        """Warm calls of two tasks on threads."""
        self._warm(backend="threading")
        mark(0)
        for _ in range(count):
            self._call(tasks.tiny, range(2), backend="threading")
        mark(1)

    def thread_tasks(self, count: int, **options: Any) -> None:
        """Tiny tasks on threads, in one call."""
        self._warm(backend="threading")
        mark(0)
        self._call(tasks.tiny, range(count), backend="threading", **options)
        mark(1)

    def sequential_tasks(self, count: int, **options: Any) -> None:
        """Tiny tasks with ``n_jobs=1``, in one call."""
        self._call(tasks.tiny, range(2), n_jobs=1)
        mark(0)
        self._call(tasks.tiny, range(count), n_jobs=1, **options)
        mark(1)

    def sequential_tasks_with_progress(self, count: int) -> None:
        """The same, with a function that is told of the progress."""
        self.sequential_tasks(count, progress=bool)

    def pools(self, count: int) -> None:
        """Looks for native thread pools while no library is loaded."""
        from fastjob._core.pools import loaded_pools

        loaded_pools()
        mark(0)
        for _ in range(count):
            loaded_pools()
        mark(1)

    def first_call(self, count: int) -> dict[str, float]:
        """The first call of a new interpreter, from nothing."""
        mark(0)
        for _ in range(count):
            self._call(tasks.tiny, range(2))
        mark(1)
        return {}


def imports(library: str) -> dict[str, float]:
    """Count the modules that importing what a call needs loads."""
    before = set(sys.modules)
    module = __import__(library)
    assert module.Parallel and module.delayed
    return {"modules": len(set(sys.modules) - before)}


def mark(which: int) -> None:
    """Leave a mark in a trace of system calls."""
    os.path.exists(MARKS[which])


def main() -> None:
    """Run one program: library, name and count are in ``argv``."""
    library, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if name == "imports":
        found = imports(library) if count else {}
    else:
        found = getattr(Work(library), name)(count)
    print(json.dumps(found or {}), flush=True)
