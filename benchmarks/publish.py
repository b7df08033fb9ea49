"""``python -m benchmarks publish FILE``: what ``versus --json`` measured, in the docs.

The figures and the tables of the README and of ``docs/benchmarks.md`` are made of one
run, so that all of them say the same.  A table stands between two marks, which are
comments that no reader sees; what is between them is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import page, paths, report, stats
from benchmarks.rounds import REFERENCE

#: The rows of the README: those that fastjob was made for.
CHOSEN = (
    "tiny-processes",
    "closure-processes",
    "stream-processes",
    "tiny-threads",
    "tiny-sequential",
    "call-processes",
    "call-threads",
    "dict-processes",
    "spin-1ms",
    "spin-0.1ms",
    "instant-then-slow",
    "sleep-64",
    "cold-first-call",
    "cold-first-numpy-call",
    "cold-import",
    "idle-memory",
    "array-shared",
    "arrays-in",
    "results-large",
    "results-many",
    "arrays-both-ways",
    "frame-shared",
)
#: Where the pictures go: of the chosen rows, and of all.
FIGURES = (
    ("docs/figures/versus-few.svg", CHOSEN),
    ("docs/figures/versus.svg", None),
)
#: Where the tables go.
PAGES = (("README.md", CHOSEN), ("docs/benchmarks.md", None))

BEGIN, END = "<!-- benchmarks versus -->\n", "<!-- end of benchmarks versus -->"

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("file", help="what versus --json has written")


def run(options: argparse.Namespace) -> int:
    """Draw the figures and write the tables; return 0."""
    publish(json.loads(Path(options.file).read_text()), paths.ROOT)
    return 0


def publish(values: dict[str, Any], root: Path) -> None:
    """Write the figures and the tables of one run into the checkout at `root`.

    Raises
    ------
    ValueError
        The values are of another command, or hold no row that was asked for, or a
        page has no place for its table.  Nothing has been written then.
    """
    if values.get("command") != "versus":
        raise ValueError("publish takes what `versus --json FILE` has written")
    texts = {root / name: "" for name, _ in PAGES}
    for name, chosen in PAGES:
        text = table(values, _rows(values, chosen))
        texts[root / name] = between_marks((root / name).read_text(), text, name)
    for name, chosen in FIGURES:
        page.draw({**values, "rows": _rows(values, chosen)}, str(root / name))
    for path, text in texts.items():
        path.write_text(text)


def _rows(values: dict[str, Any], chosen: Sequence[str] | None) -> list[Row]:
    """Return the rows of those names in that order; all rows for None."""
    by_name = {row["name"]: row for row in values["rows"]}
    names = by_name if chosen is None else [n for n in chosen if n in by_name]
    if not names:
        raise ValueError("no row that is to be published was measured")
    return [by_name[name] for name in names]


def between_marks(page_text: str, table_text: str, name: str) -> str:
    """Return the text of a page with another table between its marks."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(page_text):
        raise ValueError(f"{name} has no lines {BEGIN.strip()} and {END}")
    return pattern.sub(lambda _: BEGIN + table_text + END, page_text, count=1)


def table(values: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return one sentence on the run and a table of its rows, in Markdown.

    The columns are fastjob and the libraries that any of the rows was run with; each
    cell is the median, with its ratio to fastjob; that of fastjob has the share of the
    ideal time where there is one.
    """
    machine = values["machine"]
    present = {name for row in rows for name in row["sides"]}
    peers = [name for name in page.PEERS if name in present]
    versions = machine["packages"]
    named = [f"{name} {versions[name]}" for name in peers if name in versions]
    cpus = "1 core" if machine["cpus"] == 1 else f"{machine['cpus']} cores"
    lines = [["work", REFERENCE, *peers]]
    lines += [
        [row["title"], _own(row), *(_cell(row, name) for name in peers)] for row in rows
    ]
    return (
        f"Python {machine['python']}, {cpus}, {', '.join([*named, *_noisy(rows)])}; "
        f"{values['date'][:10]}.\n\n{report.align(lines)}"
    )


def _noisy(rows: Iterable[Row]) -> list[str]:
    spread = max((row["noise"] for row in rows), default=1.0)
    return [] if spread <= stats.NOISY else ["on a machine with other work to do"]


def _amount(row: Row, name: str) -> str:
    side = row["sides"].get(name)
    return "" if side is None else report.amount(side["median"], row["unit"])


def _own(row: Row) -> str:
    amount = _amount(row, REFERENCE)
    if not amount or row["ideal"] is None:
        return amount
    share = row["ideal"] / row["sides"][REFERENCE]["median"]
    return f"{amount} ({share:.1%} of ideal)"


def _cell(row: Row, name: str) -> str:
    ratio = row["ratios"].get(name)
    return "" if ratio is None else f"{_amount(row, name)} (x{ratio['median']:.3g})"
