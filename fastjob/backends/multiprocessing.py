"""Worker processes of ``multiprocessing.pool``, with any start method.

The pool is made for a call, or for the ``with`` block of a `Parallel`, and is driven
by `callback.CallbackEngine`.  Four things are added to what the pool does by itself:

- A task is pickled when it is taken from the input, and each result by itself, so
  that a buffer which the caller fills again does not change a task, and what cannot
  be pickled is named.
- Large arguments and results travel through shared memory, see ``mapped`` and
  ``returned``.
- Tasks find the caller's state, and what they say comes back, see ``followed``.
- The pool replaces a worker that has died and waits for its batch for ever. A thread
  watches the workers: when one ends with an exit code, the batches in flight fail.
  The pool does not tell which batch that worker had. If no worker is left and the
  pool could not start another, they fail too.
"""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import warnings
from multiprocessing import connection
from multiprocessing.pool import Pool

from fastjob import failure
from fastjob._core.inheriting import settle_forks
from fastjob._core.starting import start_thread
from fastjob._pool.memory import folder_of
from fastjob._pool.notes import hear
from fastjob.backends import followed
from fastjob.backends.base import (
    AutoBatchingMixin,
    ParallelBackendBase,
    count_workers,
)
from fastjob.backends.batch import GuardedCalls
from fastjob.backends.mapped import Arguments, Lender, forks, lends
from fastjob.backends.pool_end import end_pool
from fastjob.backends.returned import Receiver, begin, lending, receives
from fastjob.errors import ResultPicklingError, TerminatedWorkerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from fastjob._core.call import Call
    from fastjob.parallel import Parallel

# Seconds between two looks while the pool is replacing a worker; the pool itself
# looks every 0.1 seconds.
REPLACING = 0.05

_NO_WORKER = (
    "The multiprocessing backend has no worker left, and could not start another one; "
    "stderr says why. Too many processes, or too little memory, are common causes: "
    "free some, or ask for fewer workers."
)


def _dumps(obj: Any) -> bytes:
    try:
        return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        data: bytes = cloudpickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
        return data


class _Unsent:
    """Takes the place of a task that could not be pickled; fails in the worker."""

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def __call__(self) -> None:
        raise failure.unpack(self.packed)


class PickledCalls(GuardedCalls):
    """A batch whose tasks and results are pickled one by one.

    Parameters
    ----------
    first, tasks, call, packed
        As of `GuardedCalls`.
    state : bytes
        What `followed.capture` made for the call.
    lender : Lender or None
        Takes the large buffers of arguments.
    """

    def __init__(
        self,
        first: int,
        tasks: Iterable[Any],
        call: Call,
        packed: bool,
        state: bytes,
        lender: Lender | None,
    ) -> None:
        super().__init__(first, (), call, packed)
        self.state = state
        self.returning = folder_of(call.temp_folder), call.n_jobs
        self.number = 0 if lender is None else lender.begin()
        for index, task in enumerate(tasks, first):
            function, args, kwargs = task
            sent = function, args, kwargs
            try:
                if lender is None:
                    self.items.append(_dumps(sent))
                else:
                    self.items.append(lender.dump(sent, call, self.number))
            except Exception as error:
                blamed = failure.blame(error, index, function, args, kwargs)
                if not call.return_errors:
                    raise blamed from error
                unsent = _Unsent(failure.pack(blamed, str(blamed)))
                self.items.append(_dumps((unsent, (), {})))

    def run(self) -> Any:
        """As of `GuardedCalls`; and what the tasks have said, the batch's number, if
        its memory is free again, and the key of this worker's lending."""
        self.mapped: list[Any] = []
        self.lending = lending(*self.returning)
        before = forks()
        (results, failures, span), said = followed.run(self.state, super().run)
        alive = any(mapping() is not None for mapping in self.mapped)
        kept = alive or forks() != before
        number = 0 if kept or failures else self.number
        if self.lending is None:
            return results, failures, span, said, number, b""
        lent = self.lending.lend(results)
        return lent, failures, span, said, number, self.lending.key

    def only(self, offset: int) -> GuardedCalls:
        """Return a batch of one task of this one, which shares its memory."""
        one = super().only(offset)
        one.number = 0  # type: ignore[attr-defined]
        return one

    def load(self, item: Any) -> Any:
        if type(item) is not Arguments:
            return pickle.loads(item)
        task, made = item.open()
        self.mapped += made
        return task

    def dump(self, result: Any, offset: int, task: Any) -> Any:
        try:
            if self.lending is None:
                return _dumps(result)
            try:
                return self.lending.dump(result)
            except OSError:
                return _dumps(result)  # there is no room
        except Exception as error:
            function, args, kwargs = task
            name, arguments = failure.shorten_parts(
                function, args, kwargs, self.show_values
            )
            raise ResultPicklingError(
                self.first + offset, name, arguments, type(result).__name__, str(error)
            ) from error


