"""What a row is expected to reach, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import stats
from benchmarks.rounds import REFERENCE, Outcome


@dataclass(frozen=True)
class Demand:
    """One expectation of a row, with what was found."""

    of: str
    wanted: float
    found: stats.Interval | None
    verdict: str


def demands(outcome: Outcome) -> list[Demand]:
    """Compare an outcome with what its row is expected to reach.

    Returns
    -------
    list of Demand
        Ratios to joblib and to other sides, and the share of the ideal time.  A
        side that is missing or failed gives the verdict ``not measured``.
    """
    row = outcome.row
    wanted = dict(row.versus)
    if row.target is not None:
        wanted = {"joblib": row.target, **wanted}
    pairs = [(name, ratio, outcome.ratio(name)) for name, ratio in wanted.items()]
    if row.share is not None:
        pairs.append(("ideal", row.share, outcome.share(REFERENCE)))
    return [_demand(of, ratio, found, outcome.noise) for of, ratio, found in pairs]


def _demand(
    of: str, wanted: float, found: stats.Interval | None, noise: float
) -> Demand:
    if found is None:
        return Demand(of, wanted, None, "not measured")
    return Demand(of, wanted, found, stats.verdict(found, wanted, noise))
