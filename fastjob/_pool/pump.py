"""A thread that runs a call while its results are read one by one.

Only a generator needs one: work shall go on between two ``next``. The thread owns the
dispatch loop and all of its workers; the reader shares with it nothing but the stream
of results. When the reader goes away, the stream is closed, which wakes the thread;
it ends the call, gives the workers back, and ends.
"""

from __future__ import annotations

import atexit
from _thread import allocate_lock, start_new_thread
from contextvars import copy_context

from fastjob._core.forks import register_at_fork
from fastjob._core.results import ResultIterator, ResultStream, feed
from fastjob._core.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of results that may wait for their reader; one batch more can be on its way.
HELD_BYTES = 32 << 20

#: Seconds that the end of the interpreter waits for a thread.
EXIT_PATIENCE = 1.0


class Pump:
    """One call that feeds a stream."""

    running: set[Pump] = set()  # noqa: RUF012 - of all pumps, on purpose

    def __init__(self, ordered: bool) -> None:
        self.wake = Wake()
        self.stream = ResultStream(ordered, 1, HELD_BYTES, self.wake)
        self.ended = allocate_lock()

    def start(self, run: Callable[[ResultStream, Wake], None]) -> ResultIterator:
        """Run ``run(stream, wake)`` in a thread; an iterator over the results."""
        # Made first: if the rest is interrupted, its end closes the stream.
        reader = ResultIterator(self.stream)
        self.ended.acquire()
        Pump.running.add(self)
        context = copy_context()
        try:
            start_new_thread(context.run, (feed, self, run))
        except BaseException:
            Pump.running.discard(self)
            raise
        return reader


def stop_all() -> None:
    """At exit: end the calls whose results nobody will read any more."""
    pumps = list(Pump.running)
    for pump in pumps:
        pump.stream.close()
    for pump in pumps:
        pump.ended.acquire(timeout=EXIT_PATIENCE)


atexit.register(stop_all)
register_at_fork(after_in_child=Pump.running.clear)
