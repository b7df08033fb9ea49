"""Large arrays into tasks and back, beside a warm copy of the same bytes."""

from __future__ import annotations

import functools

from benchmarks import floors
from benchmarks.row import Row

MB = 1_000_000
FLOAT = 8


def floats(size, value=1.0):
    """Return a float64 array of `size` bytes."""
    import numpy as np

    return np.full(size // FLOAT, value, dtype=np.float64)


def _one_array(size):
    return [floats(size)] * 10


def _one_array_in(session, items):
    from benchmarks import array_tasks

    return session.run(array_tasks.ends, items)


def _fresh_arrays_in(session, size):
    from benchmarks import array_tasks

    return session.run(array_tasks.ends, (floats(size, float(i)) for i in range(10)))


def _copy_of_fresh(size, n_jobs):
    warm_copy([_source(size)] * 10)


def _jobs(count, bytes_each):
    return [(bytes_each // FLOAT, float(i)) for i in range(count)]


def _results(session, jobs):
    from benchmarks import array_tasks

    return session.run(array_tasks.filled, jobs)


def copy_of_results(jobs, n_jobs):
    """Copy as many bytes as the results of `jobs` have."""
    warm_copy([_source(jobs[0][0] * FLOAT)] * len(jobs))


_source = functools.cache(floats)


def _both_ways_arrays(count):
    return [floats(800_000, float(i)) for i in range(count)]


def _both_ways(session, arrays):
    from benchmarks import array_tasks

    return session.run(array_tasks.same, arrays)


def _frame(size):
    import numpy as np
    import pandas as pd

    columns = 10
    rows = size // FLOAT // columns
    values = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns)
    return [pd.DataFrame(values, columns=[f"c{i}" for i in range(columns)])] * 20


def _frame_in(session, frames):
    from benchmarks import array_tasks

    return session.run(array_tasks.corner, frames)


warm_copy = floors.WarmCopy()

ROWS = (
    Row(
        "array-shared",
        "one 100 MB array into 10 tasks",
        "processes",
        _one_array,
        _one_array_in,
        100 * MB,
        20 * MB,
        target=1.5,
        limit=lambda items, n_jobs: warm_copy(items[:1]),
        limit_title="one warm copy",
    ),
    Row(
        "arrays-in",
        "10 fresh 10 MB arrays made by the generator",
        "processes",
        int,
        _fresh_arrays_in,
        10 * MB,
        4 * MB,
        target=3.5,
        limit=_copy_of_fresh,
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
        limit=copy_of_results,
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
        limit=copy_of_results,
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
        limit=lambda arrays, n_jobs: warm_copy(arrays),
        limit_title="one warm copy of each",
    ),
    Row(
        "frame-shared",
        "a 200 MB pandas frame into 20 tasks",
        "processes",
        _frame,
        _frame_in,
        200 * MB,
        20 * MB,
        requires="pandas",
        target=2,
        limit=lambda frames, n_jobs: warm_copy([frames[0].to_numpy()]),
        limit_title="one warm copy",
    ),
)
