"""The end of a ``multiprocessing.pool.Pool``, whatever its workers were doing.

`Pool.terminate` waits for ever if a worker dies, or is ended by it, with one of the
pool's locks in hand:

1. a worker takes the lock of the results, to write one;
2. it is ended. A semaphore has no owner, so the lock stays taken;
3. a thread of the pool wants to write that there are no more tasks, and waits.

It also waits for a worker that ignores SIGTERM, and for the rest of a result that a
worker has begun to write. So the workers are ended here first, while none can be in
the middle of a result; then what dead ones have left taken is given back, and the tasks
that nobody will read are thrown away; and the pool finds nothing to wait for.

What is used here of a pool, and not public, is the same in Python 3.10 to 3.14.
"""

from __future__ import annotations

import os
import sys
from multiprocessing.pool import TERMINATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds that a living worker has to finish what it writes, or to heed SIGTERM. If it
#: needs more it is as if it had died.
PATIENCE = 0.5

#: Seconds between two looks whether the thread that writes tasks has ended, and for
#: which a thread of the pool may have the lock of the results.
WAITING = 0.01


def end_pool(pool: Any) -> None:
    """End a pool: its workers, its threads and its pipes."""
    starter = pool._worker_handler
    starter._state = TERMINATE
    pool._change_notifier.put(None)
    starter.join()  # from here on, no worker is started in place of another
    # For the thread that writes tasks. An error in the starter was its end, and then it
    # has not said this; a second time does nothing.
    pool._taskqueue.put(None)
    results, tasks = pool._outqueue, pool._inqueue
    writing, reading = results._wlock, tasks._rlock
    # On Windows a message is written whole, without a lock.
    whole = writing is None or writing.acquire(timeout=PATIENCE)
    try:
        _end_workers(pool._pool)
    finally:
        if not whole:
            _give_up(pool)
        # Also after an interrupt: the pool's finalizer at exit would wait for ever.
        if writing is not None:
            if not whole:
                # Its holder may have released it after all; then a thread of the pool
                # may have it, for a moment.
                writing.acquire(timeout=WAITING)
            writing.release()  # ours, or that of a dead worker
        reading.acquire(block=False)
        reading.release()  # likewise
    _drain(pool)
    pool.terminate()
    pool.join()


def _end_workers(workers: list[Any]) -> None:
    for worker in workers:
        if worker.exitcode is None:
            worker.terminate()
    for worker in workers:
        worker.join(PATIENCE)
        if worker.exitcode is None:
            worker.kill()
            worker.join()


def _give_up(pool: Any) -> None:
    """Have the thread that reads results end: what comes next begins in mid-message."""
    pool._cache.clear()
    pool._outqueue.put = _nothing
    pool._outqueue._writer.close()


def _drain(pool: Any) -> None:
    """Have the thread that writes tasks end, which may wait for somebody to read.

    The pool would read whole messages, and the first of them may have been begun by a
    worker that is dead.
    """
    writer = pool._task_handler
    writer._state = TERMINATE
    tasks = pool._inqueue._reader
    while writer.is_alive():
        if not tasks.poll(WAITING):
            continue
        if sys.platform == "win32":
            tasks.recv_bytes()  # whole, always
        else:
            os.read(tasks.fileno(), 1 << 16)


def _nothing(message: object) -> None:
    """Write nothing."""
