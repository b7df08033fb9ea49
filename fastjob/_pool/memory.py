"""The stores of shared memory of this process, one for each folder that was named.

Memory that is free again stays warm for a while, since filling it is much faster than
filling new memory. Workers give theirs back when they have been idle for some time. In
the caller nothing runs between two calls; so as long as there is anything to give back,
and only then, a thread waits for the time to do so.
"""

from __future__ import annotations

import os
from _thread import allocate_lock

from fastjob._core.environment import variable
from fastjob._core.forks import register_at_fork
from fastjob._core.regions import total_memory
from fastjob._core.segments import Store
from fastjob._core.starting import start_bare_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds that free memory stays warm.
IDLE_SECONDS = 10.0

_stores: dict[str | None, Store] = {}
_lock = allocate_lock()
_janitor: Any = None


def store_for(folder: Any, sharers: int = 1) -> Store:
    """Return the store for a call's `temp_folder`, or the environment's.

    Parameters
    ----------
    folder : path or None
    sharers : int
        Processes that share the machine's bound on warm memory.
    """
    key = folder_of(folder)
    with _lock:
        store = _stores.get(key)
        if store is None:
            # Of the named ones the last stays; others end with the calls that use them.
            for other in [k for k in _stores if k is not None and key is not None]:
                del _stores[other]
            store = _stores[key] = Store(
                key, warm_limit=warm_limit() // sharers, idle_seconds=IDLE_SECONDS
            )
        return store


def folder_of(folder: Any) -> str | None:
    """Return a call's `temp_folder` or, without one, the environment's."""
    if folder is None:
        folder = (
            variable(b"FASTJOB_TEMP_FOLDER") or variable(b"JOBLIB_TEMP_FOLDER") or None
        )
    return None if folder is None else os.fspath(folder)


def warm_limit() -> int:
    """Bytes of free memory that the caller, and all workers together, keep warm.

    A sixteenth of the machine's memory, or ``FASTJOB_WARM_BYTES``.
    """
    asked = os.environ.get("FASTJOB_WARM_BYTES", "")
    if asked.isdecimal():
        return int(asked)
    return total_memory() // 16


def tidy() -> None:
    """After a call: take back what is free, and see that it does not stay for ever."""
    global _janitor
    if _stores and collect() and _janitor is None:
        with _lock:
            if _janitor is None:
                _janitor = allocate_lock()
                _janitor.acquire()
                start_bare_thread(_wait, _janitor)


def collect() -> bool:
    """Give back what is due; whether there is more to give back later."""
    more = [store.collect() for store in list(_stores.values())]  # all of them
    return any(more)


def _wait(stop: Any) -> None:
    global _janitor
    while not stop.acquire(timeout=IDLE_SECONDS / 4):
        with _lock:
            if not collect():
                _janitor = None
                return


def stop() -> None:
    """Give up the stores, now, or once the calls that use them end; the thread ends."""
    global _janitor
    with _lock:
        janitor, _janitor = _janitor, None
        _stores.clear()
    if janitor is not None:
        janitor.release()


def forget() -> None:
    """In a forked child: the stores are the parent's."""
    global _janitor, _lock
    _lock = allocate_lock()
    _janitor = None
    _stores.clear()


register_at_fork(after_in_child=forget)
