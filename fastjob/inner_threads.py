"""How many threads native libraries use inside a task.

In a worker process.  Libraries to come read the environment when they are loaded;
those already there are set at run time.  A worker does both before the first task of a
call, so caps can go up and down in a warm worker.  What the user set in the
environment wins over the default share, and an explicit number over both.  The
variables in a worker's own ``os.environ`` tell nothing about the user, since fastjob
writes them; so the caller sends what its user set (`user_settings`), and the worker
keeps it (`user_environment`) apart from what it writes itself.

In the thread backend.  Tasks share the user's process: its environment is left alone.
OpenMP, MKL and numba keep the number for each thread, so every worker thread sets its
own (`limit_inner_threads`).  OpenBLAS has one for the process: it is held for as long
as the call runs (`common_limit`).  Calls that overlap share it: the least of their
numbers holds, which may cost one of them speed but never crowds the machine, and with
the last one ended the number from before the first returns.

Two libraries are special.  numba reads its variable again each time it compiles, and
refuses a changed one once its threads run: when it is imported the variable keeps the
number that it started with, and no cap can rise above that.  torch sets the number of
a thread when the thread first uses it, on top of what was set before: it is made to do
so first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from fastjob._core.pools import Pool, loaded_pools
from fastjob._core.threadpools import CommonLimit, number_before, restore
from fastjob.budget import core_budget, default_share, set_core_budget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "VARIABLES",
    "apply_worker_caps",
    "common_limit",
    "core_budget",
    "default_share",
    "limit_inner_threads",
    "set_core_budget",
    "user_environment",
    "user_settings",
    "worker_environment",
]

#: The variable that bounds each kind of pool.
OWN_VARIABLE = {
    "openmp": "OMP_NUM_THREADS",
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
    "accelerate": "VECLIB_MAXIMUM_THREADS",
}
NUMBA_VARIABLE = "NUMBA_NUM_THREADS"
#: Makes the TBB schedulers of several processes share the machine; not a number.
TBB_VARIABLE = "ENABLE_IPC"

#: Every variable that a worker's cap is written to.
VARIABLES = (
    *OWN_VARIABLE.values(),
    NUMBA_VARIABLE,
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


def _checked(limit: int) -> int:
    if not 1 <= limit < 1 << 31:
        raise ValueError(
            f"inner_max_num_threads must be at least 1 and below 2**31, got {limit}"
        )
    return limit


def _first_number(text: str | None) -> int | None:
    """The number in a variable: ``OMP_NUM_THREADS=4,2`` gives one for each level."""
    first = (text or "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) else None


# ------------------------------------------------------------- worker processes


class _WorkerCaps:
    """What this process was capped to; only the thread that runs tasks uses it."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}  # what the caller's user set
        self.written: dict[str, str] = {}  # what we wrote to os.environ
        self.asked: tuple[int, bool] | None = None  # limit, explicit
        self.pools: tuple[Pool, ...] = ()  # those seen when it was applied
        self.numba_capped = False

    def settings(self) -> dict[str, str]:
        found = {}
        for name in (*VARIABLES, TBB_VARIABLE):
            value = os.environ.get(name)
            if value is not None and self.written.get(name) == value:
                value = self.users.get(name)
            if value is not None:
                found[name] = value
        return found

    def variables(self, limit: int, explicit: bool) -> dict[str, str]:
        found = dict.fromkeys(VARIABLES, str(limit))
        if not explicit:
            found.update((n, v) for n, v in self.users.items() if n in found)
        numba: Any = sys.modules.get("numba")
        if hasattr(numba, "config"):  # not while it is being imported
            found[NUMBA_VARIABLE] = str(numba.config.NUMBA_NUM_THREADS)
        found[TBB_VARIABLE] = self.users.get(TBB_VARIABLE, "1")
        return found

    def number(self, variable: str, limit: int, explicit: bool) -> int:
        if explicit:
            return limit
        return _first_number(self.users.get(variable)) or limit

    def pool_number(self, pool: Pool, limit: int, explicit: bool) -> int:
        variable = OWN_VARIABLE.get(pool.internal_api, "")
        if pool.threading_layer == "openmp":
            variable = OWN_VARIABLE["openmp"]
        return self.number(variable, limit, explicit)

    def cap_modules(self, limit: int, explicit: bool) -> None:
        torch: Any = sys.modules.get("torch")
        if hasattr(torch, "set_num_threads"):  # not while it is being imported
            variable = OWN_VARIABLE["openmp"]
            torch.set_num_threads(self.number(variable, limit, explicit))
        limit = self.number(NUMBA_VARIABLE, limit, explicit)
        if _cap_numba(limit, may_raise=self.numba_capped) is not None:
            self.numba_capped = True

    def cap_pools(self, pools: tuple[Pool, ...], limit: int, explicit: bool) -> None:
        for pool in pools:
            pool.set_everywhere(self.pool_number(pool, limit, explicit))


_worker = _WorkerCaps()


def user_settings() -> dict[str, str]:
    """Return the variables that the user set, for the caller to send to workers.

    Returns
    -------
    dict
        The variables of `VARIABLES` that are in ``os.environ`` and were not written
        by fastjob. In a worker those that the user of its caller set are included,
        so they reach nested workers.
    """
    return _worker.settings()


