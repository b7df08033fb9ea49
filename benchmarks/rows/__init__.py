"""The rows of the tables, one file a subject."""

from __future__ import annotations

import fnmatch

from benchmarks.row import Row
from benchmarks.rows import arrays, clusters, cold, curves, engine, nested

ALL: tuple[Row, ...] = (
    *engine.ROWS,
    *cold.ROWS,
    *arrays.ROWS,
    *nested.ROWS,
    *clusters.ROWS,
)


def select(pattern: str) -> list[Row]:
    """Return the rows whose name matches one of some patterns, in their order.

    Parameters
    ----------
    pattern : str
        Shell patterns with commas between them.

    Raises
    ------
    ValueError
        A pattern matches no row.
    """
    patterns = pattern.split(",")
    for one in patterns:
        if not any(fnmatch.fnmatch(row.name, one) for row in ALL):
            names = ", ".join(row.name for row in ALL)
            raise ValueError(f"no row matches {one!r}; there are {names}")
    return [
        row for row in ALL if any(fnmatch.fnmatch(row.name, one) for one in patterns)
    ]


def find(name: str) -> Row:
    """Return the row of that name, also one that only curves use."""
    for row in (*ALL, *curves.ROWS):
        if row.name == name:
            return row
    raise ValueError(f"no row is named {name!r}")
