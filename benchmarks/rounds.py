"""Rounds: the sides run a row in turn, A B A B, until enough samples are in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks import stats
from benchmarks.digest import equal
from benchmarks.row import Row
from benchmarks.side import Side, SideFailed

#: The side that the others are divided by.
REFERENCE = "fastjob"


class Asked(Protocol):
    """What a round needs of a side; `Side` is the real one."""

    ideal: float | None

    def ask(self, request: str) -> dict[str, Any]:
        """Send one request and return its answer."""

    def close(self) -> None:
        """End the side."""


Opener = Callable[[str, str, Any, int], Asked]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Parameters
    ----------
    rounds : int
        Rounds a row, at most.
    least : int
        Rounds a row, whatever they cost.
    seconds : float
        After this time no further round is begun.
    """

    rounds: int
    least: int
    seconds: float


FULL = Effort(rounds=15, least=5, seconds=30.0)
QUICK = Effort(rounds=5, least=2, seconds=2.0)


@dataclass
class Outcome:
    """What one row has given: samples by side, one a round, and the rest."""

    row: Row
    size: Any
    n_jobs: int
    samples: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    observed: dict[str, dict[str, int]] = field(default_factory=dict)
    probes: list[float] = field(default_factory=list)
    digests: dict[str, Any] = field(default_factory=dict)
    ideal: float | None = None

    @property
    def noise(self) -> float:
        """The spread of the probe over all rounds; 1.0 without any."""
        return stats.spread(self.probes) if self.probes else 1.0

    @property
    def different(self) -> list[str]:
        """The sides whose results are not those of the first side that has any."""
        known = {k: v for k, v in self.digests.items() if v is not None}
        first = next(iter(known.values()), None)
        return [name for name, value in known.items() if not equal(value, first)]

    def ratio(self, name: str) -> stats.Interval | None:
        """Return the time of a side over that of fastjob, pair by pair."""
        ours, theirs = self.samples.get(REFERENCE), self.samples.get(name)
        if not ours or not theirs:
            return None
        return stats.interval(stats.ratios(theirs, ours))

    def share(self, name: str) -> stats.Interval | None:
        """Return the ideal time over that of a side."""
        samples = self.samples.get(name)
        if not samples or self.ideal is None:
            return None
        return stats.interval([self.ideal / value for value in samples])


def measure(
    row: Row,
    names: Sequence[str],
    effort: Effort,
    *,
    size: Any,
    n_jobs: int | None = None,
    opener: Opener = Side,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run a row on some sides in turn.

    Parameters
    ----------
    row : Row
        What to run.
    names : sequence of str
        The sides.  One that fails is left out from then on, with its error kept.
    effort : Effort
        How many rounds.
    size : object
        Size of the workload.
    n_jobs : int, optional
        Number of workers, if not the row's own.
    opener, clock : callable
        For tests.

    Returns
    -------
    Outcome
        All sides that did not fail have the same number of samples.
    """
    workers = row.n_jobs if n_jobs is None else n_jobs
    outcome = Outcome(row, size, workers)
    sides = _Sides(outcome, opener)
    try:
        for name in names:
            sides.guard(name, lambda name=name: sides.first(name))
        begin = clock()
        for number in range(int(row.fresh), effort.rounds):
            if number >= effort.least and clock() - begin > effort.seconds:
                break
            for name in list(sides.alive):
                sides.guard(name, lambda name=name: sides.sample(name))
        if row.observe:
            for name in list(sides.alive):
                sides.guard(name, lambda name=name: sides.observe(name))
    finally:
        sides.close()
    for name in outcome.errors:
        outcome.samples.pop(name, None)
    return outcome


class _Sides:
    """The open sides of one row, and where their answers go."""

    def __init__(self, outcome: Outcome, opener: Opener) -> None:
        self._outcome, self._opener = outcome, opener
        self._open: dict[str, Asked] = {}
        self.alive: list[str] = []

    def guard(self, name: str, action: Callable[[], None]) -> None:
        """Do something with a side; if it fails, leave it out from then on."""
        try:
            action()
        except SideFailed as error:
            self._outcome.errors[name] = str(error)
            if name in self.alive:
                self.alive.remove(name)
            self._shut(name)

    def first(self, name: str) -> None:
        """Open a side, and run the row once to warm it and to compare results.

        Where every sample has a new host nothing is warmed: it is the first sample.
        """
        side = self._side(name)
        answer = side.ask("check")
        self._outcome.digests[name] = answer["digest"]
        if side.ideal is not None:
            self._outcome.ideal = side.ideal
        self.alive.append(name)
        if self._outcome.row.fresh:
            self._keep(name, answer)

    def sample(self, name: str) -> None:
        """Take one sample."""
        self._keep(name, self._side(name).ask("time"))

    def observe(self, name: str) -> None:
        """Run once under observation."""
        self._outcome.observed[name] = self._side(name).ask("observe")

    def close(self) -> None:
        """Close all sides."""
        for name in list(self._open):
            self._shut(name)

    def _side(self, name: str) -> Asked:
        if name not in self._open:
            outcome = self._outcome
            self._open[name] = self._opener(
                name, outcome.row.name, outcome.size, outcome.n_jobs
            )
        return self._open[name]

    def _keep(self, name: str, answer: dict[str, Any]) -> None:
        self._outcome.samples.setdefault(name, []).append(answer["value"])
        self._outcome.probes.append(answer["probe"])
        if self._outcome.row.fresh:
            self._shut(name)

    def _shut(self, name: str) -> None:
        side = self._open.pop(name, None)
        if side is not None:
            side.close()