def user_environment(environ: Mapping[str, str]) -> None:
    """Keep what the user set in the caller's process; other variables are ignored.

    Parameters
    ----------
    environ : mapping
        What `user_settings` returned there, or its whole environment.
    """
    users = {n: environ[n] for n in (*VARIABLES, TBB_VARIABLE) if n in environ}
    if users != _worker.users:
        _worker.users = users
        _worker.asked = None


def worker_environment(
    environ: Mapping[str, str], limit: int, explicit: bool
) -> dict[str, str]:
    """Return the caller's environment with the variables as a worker has them.

    For a worker that takes over its caller's environment: `apply_worker_caps` does
    not write it again as long as the caps are the same.

    Parameters
    ----------
    environ : mapping
        The caller's environment.
    limit : int
        As for `apply_worker_caps`.
    explicit : bool
        As for `apply_worker_caps`.
    """
    return {**environ, **_worker.variables(limit, explicit)}


def apply_worker_caps(limit: int, explicit: bool) -> None:
    """Cap the native threads of this worker process.

    Call it in the thread that runs the tasks, before the first one of each call and
    after `user_environment`. With nothing changed it costs about a microsecond.

    Parameters
    ----------
    limit : int
        Threads that each library may use, at least 1.
    explicit : bool
        Whether the user asked for ``limit``: then it wins over the environment.
    """
    asked = (limit, explicit)
    pools = loaded_pools()
    if asked == _worker.asked:
        if pools is not _worker.pools:
            # Loaded by a task. Most have read the environment; TBB has no variable.
            known = set(_worker.pools)
            new = tuple(pool for pool in pools if pool not in known)
            _worker.cap_pools(new, limit, explicit)
            _worker.pools = pools
        return
    _checked(limit)
    _worker.written = _worker.variables(limit, explicit)
    os.environ.update(_worker.written)
    _worker.cap_modules(limit, explicit)
    _worker.cap_pools(pools, limit, explicit)
    _worker.asked, _worker.pools = asked, pools


# --------------------------------------------------------------- thread backend


def common_limit(limit: int) -> CommonLimit:
    """What a call with ``inner_max_num_threads`` asks of process-wide pools.

    The call begins it before its threads come, and ends it before it returns: code that
    comes after it must not find, and put back, a limit of a thread that is late.
    """
    return CommonLimit(_checked(limit))


class limit_inner_threads:
    """Limit native threads in a worker thread, while it serves a call.

    Every worker thread of the call enters one of its own.

    Parameters
    ----------
    limit : int or None
        ``inner_max_num_threads`` of the call, at least 1. None is the cap of this
        worker process, if it is one, and else changes nothing.
    common : CommonLimit, optional
        What the call asks of process-wide pools, which are left alone without it.

    Examples
    --------
    >>> from fastjob._core.threadpools import threadpool_info
    >>> common = common_limit(1)
    >>> common.begin()
    >>> with limit_inner_threads(1, common):
    ...     all(pool["num_threads"] == 1 for pool in threadpool_info())
    True
    >>> common.end()
    """

    def __init__(self, limit: int | None, common: CommonLimit | None = None) -> None:
        self._asked = _worker.asked if limit is None else (_checked(limit), True)
        self._common = common
        self._pools: tuple[Pool, ...] = ()
        self._before: dict[Pool, int] = {}
        self._numba_before: int | None = None

    def __enter__(self) -> limit_inner_threads:
        if self._asked is not None:
            number = _worker.number(NUMBA_VARIABLE, *self._asked)
            self._numba_before = _cap_numba(number, may_raise=False)
            self.refresh()
        return self

    def refresh(self) -> None:
        """Limit what was loaded since; with nothing loaded that costs next to nothing.

        Between two tasks of a thread it catches what the first one imported.
        """
        pools = loaded_pools()
        if self._asked is None or pools is self._pools:
            return
        torch: Any = sys.modules.get("torch")
        if hasattr(torch, "get_num_threads"):
            torch.get_num_threads()  # sets the thread's number, for the first time
        new = [p for p in pools if p.per_thread and p not in self._before]
        self._before.update((pool, number_before(pool)) for pool in new)
        # This comes first, since it must find the numbers from before.
        if self._common is not None:
            self._common.refresh()
        for pool in new:
            pool.set_num_threads(_worker.pool_number(pool, *self._asked))
        self._pools = pools

    def __exit__(self, *exc_info: object) -> None:
        for pool, threads in self._before.items():
            restore(pool, threads)
        if self._numba_before is not None:
            sys.modules["numba"].set_num_threads(self._numba_before)
        self._before = {}
        self._pools = ()
        self._numba_before = None


def _cap_numba(limit: int, may_raise: bool) -> int | None:
    """Cap numba in this thread; the number from before, or None if left alone.

    Asking numba starts its threads, so it is not asked where the limit is no limit,
    unless an earlier one has to be raised.
    """
    numba: Any = sys.modules.get("numba")
    if not hasattr(numba, "set_num_threads"):  # not while it is being imported
        return None
    most: int = numba.config.NUMBA_NUM_THREADS
    if limit >= most and not may_raise:
        return None
    before: int = numba.get_num_threads()
    numba.set_num_threads(min(limit, most))
    return before
