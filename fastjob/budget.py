"""How many cores the code that runs here may keep busy.

`cpu_count` tells the truth about the machine; the budget tells the share of it that a
task has.  A worker process knows the share of its call (`set_core_budget`), a worker
thread the share of its own (`core_share`, which holds in that thread only), and
``n_jobs=-1`` in a nested call means the share.  An explicit number of jobs is taken at
its word, and its workers have shares of the budget it was started with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fastjob._core.cpu import cpu_count

__all__ = ["core_budget", "core_share", "default_share", "set_core_budget"]

_of_process: int | None = None
_of_thread: ContextVar[int | None] = ContextVar("fastjob_core_budget", default=None)


def core_budget() -> int:
    """Return the cores that the calling code may keep busy.

    Returns
    -------
    int
        The share of the thread, else of the process, else `cpu_count`; never more
        than `cpu_count` and never less than 1.
    """
    budget = _of_thread.get()
    if budget is None:
        budget = _of_process
    count = cpu_count()
    return count if budget is None else min(budget, count)


def set_core_budget(cores: int | None) -> None:
    """Set the share of this process; a worker process does so at each call.

    Parameters
    ----------
    cores : int or None
        At least 1; None is the whole machine.
    """
    global _of_process
    _of_process = None if cores is None else _checked(cores)


@contextmanager
def core_share(cores: int) -> Iterator[None]:
    """Give the code of a ``with`` block a share; it holds in this thread only.

    Parameters
    ----------
    cores : int
        At least 1.
    """
    token = _of_thread.set(_checked(cores))
    try:
        yield
    finally:
        _of_thread.reset(token)


def default_share(n_jobs: int) -> int:
    """Return the native threads that each of some workers may use.

    Parameters
    ----------
    n_jobs : int
        Workers, at least 1.

    Returns
    -------
    int
        ``max(core_budget() // n_jobs, 1)``: outside of a worker the budget is
        `cpu_count`.
    """
    if n_jobs < 1:
        raise ValueError(f"n_jobs must be at least 1, got {n_jobs}")
    return max(core_budget() // n_jobs, 1)


def _checked(cores: int) -> int:
    if cores < 1:
        raise ValueError(f"cores must be at least 1, got {cores}")
    return cores
