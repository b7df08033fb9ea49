"""Medians, pairwise ratios with their spread, and what may be concluded from them.

No distribution is assumed: times on a shared machine have long tails.  The interval
of a median comes from order statistics.  Of n independent samples the number that
fall below the true median is binomial(n, 1/2), so the k-th smallest and the k-th
largest enclose it with probability 1 - 2 P(X < k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

#: Confidence asked of an interval; the widest possible one is used below it.
CONFIDENCE = 0.9

#: Spread of the probe (90th over 10th percentile) above which the machine is noisy.
NOISY = 1.25


@dataclass(frozen=True)
class Interval:
    """A median with the order statistics that enclose it."""

    median: float
    low: float
    high: float
    confidence: float


def interval(samples: Sequence[float]) -> Interval:
    """Return the median and the narrowest interval of `CONFIDENCE`, if there is one.

    Parameters
    ----------
    samples : sequence of float
        At least one.

    Returns
    -------
    Interval
        Its `confidence` says what was reached: fewer than 5 samples cannot give 0.9.

    Examples
    --------
    >>> interval([5.0, 1.0, 2.0, 4.0, 3.0])
    Interval(median=3.0, low=1.0, high=5.0, confidence=0.9375)
    """
    if not samples:
        raise ValueError("samples is empty: a median needs at least one")
    ordered = sorted(samples)
    count = len(ordered)
    below, rank = 0.0, 1
    reached = max(1.0 - 2.0 * 0.5**count, 0.0)
    for k in range(1, (count + 1) // 2 + 1):
        below += math.comb(count, k - 1) * 0.5**count
        confidence = max(1.0 - 2.0 * below, 0.0)
        if confidence < CONFIDENCE:
            break
        rank, reached = k, confidence
    return Interval(median(ordered), ordered[rank - 1], ordered[-rank], reached)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide the samples of one round by each other.

    A round runs the sides one directly after the other, so that what disturbs one
    most often disturbs both, and the ratio suffers less than the times.
    """
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(probes: Sequence[float]) -> float:
    """Return the 90th over the 10th percentile (nearest rank); 1.0 is quiet."""
    ordered = sorted(probes)
    last = len(ordered) - 1
    return ordered[round(0.9 * last)] / ordered[round(0.1 * last)]


def verdict(found: Interval, target: float | None, noise: float) -> str:
    """Say whether a ratio has reached its target.

    Parameters
    ----------
    found : Interval
        The measured ratio.
    target : float or None
        The wanted ratio.
    noise : float
        The spread of the probe.

    Returns
    -------
    str
        ``""`` without a target; ``reached`` or ``short`` where the whole interval
        agrees, whatever the noise; ``too noisy`` where it does not and the probe
        says that the machine was; otherwise ``unclear``.
    """
    if target is None:
        return ""
    if found.low >= target:
        return "reached"
    if found.high < target:
        return "short"
    return "too noisy" if noise > NOISY else "unclear"
