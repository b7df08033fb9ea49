"""Workers stay warm between calls; here they are ended."""

from __future__ import annotations

import sys


def shutdown() -> None:
    """End all idle workers, processes and threads, now.

    Workers that a call is using are not touched. The next call starts new ones.
    Without this they end by themselves, some minutes after their last task or with the
    interpreter.

    Examples
    --------
    >>> import fastjob
    >>> fastjob.shutdown()
    """
    # What has not been imported has no workers.
    processes = sys.modules.get("fastjob._pool.pool")
    if processes is not None:
        processes.pool.shutdown()
    memory = sys.modules.get("fastjob._pool.memory")
    if memory is not None:
        memory.stop()
    threads = sys.modules.get("fastjob._core.warm_threads")
    if threads is not None:
        threads.end_idle_threads()
    inheriting = sys.modules.get("fastjob._core.inheriting")
    if inheriting is not None:
        inheriting.settle_forks()
