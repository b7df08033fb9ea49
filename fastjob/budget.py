"""How many cores the code that runs here may keep busy.

`cpu_count` tells the truth about the machine; the budget tells the share of it that a
task has, and ``n_jobs=-1`` in a nested call means the share.  A worker process is told
its share at each call.  The threads of a call share what the code that made the call
had: they run in a copy of its context, in which the number of sharers is multiplied by
the number of threads, and the division is done when somebody asks.  An explicit number
of jobs is taken at its word.
"""

from __future__ import annotations

from contextvars import ContextVar

from fastjob._core.cpu import cpu_count

__all__ = ["core_budget", "default_share", "has_share", "set_core_budget", "share_with"]

_of_process: int | None = None
_sharers: ContextVar[int] = ContextVar("fastjob_sharers", default=1)


def core_budget() -> int:
    """Return the cores that the calling code may keep busy.

    Returns
    -------
    int
        The share of the process, never more than `cpu_count`, divided by the threads
        that share it; never less than 1.
    """
    cores = cpu_count()
    if _of_process is not None:
        cores = min(cores, _of_process)
    return max(cores // _sharers.get(), 1)


def set_core_budget(cores: int | None) -> None:
    """Set the share of this process; a worker process does so at each call.

    Parameters
    ----------
    cores : int or None
        At least 1; None is the whole machine.
    """
    global _of_process
    if cores is not None and cores < 1:
        raise ValueError(f"cores must be at least 1, got {cores}")
    _of_process = cores


def has_share() -> bool:
    """Tell whether this is a worker process that was told its share."""
    return _of_process is not None


def share_with(n_threads: int) -> None:
    """Divide the budget in the current context, for good.

    Made for a copy of the caller's context, in which worker threads run:
    ``context.run(share_with, n_threads)``.

    Parameters
    ----------
    n_threads : int
        Threads that share the budget, at least 1.
    """
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, got {n_threads}")
    _sharers.set(_sharers.get() * n_threads)


def default_share(n_jobs: int) -> int:
    """Return the native threads that each of some workers may use.

    Parameters
    ----------
    n_jobs : int
        Workers, at least 1.

    Returns
    -------
    int
        ``max(core_budget() // n_jobs, 1)``; outside of any worker the budget is
        `cpu_count`.
    """
    if n_jobs < 1:
        raise ValueError(f"n_jobs must be at least 1, got {n_jobs}")
    return max(core_budget() // n_jobs, 1)
