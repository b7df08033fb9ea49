"""Rows whose size is a parameter: points of the curves that ``limits`` draws."""

from __future__ import annotations

import random

from benchmarks import floors, tasks
from benchmarks.row import Row
from benchmarks.rows import arrays


def durations(size):
    """Return task lengths in seconds.

    Parameters
    ----------
    size : dict
        ``count``; ``seconds``, the mean length; ``shape``: ``constant``,
        ``heavy tail`` (Pareto of index 1.5, cut at 100 times the mean) or ``change``
        (instant tasks, and from half-way on tasks of that length).
    """
    count, seconds, shape = size["count"], size["seconds"], size["shape"]
    if shape == "constant":
        return [seconds] * count
    if shape == "change":
        return [0.0] * (count - count // 2) + [seconds] * (count // 2)
    if shape == "heavy tail":
        source = random.Random(0)
        # The mean of a Pareto variable of index a is a / (a - 1): 3 for 1.5.
        return [
            min(seconds * source.paretovariate(1.5) / 3.0, 100.0 * seconds)
            for _ in range(count)
        ]
    raise ValueError(f"unknown shape {shape!r}")


def _timed(size):
    return durations(size), size["batch_size"]


def _run_timed(session, data):
    items, batch_size = data
    # The result is the task's own length, which is the same on every side.
    return session.run(tasks.spin_or_return, items, batch_size=batch_size)


def _tiny(session, items):
    return session.run(tasks.tiny, items)


def _naps(session, items):
    return session.run(tasks.nap, items)


def _plain_loop(items, n_jobs):
    return floors.loop(tasks.tiny, items)


def _array_in(session, items):
    from benchmarks import array_tasks

    return session.run(array_tasks.ends, items)


def _array_out(session, jobs):
    from benchmarks import array_tasks

    return session.run(array_tasks.filled, jobs)


def _tiny_row(kind, n_jobs):
    return Row(
        f"curve-tasks-{kind}",
        f"tiny tasks, {kind}",
        kind,
        range,
        _tiny,
        0,
        0,
        n_jobs=n_jobs,
        limit=_plain_loop,
        limit_title="plain loop",
    )


ROWS = (
    _tiny_row("processes", 2),
    _tiny_row("threads", 2),
    _tiny_row("sequential", 1),
    Row(
        "curve-workers",
        "100 sleeps of 5 ms a worker",
        "processes",
        lambda count: [0.005] * count,
        _naps,
        0,
        0,
        ideal=lambda items, n_jobs: sum(items) / n_jobs,
    ),
    Row(
        "curve-calls",
        "a warm call of one task a worker",
        "processes",
        range,
        _tiny,
        0,
        0,
        calls=20,
        limit=floors.round_trip,
        limit_title="socket round trips",
    ),
    Row(
        "curve-array-in",
        "one array into 2 tasks",
        "processes",
        lambda size: [arrays.floats(size)] * 2,
        _array_in,
        0,
        0,
        calls=3,
        limit=lambda items, n_jobs: arrays.warm_copy(items[:1]),
        limit_title="one warm copy",
    ),
    Row(
        "curve-array-out",
        "2 results",
        "processes",
        lambda size: [(size // arrays.FLOAT, 1.0)] * 2,
        _array_out,
        0,
        0,
        calls=3,
        limit=arrays.copy_of_results,
        limit_title="one warm copy of each",
    ),
    Row(
        "curve-batches",
        "batch sizes",
        "processes",
        _timed,
        _run_timed,
        0,
        0,
        needs=frozenset({"batch_size"}),
        ideal=lambda data, n_jobs: sum(data[0]) / n_jobs,
    ),
)
