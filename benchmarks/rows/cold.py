"""Cold rows: a new interpreter, and what idle workers keep in memory."""

from __future__ import annotations

import os

from benchmarks import floors, processes
from benchmarks.row import Row


def _nothing(size):
    return None


def _seconds(size):
    return [0.05] * size


def _idle_memory(session, items):
    """Run a numpy task on every worker, and weigh the workers that then sit idle."""
    from benchmarks import array_tasks

    # One task a call would do for a library that deals tasks out evenly; the second
    # round is for those that let a quick worker take two.
    for _ in range(2):
        result = session.run(array_tasks.root_after, items)
    pids = processes.settled(os.getpid())
    return result, sum(map(processes.pss, pids)) / 1e6


def _forked_memory(items, n_jobs):
    from benchmarks import array_tasks

    return None, floors.forked_memory(array_tasks.root, n_jobs)


ROWS = (
    Row(
        "cold-first-call",
        "new interpreter: import and first call, plain function",
        "cold",
        _nothing,
        None,
        0,
        0,
        script="first call",
        target=8,
        limit_title="interpreter start",
    ),
    Row(
        "cold-first-numpy-call",
        "new interpreter: first call of a module that imports numpy",
        "cold",
        _nothing,
        None,
        0,
        0,
        script="first numpy call",
        target=2.5,
        limit_title="interpreter start and import numpy",
    ),
    Row(
        "cold-import",
        "import alone",
        "cold",
        _nothing,
        None,
        0,
        0,
        script="import",
        target=6,
    ),
    Row(
        "idle-memory",
        "memory (PSS) of 8 idle workers after a numpy task",
        "processes",
        _seconds,
        _idle_memory,
        16,
        16,
        n_jobs=8,
        fresh=True,
        unit="MB",
        target=7,
        limit=_forked_memory,
        limit_title="8 forks of one process",
    ),
)
