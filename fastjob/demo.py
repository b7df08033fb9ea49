"""The demo: two resampling studies of Fisher's iris, in parallel.

Both questions are asked of real measurements, and both are answered by doing a
small computation some thousands of times, which is what `Parallel` is for:

- Do versicolor and virginica differ in the width of their sepals?  A permutation
  test shuffles the labels of the two species and asks how often chance alone makes
  a difference of the means as large as the one measured.
- How often would Fisher's linear discriminant confuse the two, given all four
  measurements?  The 100 plants that made the rule judge it too kindly; so a bootstrap
  makes it from plants drawn with replacement, and tries it on those not drawn.

Each task is one resample and makes its own random generator from ``(seed, number of
the task)``; so the results do not depend on where or in which order tasks run, and
the parallel results must equal those of a plain loop to the last bit.

References
----------
R. A. Fisher, "The use of multiple measurements in taxonomic problems", Annals of
Eugenics 7 (1936) 179-188.  B. Efron, R. Tibshirani, "An Introduction to the
Bootstrap" (1993), chapters 15 and 17.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastjob import Parallel, cpu_count, delayed

Vector = NDArray[np.float64]


def load_iris() -> dict[str, NDArray[np.float64]]:
    """Fisher's iris measurements.

    Returns
    -------
    dict of str to ndarray of shape (50, 4)
        For each species its 50 plants, one a row: length and width of the sepal,
        length and width of the petal, in centimetres.

    Examples
    --------
    >>> {species: rows.shape for species, rows in load_iris().items()}
    {'setosa': (50, 4), 'versicolor': (50, 4), 'virginica': (50, 4)}
    """
    text = (files("fastjob") / "data" / "iris.csv").read_text(encoding="utf-8")
    plants: dict[str, list[list[float]]] = {}
    for *numbers, species in list(csv.reader(text.splitlines()))[1:]:
        plants.setdefault(species, []).append([float(number) for number in numbers])
    return {species: np.array(rows) for species, rows in plants.items()}


class Resample(NamedTuple):
    """What one task returns: its statistic, and the process that computed it."""

    value: float
    worker: int


def permuted_difference(pooled: Vector, n_first: int, seed: int, task: int) -> Resample:
    """Difference of two means after one random exchange of the labels.

    Parameters
    ----------
    pooled : ndarray of shape (n,)
        The measurements of both groups.
    n_first : int
        Size of the first group.
    seed, task : int
        The random generator is made from this pair.

    Returns
    -------
    Resample
        Mean of the first `n_first` shuffled values less the mean of the others.
    """
    shuffled = np.random.default_rng((seed, task)).permutation(pooled)
    difference = shuffled[:n_first].mean() - shuffled[n_first:].mean()
    return Resample(float(difference), os.getpid())


def discriminant(first: Vector, second: Vector) -> tuple[Vector, float]:
    """Fisher's linear discriminant between two groups.

    Parameters
    ----------
    first, second : ndarray of shape (n, d)
        The measurements of each group, one plant a row.

    Returns
    -------
    direction : ndarray of shape (d,)
        The combination of the measurements that separates the groups best.
    threshold : float
        A plant ``x`` with ``x @ direction > threshold`` is of the first group.
    """
    means = first.mean(axis=0), second.mean(axis=0)
    a, b = first - means[0], second - means[1]
    direction = np.linalg.solve(a.T @ a + b.T @ b, means[0] - means[1])
    return direction, float((means[0] + means[1]) @ direction / 2)


def error_rate(rule: tuple[Vector, float], first: Vector, second: Vector) -> float:
    """Share of the plants that a discriminant puts into the wrong group.

    Parameters
    ----------
    rule : tuple
        What `discriminant` returned.
    first, second : ndarray of shape (n, d)
        The measurements of each group, one plant a row.

    Returns
    -------
    float
        Between 0 and 1.
    """
    direction, threshold = rule
    wrong = np.sum(first @ direction <= threshold) + np.sum(
        second @ direction > threshold
    )
    return float(wrong) / (len(first) + len(second))


def bootstrap_error(first: Vector, second: Vector, seed: int, task: int) -> Resample:
    """Error of a discriminant made from drawn plants, on the plants not drawn.

    Parameters
    ----------
    first, second : ndarray of shape (n, d)
        The measurements of each group, one plant a row.
    seed, task : int
        The random generator is made from this pair.

    Returns
    -------
    Resample
        The share of wrong answers.
    """
    generator = np.random.default_rng((seed, task))
    drawn = [
        generator.integers(len(group), size=len(group)) for group in (first, second)
    ]
    rule = discriminant(first[drawn[0]], second[drawn[1]])
    error = error_rate(
        rule, np.delete(first, drawn[0], axis=0), np.delete(second, drawn[1], axis=0)
    )
    return Resample(error, os.getpid())


class Study(NamedTuple):
    """One study, run both ways."""

    values: Vector
    sequential: float
    parallel: float
    workers: Counter[int]
    equal: bool


def run_both_ways(
    function: Callable[..., Resample], fixed: tuple[Any, ...], n: int, n_jobs: int
) -> Study:
    """Run the tasks ``function(*fixed, 0 ... n - 1)`` in a loop and in parallel.

    Parameters
    ----------
    function : callable
        Returns a `Resample`.
    fixed : tuple
        Arguments that all tasks share.
    n : int
        How many tasks.
    n_jobs : int
        How many workers, in the sense of `Parallel`.

    Returns
    -------
    Study
        The statistics, the seconds that each way took, and the tasks of each worker.
    """
    start = time.perf_counter()
    expected = [function(*fixed, task) for task in range(n)]
    middle = time.perf_counter()
    results = Parallel(n_jobs=n_jobs)(
        delayed(function)(*fixed, task) for task in range(n)
    )
    end = time.perf_counter()
    values = np.array([resample.value for resample in results])
    return Study(
        values,
        sequential=middle - start,
        parallel=end - middle,
        workers=Counter(resample.worker for resample in results),
        equal=bool(np.array_equal(values, [resample.value for resample in expected])),
    )


def permutation_test(n: int, n_jobs: int, seed: int) -> tuple[Study, str]:
    """Test whether two species differ in the width of their sepals.

    Parameters
    ----------
    n : int
        Number of permutations.
    n_jobs : int
        How many workers, in the sense of `Parallel`.
    seed : int
        Seed of all random numbers.

    Returns
    -------
    study : Study
        The differences under exchanged labels, in centimetres.
    text : str
        The result in words.  The p-value is two-sided and counts the measured
        labelling as one of the permutations: ``(1 + extreme) / (1 + n)``.
    """
    iris = load_iris()
    first, second = iris["virginica"][:, 1], iris["versicolor"][:, 1]
    measured = first.mean() - second.mean()
    pooled = np.concatenate([first, second])
    study = run_both_ways(permuted_difference, (pooled, len(first), seed), n, n_jobs)
    # Shuffling changes the rounding of a mean: count what ties up to that.
    extreme = int(np.sum(np.abs(study.values) >= abs(measured) - 1e-9))
    text = (
        f"sepal width, virginica less versicolor: {measured:.3f} cm\n"
        f"  {extreme:,} of {n:,} permutations are as far apart: "
        f"p = {(1 + extreme) / (1 + n):.4f}"
    )
    return study, text


def bootstrap(n: int, n_jobs: int, seed: int) -> tuple[Study, str]:
    """Estimate how often Fisher's discriminant confuses two species.

    Parameters
    ----------
    n : int
        Number of bootstrap samples.
    n_jobs : int
        How many workers, in the sense of `Parallel`.
    seed : int
        Seed of all random numbers.

    Returns
    -------
    study : Study
        The error of each sample.
    text : str
        The result in words: Efron's .632 estimate, which weighs the error on plants
        that made the rule (too kind) with that on others (too harsh, since a sample
        holds fewer different plants).
    """
    iris = load_iris()
    first, second = iris["virginica"], iris["versicolor"]
    apparent = error_rate(discriminant(first, second), first, second)
    study = run_both_ways(bootstrap_error, (first, second, seed), n, n_jobs)
    left_out = float(study.values.mean())
    text = (
        "virginica or versicolor, by Fisher's linear discriminant: "
        f"{0.368 * apparent + 0.632 * left_out:.1%} wrong\n"
        f"  {apparent:.1%} of the plants that made the rule, {left_out:.1%} of those "
        f"left out of {n:,} bootstrap samples"
    )
    return study, text


def describe(study: Study) -> str:
    """The times of a study and how its tasks were spread, as text."""
    counts = sorted(study.workers.values(), reverse=True)
    spread = " + ".join(f"{count:,}" for count in counts)
    return (
        f"  sequential {study.sequential:.2f} s, parallel {study.parallel:.2f} s: "
        f"{study.sequential / study.parallel:.2f} times as fast\n"
        f"  tasks per worker: {spread} = {study.workers.total():,}\n"
        f"  parallel == sequential: {'yes' if study.equal else 'NO'}"
    )


def _number(text: str, accepts: Callable[[int], bool], wanted: str) -> int:
    number = int(text) if text.removeprefix("-").isdecimal() else None
    if number is None or not accepts(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return number


def _resamples(text: str) -> int:
    return _number(text, lambda n: n >= 2, "a whole number from 2 up")


def _workers(text: str) -> int:
    return _number(text, lambda n: n != 0, "a number of workers; -1 is one a core")


def _seed(text: str) -> int:
    return _number(text, lambda n: n >= 0, "a whole number from 0 up")


def parser() -> argparse.ArgumentParser:
    """The command line of the demo."""
    made = argparse.ArgumentParser(
        prog="python -m fastjob demo",
        description="A permutation test and a bootstrap on Fisher's iris measurements, "
        "in a plain loop and in parallel with default settings.",
    )
    made.add_argument("--permutations", type=_resamples, default=100_000, metavar="N")
    made.add_argument("--bootstraps", type=_resamples, default=30_000, metavar="N")
    made.add_argument("--n-jobs", type=_workers, default=-1, metavar="N")
    made.add_argument("--seed", type=_seed, default=1936, metavar="N")
    return made


def main(argv: list[str]) -> int:
    """Run the demo.

    Parameters
    ----------
    argv : list of str
        Arguments of the command, without its name.

    Returns
    -------
    int
        0, or 1 if parallel and sequential results differ.
    """
    options = parser().parse_args(argv)
    print(
        f"Fisher's iris, 150 plants; Parallel(n_jobs={options.n_jobs}) "
        f"on {cpu_count()} cores\n"
    )
    studies = []
    for run, n in (
        (permutation_test, options.permutations),
        (bootstrap, options.bootstraps),
    ):
        study, text = run(n, options.n_jobs, options.seed)
        print(f"{text}\n{describe(study)}\n")
        studies.append(study)
    if all(study.equal for study in studies):
        return 0
    print("Parallel and sequential results differ; please report it.", file=sys.stderr)
    return 1
