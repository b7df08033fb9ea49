"""dask and ray: fastjob over them, their own interface, and joblib over them."""

from __future__ import annotations

from benchmarks import floors, tasks
from benchmarks.row import Row


def _tiny(session, items):
    return session.run(tasks.tiny, items)


def _naps(session, items):
    return session.run(tasks.nap, items)


def _ideal(items, n_jobs):
    return sum(items) / n_jobs


def _rows(kind, module):
    return (
        Row(
            f"{kind}-tiny",
            f"10,000 tiny calls on {kind}",
            kind,
            range,
            _tiny,
            10_000,
            1_000,
            requires=module,
            versus={kind: 20.0},
            limit=lambda items, n_jobs: floors.loop(tasks.tiny, items),
            limit_title="plain loop",
        ),
        Row(
            f"{kind}-20ms",
            f"200 tasks of 20 ms on {kind}",
            kind,
            lambda size: [0.02] * size,
            _naps,
            200,
            50,
            requires=module,
            share=0.95,
            ideal=_ideal,
        ),
    )


ROWS = (*_rows("dask", "distributed"), *_rows("ray", "ray"))
