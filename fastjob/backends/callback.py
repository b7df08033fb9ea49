"""The engine of backends that offer `submit(func, callback)` and no more.

Guarantees: at most ``call.ahead`` tasks (or batches) are taken from the input and not
completed; results are complete and in order; when a call ends, in whatever way, the
backend is told to drop what is still in flight and that the call has ended.

Assumes of the backend that it calls the callback once for each batch, in any thread,
also from within `submit`, and also when the batch has failed; then
`retrieve_result_callback` returns what the batch returned, or raises.  A backend that
does not set `supports_retrieve_callback` is asked for its batches one after the other,
in the order of submission, by the thread that runs the call: such backends (of the
time before joblib 1.3) need not call the callback when a batch fails, so a failure can
only be seen that way.

All that has ended is looked at before more is submitted, so nothing is submitted once
a failure that ends the call is known.  That spares work, and joblib's loky backend the
one thing it does not survive: to be told to kill its workers while what was submitted
last has not been noticed by its own thread.

Only the thread that runs the call takes input, submits and counts.  A callback does
nothing but fetch its result and put its batch on a queue, so the only state shared
between threads is that queue, whose `put` never blocks.  The call may also be closed by
another thread: None on the queue wakes the one that waits, and what the backend then
says to it (of a pool that has ended, say) is not heard.  A callback that comes after
its call has ended, or after its batch was given up, puts its batch on a queue that
nobody reads, or is recognised by `live` being false.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from time import perf_counter

from fastjob import failure
from fastjob._core.delayed import checked_task
from fastjob.backends.batch import GuardedCalls
from fastjob.errors import TaskError
from fastjob.results import CUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from fastjob._core.call import Call

# A stream in the order of the tasks may hold this many windows of finished results
# behind one slow task before the input is taken no further.
STREAM_WINDOWS = 8


class _Batch:
    """A batch as the caller sees it, and the callback that is given to `submit`."""

    __slots__ = (
        "attempts",
        "calls",
        "clock",
        "elapsed",
        "engine",
        "error",
        "first",
        "job",
        "live",
        "outcome",
        "submitted",
        "tasks",
    )

    def __init__(
        self,
        engine: CallbackEngine,
        calls: GuardedCalls,
        tasks: list[Any],
        attempts: int,
    ) -> None:
        self.engine = engine
        self.calls = calls
        self.first = calls.first
        self.tasks = tasks
        self.attempts = attempts
        self.live = True  # written by the caller only
        self.job: Any = None
        self.submitted = perf_counter()
        self.clock: float | None = None  # when it is taken to have started
        self.elapsed = 0.0
        self.outcome: Any = None
        self.error: BaseException | None = None

    def end(self) -> None:
        """Take no result any more; let go of the job, which refers to this batch."""
        self.live = False
        self.job = None

    def __call__(self, out: Any = None, *_: Any) -> None:
        """Take the result, in whatever thread the backend calls this."""
        engine = self.engine
        self.elapsed = perf_counter() - self.submitted
        if not engine.by_callback or not self.live:
            return
        try:
            self.outcome = engine.backend.retrieve_result_callback(out)
        except BaseException as error:  # also what a worker's exit was turned into
            self.error = error
        engine.ready.put(self)

    # joblib's backends may call this on the callback.
    def register_job(self, job: Any) -> None:
        self.job = job


class CallbackEngine:
    """Runs one call on a backend of joblib's protocol.

    Parameters
    ----------
    backend : object
        Has `submit`, and `retrieve_result_callback` or `retrieve_result`.
    call : Call
        What to do.
    """

    def __init__(self, backend: Any, call: Call) -> None:
        self.backend = backend
        self.call = call
        self.by_callback = bool(getattr(backend, "supports_retrieve_callback", False))
        self.packed = not getattr(backend, "supports_sharedmem", False)
        self.make_calls = getattr(backend, "batch_class", GuardedCalls)
        self.ready: SimpleQueue[_Batch | None] = SimpleQueue()  # None: closed
        # In order of submission. Written by the caller only.
        self.in_flight: dict[int, _Batch] = {}
        # What is to be run again: the batch of one, its task, the attempt.
        self.again: deque[tuple[GuardedCalls, Any, int]] = deque()
        self.n_taken = 0
        self.n_in_flight = 0  # tasks
        self.n_waiting = 0  # tasks finished and not handed over (streams)
        self.exhausted = False
        self.open = True
        self.was_cut = False
        self.complete = False
        self.context: Any = None
        if call.timeout > 0 and not getattr(backend, "supports_timeout", True):
            self.timeout = 0.0
        else:
            self.timeout = call.timeout

    # The contract

    def run(self, tasks: Iterator[Any]) -> list[Any]:
        """Run all tasks and return their results in order."""
        found: dict[int, list[Any]] = {}
        try:
            self._begin(tasks)
            for first, results in self._completed(tasks):
                found[first] = results
            if not self.complete:
                raise RuntimeError(CUT)
        finally:
            self.close()
        return [result for first in sorted(found) for result in found[first]]

    def stream(self, tasks: Iterator[Any]) -> _Stream:
        """Start the tasks and return an iterator over their results."""
        try:
            self._begin(tasks)
            if self.was_cut:
                raise RuntimeError(CUT)
        except BaseException:
            self.close()
            raise
        return _Stream(self, tasks)

    def close(self) -> None:
        """End the call, from any thread; harmless the second time."""
        if not self.open:
            return
        self.open = False
        backend = self.backend
        # Whoever runs the call may be looking at the old ones.
        in_flight, self.in_flight = self.in_flight, {}
        for batch in list(in_flight.values()):
            batch.live = False
        self.ready.put(None)
        try:
            if not self.complete:
                parallel = getattr(backend, "parallel", None)
                managed = getattr(parallel, "_managed_backend", False)
                backend.abort_everything(ensure_ready=managed)
        finally:
            context, self.context = self.context, None
            if context is not None:
                context.__exit__(None, None, None)
            stop = getattr(backend, "stop_call", None)
            if stop is not None:
                stop()

    def cut(self) -> None:
        """End the call, from any thread: the with block ends, and its workers do."""
        if self.open:
            self.was_cut = True
            self.close()

    # Taking and submitting

    def _begin(self, tasks: Iterator[Any]) -> None:
        start = getattr(self.backend, "start_call", None)
        if start is not None:
            start()
        self._fill(tasks)
        enter = getattr(self.backend, "retrieval_context", None)
        if enter is not None and self.open:
            self.context = enter()
            self.context.__enter__()

    def _room(self) -> int:
        """Tasks that may be taken now; 0 when the window is full."""
        call = self.call
        size: int = call.batch_size or self.backend.compute_batch_size()
        if self.timeout:
            # So that a batch that takes too long is a task that does.
            size = 1
        if not call.ahead:
            return size
        if self.n_waiting > STREAM_WINDOWS * call.ahead * size:
            return 0
        if call.ahead_in_batches:
            return size if len(self.in_flight) < call.ahead else 0
        # A large batch must not take the whole window for one worker.
        share = -(-call.ahead // call.n_jobs)
        return min(size, share, call.ahead - self.n_in_flight)

    def _fill(self, tasks: Iterator[Any]) -> None:
        while self.again:
            calls, task, attempts = self.again.popleft()
            self._submit(calls, [task], attempts)
        while self.open and not self.exhausted:
            room = self._room()
            if room <= 0:
                return
            taken: list[Any] = []
            calls = self.make_calls(
                self.n_taken,
                _recorded(islice(tasks, room), taken, self.n_taken),
                self.call,
                self.packed,
            )
            self.exhausted = len(taken) < room
            if taken:
                self.n_taken += len(taken)
                counters = self.call.counters
                counters.dispatched_tasks += len(taken)
                counters.dispatched_batches += 1
                self._submit(calls, taken, 1)

    def _submit(self, calls: GuardedCalls, tasks: list[Any], attempts: int) -> None:
        batch = _Batch(self, calls, tasks, attempts)
        self.in_flight[batch.first] = batch
        self.n_in_flight += len(tasks)
        try:
            batch.job = self.backend.submit(calls, callback=batch)
        except Exception:
            if self.open:
                raise

    # Waiting and collecting

    def _completed(self, tasks: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Yield the index of a first task and results, in order of completion.

        It ends early, without `complete`, where the call was closed.
        """
        while self.open:
            if not self.in_flight:
                # A consumer that has caught up has made room again.
                self._fill(tasks)
                if not self.in_flight:
                    self.complete = self.open
                    return
            settled = []
            for batch in self._arrivals():
                self.in_flight.pop(batch.first, None)
                self.n_in_flight -= len(batch.tasks)
                settled.append(self._settle(batch))
            for done in settled:
                n_done = sum(len(results) for _, results in done)
                self.call.counters.completed_tasks += n_done
                if n_done and self.call.on_batch is not None:
                    self.call.on_batch(n_done)
            self._fill(tasks)
            for done in settled:
                yield from done

    def _arrivals(self) -> Iterator[_Batch]:
        """Wait until one has ended or was given up, and yield all that have ended."""
        batch = self._wait()
        if batch is not None:
            yield batch
        while not self.ready.empty():
            batch = self.ready.get()
            if batch is not None and batch.live:
                yield batch

    def _wait(self) -> _Batch | None:
        """Return a batch that has ended; None if one was given up, or all were."""
        batch: _Batch | None
        if not self.by_callback:
            batch = next(iter(self.in_flight.values()), None)
            if batch is None:
                return None
            try:
                batch.outcome = self.backend.retrieve_result(
                    batch.job, timeout=self.timeout or None
                )
            except Exception as error:
                batch.error = error
            return batch if self.open else None
        while True:
            try:
                batch = self.ready.get(timeout=self._patience())
            except Empty:
                return self._give_up()
            if batch is None or batch.live:
                return batch

    def _patience(self) -> float | None:
        """Return the seconds until the next task has run for too long.

        The backend does not say when a task starts. As many batches as there are
        workers are taken to run, the oldest ones first.
        """
        if not self.timeout:
            return None
        now = perf_counter()
        first_end = None
        for batch in islice(self.in_flight.values(), self.call.n_jobs):
            if batch.clock is None:
                batch.clock = now
            end = batch.clock + self.timeout
            first_end = end if first_end is None else min(end, first_end)
        return None if first_end is None else max(first_end - now, 0.0)

    def _give_up(self) -> _Batch | None:
        """End the tasks that have run for too long; the others start again."""
        now = perf_counter()
        running = list(islice(self.in_flight.values(), self.call.n_jobs))
        late = [b for b in running if b.clock is not None]
        late = [b for b in late if now - b.clock >= self.timeout]  # type: ignore[operator]
        if not late:
            return None
        batch = late[0]
        function, args, kwargs = batch.tasks[0]
        from fastjob.errors import TaskTimeoutError

        name, arguments = failure.shorten_parts(
            function, args, kwargs, self.call.show_values
        )
        cancel = getattr(self.backend, "cancel", None)
        if cancel is not None:
            # What the callback is told of the cancellation must not count.
            batch.live = False
            cancel(batch.job)
        batch.error = TaskTimeoutError(batch.first, name, arguments, self.timeout)
        if cancel is not None:
            return batch
        if self.call.return_errors or self.call.retries:
            # The backend can only stop everything; ours keeps what batches refer to.
            restart = getattr(self.backend, "restart_workers", None)
            if restart is None:
                self.backend.abort_everything(ensure_ready=True)
            else:
                restart()
            others = [b for b in self.in_flight.values() if b is not batch]
            for other in others:
                other.end()
                del self.in_flight[other.first]
                self.n_in_flight -= len(other.tasks)
            for other in others:
                self._submit(other.calls, other.tasks, other.attempts)
        return batch

    def _settle(self, batch: _Batch) -> list[tuple[int, list[Any]]]:
        """Return the results of a batch that has ended, task errors among them.

        Tasks that are to be run again are put aside.
        """
        call = self.call
        batch.end()
        if batch.error is not None:
            failures = [(i, batch.error, "", 0.0) for i in range(len(batch.tasks))]
            results: list[Any] = [None] * len(batch.tasks)
        else:
            results, failures, span = self.make_calls.read(batch.outcome)
            if call.timeline is not None:
                call.timeline.batch(*span, len(results), batch.first)
            if not failures:
                self.backend.batch_completed(len(batch.tasks), batch.elapsed)
                return [(batch.first, results)]
        lost = set()
        for offset, sent, text, elapsed in failures:
            index = batch.first + offset
            error = failure.unpack(sent) if isinstance(sent, bytes) else sent
            if batch.attempts <= call.retries:
                call.counters.retried_tasks += 1
                self.again.append(
                    (batch.calls.only(offset), batch.tasks[offset], batch.attempts + 1)
                )
                lost.add(offset)
                continue
            call.counters.failed_tasks += 1
            if not call.return_errors:
                raise error
            failure.drop_frames(error)
            results[offset] = TaskError(index, error, text, batch.attempts, elapsed)
        if not lost:
            return [(batch.first, results)]
        return [
            (batch.first + offset, [result])
            for offset, result in enumerate(results)
            if offset not in lost
        ]


