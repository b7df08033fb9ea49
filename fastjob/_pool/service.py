"""A call over worker processes that is fed task by task.

Other people's schedulers (joblib's) want `submit` with a callback, not a loop over an
input.  A `Service` is one call of the process engine whose input is a queue, so that
leases, two batches a worker, sharing of large arguments and what happens when a worker
dies are those of any call.

Two threads: the pump runs the dispatch loop, and a reader completes the futures, in
which the callbacks run.  They may take as long as they like, and may submit.

Why no task is left lying: the dispatch loop asks the queue until it says `NOTHING_YET`,
then sleeps on its sockets and on `wake`.

1. `submit` appends the task, then calls `wake`;
2. the loop finds the queue empty, then sleeps.  If 1 appended before 2 looked, the task
   was found; if after, `wake` is called after the look and ends the sleep at once.

Why no future is left pending: a future is in `pending` before its task is in the queue,
and leaves it when it is completed.  When the reader has seen the end of the results it
marks the service as closed, under the same lock under which futures enter; those that
are in `pending` then fail, and later ones fail in `submit`.
"""

from __future__ import annotations

from _thread import get_ident
from collections import deque
from concurrent.futures import Future
from threading import Lock
from time import perf_counter_ns

from fastjob._core.intake import NOTHING_YET
from fastjob._core.starting import start_thread
from fastjob._pool.pump import Pump
from fastjob.errors import TaskError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from fastjob._core.results import ResultStream
    from fastjob._core.wake import Wake

    Feeder = Callable[[Any], Callable[[ResultStream, Wake], None]]


class Feed:
    """The input of the call: a queue that can be empty without being at its end."""

    def __init__(self) -> None:
        self.tasks: deque[Any] = deque()
        self.ended = False

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Any:
        # Looked at first: what was appended before the end was set is still handed out.
        ended = self.ended
        if self.tasks:
            return self.tasks.popleft()
        if ended:
            raise StopIteration
        return NOTHING_YET


def run_timed(number: int, function: Callable[[], Any]) -> tuple[int, Any, int]:
    """In a worker: the number of a task, what it returned, and nanoseconds."""
    begin = perf_counter_ns()
    result = function()
    return number, result, perf_counter_ns() - begin


class Service:
    """Runs callables in worker processes until it is closed.

    Parameters
    ----------
    feeder : callable
        ``feeder(tasks)`` of an engine whose call returns errors and takes one task a
        batch; what it returns is called with a stream and its wake.
    on_time : callable, optional
        Called with a future and the nanoseconds that its callable ran, before the
        future is completed.
    """

    def __init__(
        self,
        feeder: Feeder,
        on_time: Callable[[Future[Any], int], object] | None = None,
    ) -> None:
        self.on_time = on_time
        self.feed = Feed()
        self.run_into = feeder(self.feed)
        self.lock = Lock()
        self.pending: dict[int, Future[Any]] = {}  # guarded by lock
        self.submitted = 0  # guarded by lock
        self.closed: BaseException | None = None  # guarded by lock
        self.pump_thread = 0
        self.pump = Pump(ordered=False)
        results = self.pump.start(self._dispatch)
        self.results = results
        # Not daemonic in effect: it ends with the stream, which the pump's own exit
        # hook closes; as a daemon it does not keep the interpreter from getting there.
        start_thread(self._complete, "fastjob-reader", (results,))

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a callable in some worker.

        Parameters
        ----------
        function : callable
            Takes no arguments; can be pickled.
        """
        future: Future[Any] = Future()
        with self.lock:
            closed = self.closed
            if closed is None:
                number = self.submitted
                self.submitted += 1
                self.pending[number] = future
                # Within the lock: a `TaskError` tells its task by its place in the
                # input, which must be its number.
                self.feed.tasks.append((run_timed, (number, function), {}))
        if closed is None:
            self.pump.wake()
        else:
            future.set_exception(closed)
        return future

    def finish(self) -> None:
        """Take no more tasks and wait until those that were submitted are done."""
        self.feed.ended = True
        self.pump.wake()
        self._wait()

    def abort(self) -> None:
        """Drop what has not started, end what runs, and wait for that."""
        self.pump.stream.close()
        self._wait()

    def _wait(self) -> None:
        # The pump itself can come here, when a garbage collection in it drops a
        # generator of joblib's.
        if get_ident() != self.pump_thread:
            self.pump.ended.acquire()
            self.pump.ended.release()

    def _dispatch(self, stream: ResultStream, wake: Wake) -> None:
        self.pump_thread = get_ident()
        self.run_into(stream, wake)

    def _complete(self, results: Iterator[Any]) -> None:
        end: BaseException = RuntimeError(
            "The call that this task belongs to has ended before the task did."
        )
        try:
            for result in results:
                self._settle(result)
        except BaseException as error:
            end = error
        with self.lock:
            self.closed = end
            left, self.pending = self.pending, {}
        for future in left.values():
            future.set_exception(end)

    def _settle(self, result: Any) -> None:
        failed = type(result) is TaskError
        number = result.index if failed else result[0]
        with self.lock:
            future = self.pending.pop(number)
        if failed:
            future.set_exception(result.exception)
            return
        if self.on_time is not None:
            self.on_time(future, result[2])
        future.set_result(result[1])
