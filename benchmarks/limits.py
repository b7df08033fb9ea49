"""``python -m benchmarks limits``: shares of physical limits, and how cost grows."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks import curves, page, peers, report, rounds, rows, stats
from benchmarks.row import Row


def add_options(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("--quick", action="store_true", help="fewer points and rounds")
    parser.add_argument("--rows", default="*", help="patterns, with commas between")
    parser.add_argument(
        "--parts",
        default="rows,scaling,autotuner",
        help="which of rows, scaling and autotuner to measure",
    )
    parser.add_argument("--json", metavar="FILE", help="write all samples")
    parser.add_argument("--page", metavar="FILE", help="draw curves: .svg or .html")


def run(options: argparse.Namespace) -> int:
    """Measure, print, write the files; return 1 if fastjob has failed somewhere."""
    parts = options.parts.split(",")
    for part in parts:
        if part not in ("rows", "scaling", "autotuner"):
            raise ValueError(f"no part is named {part!r}")
    outcomes: list[rounds.Outcome] = []
    found: dict[str, list[curves.Curve]] = {"scaling": [], "autotuner": []}
    if "rows" in parts:
        outcomes = list(_rows(options.rows, options.quick))
        print(shares(outcomes))
    if "scaling" in parts:
        for curve in curves.scaling(options.quick):
            found["scaling"].append(curve)
            print(curve_table(curve), flush=True)
    if "autotuner" in parts:
        for curve in curves.autotuner(options.quick):
            found["autotuner"].append(curve)
            print(batch_table(curve), flush=True)
    values = report.as_json(outcomes, "limits")
    for part, measured in found.items():
        values[part] = [_curve_json(curve) for curve in measured]
    if options.json:
        report.write_json(options.json, values)
    if options.page:
        page.draw_curves(values, options.page)
    points = [p.outcome for part in found.values() for c in part for p in c.points]
    return int(any(rounds.REFERENCE in o.errors for o in (*outcomes, *points)))


def _rows(pattern: str, quick: bool) -> Iterable[rounds.Outcome]:
    effort = rounds.QUICK if quick else rounds.FULL
    for row in rows.select(pattern):
        if not limited(row):
            continue
        if row.requires and importlib.util.find_spec(row.requires) is None:
            print(f"{row.name}: left out, needs {row.requires}", file=sys.stderr)
            continue
        sides = [name for name in ("limit", "fastjob") if peers.can_run(name, row)]
        size, n_jobs = row.scale(quick)
        print(row.name, file=sys.stderr, flush=True)
        yield rounds.measure(row, sides, effort, size=size, n_jobs=n_jobs)


def limited(row: Row) -> bool:
    """Tell whether a row has a limit that is measured or calculated."""
    return peers.can_run("limit", row) or row.ideal is not None


def share(outcome: rounds.Outcome) -> stats.Interval | None:
    """Return the share of the limit: its time over fastjob's."""
    if outcome.ideal is not None:
        return outcome.share(rounds.REFERENCE)
    return outcome.ratio("limit")


def shares(outcomes: Sequence[rounds.Outcome]) -> str:
    """Return the table of shares."""
    lines = [["work", "limit", "at the limit", "fastjob", "share of the limit"]]
    for outcome in outcomes:
        unit = outcome.row.unit
        title = outcome.row.limit_title or "ideal schedule"
        limit = outcome.ideal or _median(outcome, "limit")
        ours, found = _median(outcome, rounds.REFERENCE), share(outcome)
        lines.append(
            [
                outcome.row.title,
                title,
                "" if limit is None else report.amount(limit, unit),
                "failed" if ours is None else report.amount(ours, unit),
                "" if found is None else _percent(found),
            ]
        )
    return report.align(lines) + "".join(report.notes(outcomes))


def _percent(found: stats.Interval) -> str:
    low, middle, high = (
        f"{100 * value:.3g}" for value in (found.low, found.median, found.high)
    )
    return f"{middle} % [{low}, {high}]"


def _median(outcome: rounds.Outcome, name: str) -> float | None:
    samples = outcome.samples.get(name)
    return median(samples) if samples else None


def curve_table(curve: curves.Curve) -> str:
    """Return the table of one scaling curve."""
    unit = "" if curve.per(2.0) == 1.0 else " a task"
    lines = [[curve.axis, f"limit{unit}", f"fastjob{unit}", "share of the limit"]]
    for point in curve.points:
        divisor = curve.per(point.at)
        limit = point.outcome.ideal or _median(point.outcome, "limit")
        ours, found = _median(point.outcome, rounds.REFERENCE), share(point.outcome)
        lines.append(
            [
                f"{point.at:g}",
                "" if limit is None else report.amount(limit / divisor),
                "failed" if ours is None else report.amount(ours / divisor),
                "" if found is None else _percent(found),
            ]
        )
    notes = report.notes([point.outcome for point in curve.points])
    return f"{curve.name}\n{report.align(lines)}{''.join(notes)}"


def batch_table(curve: curves.Curve) -> str:
    """Return the table of the automatic batch size beside fixed ones."""
    fixed = [str(size) for size in curves.FIXED]
    header = ["task", "tasks", "auto", *(f"batch {size}" for size in fixed)]
    lines = [[*header, "best fixed over auto", "share of the ideal"]]
    for point in curve.points:
        outcome = point.outcome
        medians = [_median(outcome, name) for name in (rounds.REFERENCE, *fixed)]
        best, ideal = curves.efficiency(outcome), outcome.share(rounds.REFERENCE)
        lines.append(
            [
                report.amount(point.at) if point.at else "instant",
                str(outcome.size["count"]),
                *("" if value is None else report.amount(value) for value in medians),
                "" if best is None else f"{100 * best:.3g} %",
                _percent(ideal) if ideal is not None and outcome.ideal else "",
            ]
        )
    notes = report.notes([point.outcome for point in curve.points])
    title = f"batch sizes, task lengths: {curve.name}"
    return f"{title}\n{report.align(lines)}{''.join(notes)}"


def _curve_json(curve: curves.Curve) -> dict[str, Any]:
    return {
        "name": curve.name,
        "axis": curve.axis,
        "points": [
            {
                "at": point.at,
                "per": curve.per(point.at),
                "efficiency": curves.efficiency(point.outcome),
                **report.row_json(point.outcome),
            }
            for point in curve.points
        ],
    }