def _recorded(tasks: Iterable[Any], taken: list[Any], first: int) -> Iterator[Any]:
    """Pass on tasks one by one, and keep them; what is no task is a TypeError here."""
    for index, item in enumerate(tasks, first):
        task = checked_task(item, index)
        taken.append(task)
        yield task


class _Stream:
    """Iterates over the results of a call of a `CallbackEngine`."""

    def __init__(self, engine: CallbackEngine, tasks: Iterator[Any]) -> None:
        self.engine = engine
        self.results = self._ordered(tasks) if engine.call.ordered else self._any(tasks)

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Any:
        engine = self.engine
        try:
            if not engine.open:
                raise StopIteration
            return next(self.results)
        except BaseException as error:
            self.close()
            cut = engine.was_cut and not engine.complete
            if cut and isinstance(error, Exception):
                raise RuntimeError(CUT) from error
            raise

    def close(self) -> None:
        """End the call, from any thread."""
        self.engine.close()
        # A thread that is inside has been woken, and leaves by itself.
        with suppress(ValueError):
            self.results.close()

    def _any(self, tasks: Iterator[Any]) -> Any:
        for _, results in self.engine._completed(tasks):
            yield from results

    def _ordered(self, tasks: Iterator[Any]) -> Any:
        engine = self.engine
        early: dict[int, list[Any]] = {}
        turn = 0
        for first, results in engine._completed(tasks):
            early[first] = results
            engine.n_waiting += len(results)
            while turn in early:
                results = early.pop(turn)
                turn += len(results)
                engine.n_waiting -= len(results)
                yield from results
