"""The table for a person and the JSON for a machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import paths, stats
from benchmarks.demands import Demand, demands
from benchmarks.rounds import REFERENCE, Outcome

SCHEMA = 1

_PACKAGES = ("joblib", "numpy", "scikit-learn", "pandas", "mpire", "distributed", "ray")


def machine() -> dict[str, Any]:
    """Describe the machine, the interpreter and the packages."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": cpus,
        "load": os.getloadavg()[0],
        "fastjob": fastjob_in_use(),
        "packages": dict(_versions(_PACKAGES)),
    }


def fastjob_in_use() -> str:
    """Return version and folder of the fastjob that is measured, or why there is none.

    A path inside of the checkout is given relative to it.
    """
    code = "import fastjob; print(fastjob.__version__, fastjob.__file__)"
    done = subprocess.run(
        paths.program(code), capture_output=True, text=True, env=paths.environment()
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    version, _, file = done.stdout.strip().partition(" ")
    folder = Path(file).parent
    place = "in place" if paths.ROOT in folder.parents else "installed"
    return f"{version} ({place})"


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def as_json(outcomes: Sequence[Outcome], command: str) -> dict[str, Any]:
    """Return everything that was measured, for `json.dump`."""
    return {
        "schema": SCHEMA,
        "command": command,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "reference": REFERENCE,
        "rows": [row_json(outcome) for outcome in outcomes],
    }


def row_json(outcome: Outcome) -> dict[str, Any]:
    """Return what was measured of one row."""
    row = outcome.row
    ratios = {name: outcome.ratio(name) for name in outcome.samples}
    return {
        "name": row.name,
        "title": title(outcome),
        "unit": row.unit,
        "size": outcome.size,
        "n_jobs": outcome.n_jobs,
        "ideal": outcome.ideal,
        "limit": row.limit_title or None,
        "noise": outcome.noise,
        "sides": {
            name: {"median": median(values), "samples": values}
            for name, values in outcome.samples.items()
        },
        "errors": outcome.errors,
        "different": outcome.different,
        "observed": outcome.observed,
        "ratios": {
            name: asdict(found)
            for name, found in ratios.items()
            if found is not None and name != REFERENCE
        },
        "demands": [asdict(demand) for demand in demands(outcome)],
    }


def write_json(path: str, values: dict[str, Any]) -> None:
    """Write the JSON file."""
    text = json.dumps(values, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")


def amount(value: float, unit: str = "s") -> str:
    """Format a measured value with three digits.

    Examples
    --------
    >>> amount(0.01234), amount(4.2e-5), amount(2.0), amount(31.4159, "MB")
    ('12.3 ms', '42 us', '2 s', '31.4 MB')
    """
    if unit != "s":
        return f"{value:.3g} {unit}"
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value * 1e9:.3g} ns"


def table(outcomes: Sequence[Outcome], names: Sequence[str]) -> str:
    """Return the table as text in Markdown.

    One line a row: the median of each side, with its ratio to fastjob, then what was
    expected and whether it was reached.
    """
    columns = [name for name in names if any(name in o.samples for o in outcomes)]
    lines = [["work", "jobs", *columns, "wanted: found", "verdict"]]
    for outcome in outcomes:
        cells = [_cell(outcome, name) for name in columns]
        wanted, verdict = _wanted(demands(outcome))
        jobs = str(outcome.n_jobs)
        lines.append([title(outcome), jobs, *cells, wanted, verdict])
    return align(lines) + "".join(notes(outcomes))


def title(outcome: Outcome) -> str:
    """Return what a row does, and how much of it, where that was not all.

    ``100,000 tiny calls [20 %]`` is what ``--quick`` has measured.
    """
    row, less = outcome.row, []
    if row.size and outcome.size != row.size:
        less.append(f"{100 * outcome.size / row.size:.0f} %")
    if row.size and outcome.n_jobs != row.n_jobs:
        less.append(f"{outcome.n_jobs} workers")
    return f"{row.title} [{', '.join(less)}]" if less else row.title


def _cell(outcome: Outcome, name: str) -> str:
    if name not in outcome.samples:
        return "failed" if name in outcome.errors else ""
    text = amount(median(outcome.samples[name]), outcome.row.unit)
    ratio = outcome.ratio(name)
    if ratio is None or name == REFERENCE:
        return text
    return f"{text} (x{ratio.median:.3g} [{ratio.low:.3g}, {ratio.high:.3g}])"


def _wanted(found: Sequence[Demand]) -> tuple[str, str]:
    texts = []
    for demand in found:
        scale, unit = (100, " %") if demand.of == "ideal" else (1, "")
        text = f"{demand.of} {demand.wanted * scale:g}{unit}"
        if demand.found is not None:
            low, middle, high = (
                f"{value * scale:.3g}"
                for value in (demand.found.low, demand.found.median, demand.found.high)
            )
            text += f": {middle} [{low}, {high}]"
        texts.append(text)
    return "; ".join(texts), "; ".join(demand.verdict for demand in found)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with even columns; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "".join(
        "| "
        + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
        + " |\n"
        for line in (lines[0], rule, *lines[1:])
    )


def notes(outcomes: Sequence[Outcome]) -> Iterable[str]:
    """Yield a line for whatever a reader of the table must know beside it."""
    for outcome in outcomes:
        name = outcome.row.name
        for side, error in outcome.errors.items():
            yield f"{name}: {side} failed: {error}\n"
        for side in outcome.different:
            yield f"{name}: THE RESULTS OF {side} DIFFER\n"
        if outcome.noise > stats.NOISY:
            yield f"{name}: noisy machine (probe spread {outcome.noise:.2f})\n"
        for side, counts in outcome.observed.items():
            yield (
                f"{name}: {side}: {counts['context_switches']} context switches, "
                f"at most {counts['busy_threads']} busy threads\n"
            )
