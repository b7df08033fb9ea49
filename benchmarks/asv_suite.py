"""The rows under the names that `asv` looks for, for whoever keeps a history.

Every ``time_`` and ``peakmem_`` benchmark is one call of a row on fastjob, in a process
that ``asv`` starts; ``track_`` ones return a number of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

# asv imports this file by its path, with its own folder in `sys.path` at most.
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from benchmarks import peers, rows  # noqa: E402, it needs the path from above
from benchmarks.row import Row  # noqa: E402


class _Benchmark:
    """One row, set up and torn down as asv asks for it."""

    row: Row

    def setup(self) -> None:
        size, n_jobs = self.row.scale(quick=True)
        self.data = self.row.prepare(size)
        self.session = peers.load("fastjob").open_session(self.row.kind, n_jobs)
        self.work()

    def teardown(self) -> None:
        self.session.close()

    def work(self):
        return self.row.work(self.session, self.data)


def _track(self: _Benchmark) -> float:
    """Return what the row measures by itself."""
    return float(self.work()[1])


def _benchmark(row: Row) -> type[_Benchmark]:
    """Return the class of benchmarks of one row."""
    name = row.name.replace("-", "_").replace(".", "_")
    if row.unit == "s":
        members = {f"time_{name}": _Benchmark.work, f"peakmem_{name}": _Benchmark.work}
    else:
        _track.unit = row.unit  # type: ignore[attr-defined]
        members = {f"track_{name}": _track}
    return type(name, (_Benchmark,), {"row": row, "__module__": __name__, **members})


for _row in rows.ALL:
    if _row.work is not None and _row.requires is None:
        _class = _benchmark(_row)
        globals()[_class.__name__] = _class