class _Maker:
    """Makes the batches of a pool, and reads what comes of them.

    Parameters
    ----------
    batches : int or None
        After how many a worker is replaced.
    """

    def __init__(self, batches: int | None) -> None:
        self.batches = batches
        self.lender: Lender | None = None
        self.receiver = Receiver(batches) if receives() else None
        self.call: Call | None = None
        self.state = b""

    def __call__(
        self, first: int, tasks: Iterable[Any], call: Call, packed: bool
    ) -> PickledCalls:
        if self.call is not call:
            self.call, self.state = call, followed.capture(call)
        lender = None
        if lends(call):
            lender = self.lender = self.lender or Lender(call)
        return PickledCalls(first, tasks, call, packed, self.state, lender)

    def read(self, outcome: Any) -> Any:
        results, failures, span, said, number, key = outcome
        if self.lender is not None:
            self.lender.returned(number)
        if self.receiver is not None:
            loaded = self.receiver.load(key, results)
        else:
            loaded = [r if r is None else pickle.loads(r) for r in results]
        for note in said:
            hear(note)
        return loaded, failures, span

    def renew(self) -> None:
        """All workers have ended, and others will start.

        Batches made before will be sent to those: their arguments stay where they are.
        """
        if self.receiver is not None:
            self.receiver.close()
            self.receiver = Receiver(self.batches)

    def close(self) -> None:
        """All workers have ended; harmless the second time."""
        lender, self.lender = self.lender, None
        if lender is not None:
            lender.close()
        if self.receiver is not None:
            self.receiver.close()


class _RecordingContext:
    """A ``multiprocessing`` context that keeps the processes it makes."""

    def __init__(self, context: Any, made: list[Any]) -> None:
        self._context = context
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *args: Any, **kwargs: Any) -> Any:
        process = self._context.Process(*args, **kwargs)
        self._made.append(process)
        return process


class _Watch:
    """Calls `tell` with a `TerminatedWorkerError` for each worker that dies.

    Parameters
    ----------
    made : list
        The processes; grows while the pool replaces some. Those that have ended are
        taken out: each has two descriptors.
    starter : Thread
        Replaces them; an error in it is its end. Once no worker is left then, `tell`
        is called again and again, for batches that are submitted later.
    tell : callable
        Called in the thread of the watch.
    """

    def __init__(
        self, made: list[Any], starter: Any, tell: Callable[[BaseException], None]
    ) -> None:
        self.made = made
        self.starter = starter
        self.tell = tell
        self.n_workers = len(made)
        self.stopped, self._stop = connection.Pipe(duplex=False)
        self.thread = start_thread(self._run, "fastjob-multiprocessing-watch")

    def _run(self) -> None:
        while True:
            alive = {p.sentinel: p for p in self.made if _started(p)}
            patience = None if len(alive) >= self.n_workers else REPLACING
            ready = connection.wait([*alive, self.stopped], patience)
            if self.stopped in ready:
                return
            for sentinel in ready:
                self._ended(alive[sentinel])
            if not alive and not self.starter.is_alive():
                self.tell(RuntimeError(_NO_WORKER))

    def _ended(self, process: Any) -> None:
        # The pool's own thread may be the one that reaps it; the code is there as
        # soon as either has.
        while process.exitcode is None:
            process.join(REPLACING)
        self.made.remove(process)
        if process.exitcode:
            self.tell(TerminatedWorkerError(pid=process.pid, exitcode=process.exitcode))

    def stop(self) -> None:
        self._stop.send_bytes(b"x")  # its end would not be seen: workers have it too
        self.thread.join()
        self.stopped.close()
        self._stop.close()


def _started(process: Any) -> bool:
    return process.pid is not None


class MultiprocessingBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs tasks in the processes of a ``multiprocessing.pool.Pool``.

    Parameters
    ----------
    nesting_level : int, optional
        As for every backend.
    inner_max_num_threads : int, optional
        Not supported.
    context : multiprocessing context or str, optional
        A context, or the name of a start method.
    initializer, initargs : callable and tuple, optional
        Called in each worker when it starts.
    maxtasksperchild : int, optional
        Batches after which a worker is replaced.
    """

    supports_retrieve_callback = True
    valid_options = frozenset(
        {"context", "initializer", "initargs", "maxtasksperchild"}
    )

    batch_class: _Maker | None = None
    _pool: Pool | None = None
    _watch: _Watch | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of processes; 1 where there can be none."""
        count = count_workers(n_jobs)
        if count == 1:
            return 1
        if multiprocessing.current_process().daemon:
            reason = "cannot be nested"
        elif not (self.in_main_thread() or self.nesting_level == 0):
            reason = "cannot be nested below threads"
        else:
            return count
        warnings.warn(
            f"Multiprocessing-backed parallel loops {reason}, setting n_jobs=1",
            stacklevel=5,
        )
        return 1

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Parallel[Any] | None = None,
        prefer: str | None = None,
        require: str | None = None,
        **options: Any,
    ) -> int:
        """Start the workers and return their number."""
        n_workers = self.effective_n_jobs(n_jobs)
        if n_workers == 1:
            return 1
        self.parallel = parallel
        options = {**self.backend_kwargs, **options}
        self.batch_class = _Maker(options.get("maxtasksperchild"))
        try:
            self._start(self.batch_class, n_workers, options)
        except BaseException:
            self.terminate()  # nobody else will
            raise
        return n_workers

    def _start(self, maker: _Maker, n_workers: int, options: dict[str, Any]) -> None:
        self._started = maker, n_workers, options
        context = options.get("context")
        if context is None or isinstance(context, str):
            context = multiprocessing.get_context(context)
        made: list[Any] = []
        receiver = maker.receiver
        self._in_flight: dict[Any, None] = {}
        # What is garbage now would be so in every worker.
        gc.collect()
        with followed.interrupts_blocked(context):
            self._pool = Pool(
                n_workers,
                begin,
                (
                    None if receiver is None else receiver.way,
                    followed.start,
                    (options.get("initializer"), tuple(options.get("initargs", ()))),
                ),
                options.get("maxtasksperchild"),
                context=_RecordingContext(context, made),
            )
        starter = self._pool._worker_handler  # type: ignore[attr-defined]
        self._watch = _Watch(made, starter, self._fail)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None
    ) -> Any:
        """Hand a batch to the pool."""
        assert self._pool is not None and callback is not None
        self._in_flight[callback] = None

        def done(out: Any) -> None:
            # Of the pool's thread and the watch, whoever comes first reports.
            try:
                del self._in_flight[callback]
            except KeyError:
                return
            callback(out)

        return self._pool.apply_async(func, (), callback=done, error_callback=done)

    def _fail(self, error: BaseException) -> None:
        """Have all batches in flight fail; called by the watch."""
        for callback in list(self._in_flight):
            try:
                del self._in_flight[callback]
            except KeyError:
                continue
            callback(error)

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return what a batch returned, or raise its error."""
        if isinstance(out, BaseException):
            raise out
        return out

    def restart_workers(self) -> None:
        """End the workers and start others, for the batches that there are."""
        maker, n_workers, options = self._started
        self._end_workers()
        maker.renew()
        self._start(maker, n_workers, options)

    def terminate(self) -> None:
        """End the workers."""
        self._end_workers()
        if self.batch_class is not None:
            self.batch_class.close()
        self.parallel = None
        self.reset_batch_stats()

    def _end_workers(self) -> None:
        pool, self._pool = self._pool, None
        watch, self._watch = self._watch, None
        if watch is not None:
            # First, or it would report that the workers end.
            watch.stop()
        if pool is not None:
            end_pool(pool)
            settle_forks()  # of what was lent to this process when they were forked

    def stop_call(self) -> None:
        """Let go of the call's arrays."""
        if self.batch_class is not None and self.batch_class.lender is not None:
            self.batch_class.lender.forget()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the workers, and start others if calls will follow."""
        parallel = self.parallel
        self.terminate()
        if ensure_ready and parallel is not None:
            self.configure(
                n_jobs=parallel.n_jobs, parallel=parallel, **parallel._backend_kwargs
            )
