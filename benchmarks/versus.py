"""``python -m benchmarks versus``: fastjob beside its peers."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from benchmarks import page, peers, report, rounds, rows
from benchmarks.row import Row


def add_options(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "--quick", action="store_true", help="smaller rows, fewer rounds: 3 minutes"
    )
    parser.add_argument("--rows", default="*", help="patterns, with commas between")
    parser.add_argument("--peers", help="sides, with commas between (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write all samples")
    parser.add_argument("--page", metavar="FILE", help="draw bars: .svg or .html")


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the files; return the exit status.

    The status is 1 where results differ or fastjob fails, never because of a time.
    """
    names = sides(options.peers, options.quick)
    effort = rounds.QUICK if options.quick else rounds.FULL
    outcomes = []
    for row in rows.select(options.rows):
        if row.requires and importlib.util.find_spec(row.requires) is None:
            print(f"{row.name}: left out, needs {row.requires}", file=sys.stderr)
            continue
        outcomes.append(measure(row, names, effort, options.quick))
        print(one_line(outcomes[-1]), file=sys.stderr, flush=True)
        if options.json:  # after each row: a run takes long, and may be broken off
            report.write_json(options.json, report.as_json(outcomes, "versus"))
    print(report.table(outcomes, names), end="")
    if options.page:
        page.draw(report.as_json(outcomes, "versus"), options.page)
    failed = any(rounds.REFERENCE in outcome.errors for outcome in outcomes)
    return int(failed or any(outcome.different for outcome in outcomes))


def sides(wanted: str | None, quick: bool) -> list[str]:
    """Return the sides to run: the wanted ones, or those that are installed."""
    there = peers.installed()
    if wanted is None:
        return there[:2] if quick else there
    names = wanted.split(",")
    for name in names:
        if name not in there:
            raise ValueError(
                f"{name!r} is not among the installed peers: {', '.join(there)}"
            )
    return names


def measure(
    row: Row, names: Sequence[str], effort: rounds.Effort, quick: bool
) -> rounds.Outcome:
    """Run one row on those sides that can."""
    able = [name for name in names if peers.can_run(name, row)]
    size, n_jobs = row.scale(quick)
    return rounds.measure(row, able, effort, size=size, n_jobs=n_jobs)


def one_line(outcome: rounds.Outcome) -> str:
    """Return a line of progress."""
    medians = ", ".join(
        f"{name} {report.amount(sorted(values)[len(values) // 2], outcome.row.unit)}"
        for name, values in outcome.samples.items()
    )
    errors = "".join(f", {name} FAILED" for name in outcome.errors)
    return f"{outcome.row.name}: {medians}{errors}"
