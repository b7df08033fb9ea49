"""How cost grows: the points that ``limits`` measures beside the rows.

A point is one `rounds.Outcome` of a row of `rows.curves` at one size; a curve is a
list of points with the text that its axis shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import peers, rounds, rows
from benchmarks.side import Side

#: Lengths of tasks, in seconds; 0 is a function that returns at once (0.1 us).
LENGTHS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SHAPES = ("constant", "heavy tail", "change")
FIXED = (1, 10, 100, 1000)

#: Work a point, in seconds, from which the number of tasks follows.
_WORK = 0.6


@dataclass(frozen=True)
class Point:
    """One measured point: where it lies, and what was found."""

    at: float
    outcome: rounds.Outcome


@dataclass(frozen=True)
class Curve:
    """Points of one row.

    Parameters
    ----------
    name, axis : str
        What is drawn, and what it is drawn over.
    per : callable
        ``per(at)``: the number that the times of a point are divided by.
    points : list of Point
        In order.
    """

    name: str
    axis: str
    per: Callable[[float], float]
    points: list[Point]


def scaling(quick: bool) -> Iterator[Curve]:
    """Measure the curves over tasks, workers and sizes of arrays, one after another."""
    counts = [10**k for k in range(2, 5 if quick else 7)]
    for kind in ("processes", "threads", "sequential"):
        yield _curve(f"curve-tasks-{kind}", "tasks", counts, quick, per=float)
    workers = [1, 2, 4, 8] if quick else [1, 2, 4, 8, 16, 32, 64]
    yield _curve(
        "curve-workers", "workers", workers, quick, jobs=int, size=lambda n: 100 * n
    )
    yield _curve("curve-calls", "workers", workers, quick, jobs=int)
    sizes = [10**k for k in range(3, 8 if quick else 10)]
    for name in ("curve-array-in", "curve-array-out"):
        yield _curve(name, "bytes", sizes, quick)


def _one(at: float) -> float:
    return 1.0


def _curve(
    name: str,
    axis: str,
    places: list[int],
    quick: bool,
    *,
    per: Callable[[float], float] = _one,
    jobs: Callable[[int], int] | None = None,
    size: Callable[[int], Any] = int,
) -> Curve:
    row = rows.find(name)
    sides = [side for side in ("limit", "fastjob") if peers.can_run(side, row)]
    points = []
    for place in places:
        outcome = rounds.measure(
            row,
            sides,
            effort(quick),
            size=size(place),
            n_jobs=None if jobs is None else jobs(place),
        )
        points.append(Point(float(place), outcome))
    return Curve(row.title, axis, per, points)


def effort(quick: bool) -> rounds.Effort:
    """Return how long to measure a point."""
    return rounds.Effort(3, 2, 1.0) if quick else rounds.Effort(7, 3, 6.0)


def autotuner(quick: bool) -> Iterator[Curve]:
    """Measure the automatic batch size beside fixed ones, a curve for each shape.

    Sides of a point are ``fastjob`` (automatic) and the fixed sizes by number.
    """
    lengths = LENGTHS[:5] if quick else LENGTHS
    for shape in SHAPES:
        points = [Point(length, _batches(length, shape, quick)) for length in lengths]
        yield Curve(shape, "seconds a task", _one, points)


def _batches(length: float, shape: str, quick: bool) -> rounds.Outcome:
    # Some 0.3 us pass in the worker around a task that does nothing.
    work = _WORK / 4 if quick else _WORK
    count = int(min(max(work / max(length, 3e-7), 8), 20_000 if quick else 100_000))
    size = {"seconds": length, "count": count, "shape": shape}
    sides = [
        "fastjob",
        *(str(fixed) for fixed in FIXED if fixed == 1 or 4 * fixed < count),
    ]
    return rounds.measure(
        rows.find("curve-batches"),
        sides,
        effort(quick),
        size=size,
        opener=functools.partial(_open_batches, "fastjob"),
    )


def _open_batches(peer: str, name: str, row: str, size: Any, n_jobs: int) -> Side:
    batch_size = "auto" if name == rounds.REFERENCE else int(name)
    return Side(peer, row, {**size, "batch_size": batch_size}, n_jobs)


def efficiency(outcome: rounds.Outcome) -> float | None:
    """Return the time of the best fixed size over that of the automatic one."""
    found = [
        ratio.median
        for name in outcome.samples
        if name != rounds.REFERENCE and (ratio := outcome.ratio(name)) is not None
    ]
    return min(found, default=None)
