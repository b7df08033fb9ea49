"""Large arrays into tasks and back, beside a warm copy of the same bytes."""

from __future__ import annotations

import functools

from benchmarks import floors
from benchmarks.row import Row

MB = 1_000_000
FLOAT = 8


def _array(megabytes, value):
    import numpy as np

    return np.full(megabytes * MB // FLOAT, value, dtype=np.float64)


def _one_array(megabytes):
    return [_array(megabytes, 1.0)] * 10


def _one_array_in(session, items):
    from benchmarks import array_tasks

    return session.run(array_tasks.ends, items)


def _fresh_arrays_in(session, megabytes):
    from benchmarks import array_tasks

    return session.run(
        array_tasks.ends, (_array(megabytes, float(i)) for i in range(10))
    )


def _fresh_limit(megabytes):
    _warm_copy([_source(megabytes * MB // FLOAT)] * 10)


def _jobs(count, bytes_each):
    return [(bytes_each // FLOAT, float(i)) for i in range(count)]


def _results(session, jobs):
    from benchmarks import array_tasks

    return session.run(array_tasks.filled, jobs)


def _results_limit(jobs, n_jobs):
    _warm_copy([_source(jobs[0][0])] * len(jobs))


@functools.cache
def _source(length):
    import numpy as np

    return np.full(length, 1.0)


def _both_ways_arrays(count):
    import numpy as np

    return [np.full(100_000, float(i), dtype=np.float64) for i in range(count)]


def _both_ways(session, arrays):
    from benchmarks import array_tasks

    return session.run(array_tasks.same, arrays)


def _frame(megabytes):
    import numpy as np
    import pandas as pd

    columns = 10
    rows = megabytes * MB // FLOAT // columns
    values = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns)
    return [pd.DataFrame(values, columns=[f"c{i}" for i in range(columns)])] * 20


def _frame_in(session, frames):
    from benchmarks import array_tasks

    return session.run(array_tasks.corner, frames)


_warm_copy = floors.WarmCopy()

ROWS = (
    Row(
        "array-shared",
        "one 100 MB array into 10 tasks",
        "processes",
        _one_array,
        _one_array_in,
        100,
        20,
        target=1.5,
        limit=lambda items, n_jobs: _warm_copy(items[:1]),
        limit_title="one warm copy",
    ),
    Row(
        "arrays-in",
        "10 fresh 10 MB arrays made by the generator",
        "processes",
        int,
        _fresh_arrays_in,
        10,
        4,
        target=3.5,
        limit=lambda megabytes, n_jobs: _fresh_limit(megabytes),
        limit_title="one warm copy of each",
    ),
    Row(
        "results-large",
        "8 results of 80 MB",
        "processes",
        lambda size: _jobs(8, size),
        _results,
        80 * MB,
        8 * MB,
        target=15,
        limit=_results_limit,
        limit_title="one warm copy of each",
    ),
    Row(
        "results-many",
        "500 results of 0.8 MB",
        "processes",
        lambda size: _jobs(size, 800_000),
        _results,
        500,
        100,
        target=10,
        limit=_results_limit,
        limit_title="one warm copy of each",
    ),
    Row(
        "arrays-both-ways",
        "500 x 0.8 MB in and the same array out",
        "processes",
        _both_ways_arrays,
        _both_ways,
        500,
        100,
        target=8,
        limit=lambda arrays, n_jobs: _warm_copy(arrays),
        limit_title="one warm copy of each",
    ),
    Row(
        "frame-shared",
        "a 200 MB pandas frame into 20 tasks",
        "processes",
        _frame,
        _frame_in,
        200,
        20,
        requires="pandas",
        target=2,
        limit=lambda frames, n_jobs: _warm_copy([frames[0].to_numpy()]),
        limit_title="one warm copy",
    ),
)
