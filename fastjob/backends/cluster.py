"""The engine of clusters: what dask and ray have in common.

A cluster takes callables and gives futures; a scheduler of its own decides where they
run.  So there is nothing to lease and nothing to steal here, and the window of
`CallbackEngine` is the whole dispatch loop.  What this module adds:

- **Batches by the tuner.**  A scheduler takes about a millisecond for each thing that
  it is given, for the whole cluster; so a batch shall last `BATCH_NS`, and longer the
  more workers there are (`PER_WORKER_NS`).
- **A slow start.**  At first nobody knows how many tasks a batch should have.  A window
  full of single tasks would keep the scheduler of 10,000 workers busy for 20 seconds;
  so `FIRST_BATCHES` are in flight until the size has stopped growing, and as many more
  whenever `RAMP_SECONDS` have passed without a result, which is as many as a scheduler
  can take in that time.
- **One payload a batch.**  Tasks are pickled one by one when they are taken from the
  input; callables once a call.  The scheduler only sees bytes.
- **Large arguments once.**  A large argument that is met for the second time, by its
  content, goes to the cluster once, and the tasks refer to it.  By content, and not by
  identity: a buffer that is filled again between two tasks is another value.
- **Lost batches.**  What the cluster has lost (a worker died more often than its
  scheduler tolerates, data that was only there) is sent again in two halves, so that
  one task that kills its worker is found and takes no other along.

A `Transport` is how one cluster is spoken to.  It may complete jobs in any thread.
"""

from __future__ import annotations

from contextlib import nullcontext

from fastjob import failure
from fastjob._core.autobatch import AutoBatch
from fastjob._core.pickling import dumps, loads
from fastjob.backends.batch import GuardedCalls
from fastjob.backends.callback import CallbackEngine
from fastjob.errors import ClusterError, ResultPicklingError, TerminatedWorkerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from typing import Any, Protocol

    from fastjob._core.call import Call
    from fastjob.backends.callback import _Batch

    class Transport(Protocol):
        """One cluster, for one call."""

        n_workers: int

        def submit(
            self, payload: bytes, shared: list[Any], done: Callable[[Any], object]
        ) -> Any:
            """Run ``run_batch(payload, *shared)``, then call ``done(job)``."""

        def fetch(self, job: Any) -> Any:
            """What it returned.  Raises `Lost` if nobody will ever know."""

        def put(self, value: Any) -> Any:
            """Give the cluster a value; what `submit` takes among ``shared``."""

        def cancel(self, jobs: list[Any]) -> None:
            """Drop jobs; what runs may go on where it cannot be stopped."""

        def block(self, jobs: Iterable[Any], timeout: float | None) -> None:
            """Wait for a job, if waiting must be made known to the cluster."""

        def waiting(self) -> AbstractContextManager[Any]:
            """Held while the call waits; a place on a worker may be given up."""

        def close(self) -> None:
            """Forget what this call has put on the cluster."""


# What a batch lasts: a scheduler's millisecond is 1 % of it.
BATCH_NS = 100_000_000
# What it lasts longer for each worker: 500 batches a second are what one scheduler is
# given at most.  See docs/scaling.md for what this does at 10,000 workers.
PER_WORKER_NS = 2_000_000
# What the tuner's own batches last.
TUNER_NS = 10_000_000
# What is sent before the first result, and how long that is waited for before as much
# is sent again.
FIRST_BATCHES = 64
RAMP_SECONDS = 0.05
# How often a single task may be lost.
MOST_LOSSES = 3

_SMALL = (int, float, bool, complex, type(None), str, range)


class Lost(Exception):
    """A batch whose outcome nobody will ever know."""


class Shared:
    """Stands for a large argument in a pickled task."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self.number,)


class ClusterCalls(GuardedCalls):
    """A batch whose tasks and results are pickled one by one.

    An item is a tuple: number of the function, pickled arguments, numbers of the
    shared objects that they refer to.
    """

    functions: dict[int, bytes]
    shared: list[Any]

    @classmethod
    def of(
        cls, first: int, tasks: Iterable[Any], call: Call, parts: Parts
    ) -> ClusterCalls:
        """Capture tasks."""
        calls = cls(first, (), call, True)
        calls.functions = parts.functions
        for index, (function, args, kwargs) in enumerate(tasks, first):
            try:
                number = parts.number_of(function)
                args, kwargs, used = parts.share(args, kwargs)
                item = number, dumps((args, kwargs)), used
            except Exception as error:
                if isinstance(error, (ClusterError, OSError, MemoryError)):
                    raise
                blamed = failure.blame(error, index, function, args, kwargs)
                if not call.return_errors:
                    raise blamed from error
                packed = failure.pack(blamed, str(blamed))
                item = parts.number_of(_raise), dumps(((packed,), {})), ()
            calls.items.append(item)
        return calls

    def half(self, start: int, stop: int) -> ClusterCalls:
        """Return a batch of some of the tasks, as they were captured."""
        part = self.only(start)
        part.items = self.items[start:stop]
        return part  # type: ignore[return-value]

    def payload(self) -> tuple[bytes, list[int]]:
        """Return what is sent, and the numbers of the shared objects it needs."""
        used = sorted({number for item in self.items for number in item[2]})
        numbers = {item[0] for item in self.items}
        functions = {number: self.functions[number] for number in numbers}
        state = (functions, used, self.items, self.first, self.go_on)
        return dumps((state, self.show_values, self.nested)), used

    @classmethod
    def arrived(cls, payload: bytes, shared: tuple[Any, ...]) -> ClusterCalls:
        """Return the batch again, on the worker."""
        state, show_values, nested = loads(payload)
        calls = cls.__new__(cls)
        functions, used, calls.items, calls.first, calls.go_on = state
        calls.show_values = show_values
        calls.nested = nested
        calls.packed = True
        calls.loaded = {n: loads(data) for n, data in functions.items()}
        calls.objects = dict(zip(used, shared, strict=True))
        return calls

    loaded: dict[int, Any]
    objects: dict[int, Any]

    def load(self, item: Any) -> Any:
        number, data, used = item
        args, kwargs = loads(data)
        if used:
            args = tuple(self._found(arg) for arg in args)
            kwargs = {name: self._found(arg) for name, arg in kwargs.items()}
        return self.loaded[number], args, kwargs

    def _found(self, arg: Any) -> Any:
        return self.objects[arg.number] if type(arg) is Shared else arg

    def dump(self, result: Any, offset: int, task: Any) -> bytes:
        try:
            return dumps(result)
        except Exception as error:
            function, args, kwargs = task
            name, arguments = failure.shorten_parts(
                function, args, kwargs, self.show_values
            )
            raise ResultPicklingError(
                self.first + offset, name, arguments, type(result).__name__, str(error)
            ) from error


def _raise(packed: bytes) -> None:
    """Stands for a task that could not be sent; fails like it."""
    raise failure.unpack(packed)


def run_batch(payload: bytes, *shared: Any) -> Any:
    """On a worker: run a batch; what `GuardedCalls.run` returns."""
    return ClusterCalls.arrived(payload, shared)()


class Parts:
    """What several tasks of a call have in common: callables and large arguments.

    Parameters
    ----------
    put : callable
        Gives a value to the cluster.
    large : int
        Size in bytes from which an argument is shared; -1 is never.
    scatter : iterable
        Arguments that are shared by identity, from the beginning.
    """

    def __init__(
        self, put: Callable[[Any], Any], large: int, scatter: Iterable[Any] = ()
    ) -> None:
        self.put = put
        self.large = large
        self.functions: dict[int, bytes] = {}
        # With the callable itself, which keeps its id from being used again.
        self.known: dict[int, tuple[Any, int]] = {}
        self.refs: list[Any] = []
        self.by_id: dict[int, tuple[Any, int]] = {}
        self.by_content: dict[Any, int | None] = {}
        for value in scatter:
            self.by_id[id(value)] = (value, len(self.refs))
            self.refs.append(put(value))

    def number_of(self, function: Any) -> int:
        """Return the number of a callable; it is pickled when it is first met."""
        known = self.known.get(id(function))
        if known is None:
            known = self.known[id(function)] = (function, len(self.functions))
            self.functions[known[1]] = dumps(function)
        return known[1]

    def share(self, args: Any, kwargs: Any) -> tuple[Any, Any, tuple[int, ...]]:
        """Replace large arguments that were met before; the numbers of what stands in.

        Parameters
        ----------
        args, kwargs : sequence, mapping
            Of a task; not changed.
        """
        found = [(at, self._number(arg)) for at, arg in enumerate(args)]
        named = [(name, self._number(arg)) for name, arg in kwargs.items()]
        numbers = [n for _, n in (*found, *named) if n is not None]
        if not numbers:
            return args, kwargs, ()
        args = tuple(
            arg if n is None else Shared(n)
            for arg, (_, n) in zip(args, found, strict=True)
        )
        kwargs = {
            name: kwargs[name] if n is None else Shared(n)  # in the order of kwargs
            for name, n in named
        }
        return args, kwargs, tuple(numbers)

    def _number(self, arg: Any) -> int | None:
        if type(arg) in _SMALL:
            return None
        if self.by_id:
            known = self.by_id.get(id(arg))
            if known is not None:
                return known[1]
        size = getattr(arg, "nbytes", None)
        if size is None and isinstance(arg, (bytes, bytearray)):
            size = len(arg)
        if self.large < 0 or not isinstance(size, int) or size < self.large:
            return None
        content = fingerprint(arg)
        if content not in self.by_content:
            # An argument of one task only would lie on the cluster for nothing.
            self.by_content[content] = None
            return None
        number = self.by_content[content]
        if number is None:
            number = self.by_content[content] = len(self.refs)
            self.refs.append(self.put(arg))
        return number


def fingerprint(value: Any) -> tuple[type, bytes]:
    """Return what two equal values have in common and no two others.

    Costs about a second for each gigabyte, a tenth of what sending it would.
    """
    import pickle
    from hashlib import blake2b

    digest = blake2b(digest_size=16)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    digest.update(stream)
    for buffer in buffers:
        digest.update(buffer.raw())
    return type(value), digest.digest()


class Session:
    """One call on a cluster, as the backend that `CallbackEngine` drives.

    Parameters
    ----------
    transport : Transport
    call : Call
    """

    supports_retrieve_callback = True
    supports_timeout = True
    supports_sharedmem = False

    def __init__(self, transport: Transport, call: Call) -> None:
        self.transport = transport
        self.call = call
        self.tuner = AutoBatch(call.n_jobs, call.batch_size)
        workers = min(call.n_jobs, transport.n_workers)
        aim = max(BATCH_NS, workers * PER_WORKER_NS)
        self.longer = aim / TUNER_NS
        self.steady = call.batch_size > 0  # the size of batches has stopped growing
        self.jobs: dict[int, Any] = {}
        self.parts = Parts(
            transport.put, call.max_nbytes, call.options.get("scatter") or ()
        )

    def batch(
        self, first: int, tasks: Iterable[Any], call: Call, packed: bool
    ) -> ClusterCalls:
        """Capture the tasks of a batch."""
        return ClusterCalls.of(first, tasks, call, self.parts)

    def submit(self, calls: ClusterCalls, callback: Callable[[Any], object]) -> Any:
        """Send a batch."""
        payload, used = calls.payload()
        shared = [self.parts.refs[number] for number in used]
        job = self.jobs[id(calls)] = self.transport.submit(payload, shared, callback)
        return job

    def retrieve_result_callback(self, job: Any) -> Any:
        """Return what a batch returned."""
        return self.transport.fetch(job)

    def forget(self, calls: Any) -> None:
        """Let go of a batch that has ended."""
        self.jobs.pop(id(calls), None)

    def learn(self, n_tasks: int, busy_ns: int, n_bytes: int) -> None:
        """Tell the tuner how long a batch took on its worker."""
        longer = self.longer
        tuner = self.tuner
        before = tuner.size
        tuner.record(n_tasks, int(busy_ns / longer), int(n_bytes / longer))
        if tuner.seen >= tuner.probe and tuner.size < 2 * before:
            self.steady = True

    def compute_batch_size(self) -> int:
        """Return how many tasks the next batch should hold."""
        return self.tuner.size

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Not needed: `learn` is told what the worker measured."""

    def block(self, timeout: float | None) -> None:
        """Wait in the way of the cluster."""
        self.transport.block(self.jobs.values(), timeout)

    def cancel(self, job: Any) -> None:
        """Drop one batch."""
        self.transport.cancel([job])

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Drop all batches."""
        jobs, self.jobs = list(self.jobs.values()), {}
        if jobs:
            self.transport.cancel(jobs)

    def retrieval_context(self) -> AbstractContextManager[Any]:
        """Return what is held while the call waits."""
        return self.transport.waiting()

    def stop_call(self) -> None:
        """The call has ended: let go of everything."""
        self.jobs.clear()
        self.parts.refs.clear()
        self.transport.close()


class _Maker:
    """Makes the batches of a session; reads what came back."""

    def __init__(self, session: Session) -> None:
        self.make = session.batch

    def __call__(self, *args: Any) -> ClusterCalls:
        return self.make(*args)

    @staticmethod
    def read(outcome: Any) -> Any:
        results, failures, span = outcome
        return [r if r is None else loads(r) for r in results], failures, span


class ClusterEngine(CallbackEngine):
    """Runs one call on a cluster.

    Parameters
    ----------
    transport : Transport
    call : Call
    """

    def __init__(self, transport: Transport, call: Call) -> None:
        self.session = Session(transport, call)
        super().__init__(self.session, call)
        self.make_calls = _Maker(self.session)
        self.losses: dict[int, int] = {}
        self.first_batches = FIRST_BATCHES

    def _waits_for_first(self) -> bool:
        """Whether more batches wait until it is known how long they should be."""
        return not self.session.steady and len(self.in_flight) >= self.first_batches

    def _room(self) -> int:
        return 0 if self._waits_for_first() else super()._room()

    def _patience(self) -> float | None:
        patience = super()._patience()
        if not self._waits_for_first():
            return patience
        return RAMP_SECONDS if patience is None else min(patience, RAMP_SECONDS)

    def _give_up(self) -> _Batch | None:
        if self._waits_for_first():
            self.first_batches += FIRST_BATCHES
        return super()._give_up()

    def _wait(self) -> _Batch | None:
        if self.ready.empty():
            self.session.block(self._patience())
        return super()._wait()

    def _settle(self, batch: _Batch) -> list[tuple[int, list[Any]]]:
        self.session.forget(batch.calls)
        if isinstance(batch.error, (Lost, TerminatedWorkerError)) and self._resend(
            batch
        ):
            return []
        if batch.error is None:
            results, _, (_, begin, end) = batch.outcome
            moved = sum(len(item[1]) for item in batch.calls.items)
            moved += sum(len(result) for result in results if result is not None)
            self.session.learn(len(results), end - begin, moved)
        return super()._settle(batch)

    def _resend(self, batch: _Batch) -> bool:
        """Send a lost batch again, in halves; False if it was lost too often."""
        n = len(batch.tasks)
        if n == 1:
            losses = self.losses[batch.first] = self.losses.get(batch.first, 0) + 1
            if losses >= MOST_LOSSES or isinstance(batch.error, TerminatedWorkerError):
                if isinstance(batch.error, Lost):
                    batch.error = ClusterError(
                        f"The cluster has lost task {batch.first} {losses} times: "
                        f"{batch.error}."
                    )
                return False
        batch.live = False
        middle = (n + 1) // 2
        for start, stop in ((0, middle), (middle, n)):
            if start < stop:
                part = batch.calls.half(start, stop)  # type: ignore[attr-defined]
                self._submit(part, batch.tasks[start:stop], batch.attempts)
        return True


def count_cluster(n_jobs: int | None, total: int) -> int:
    """Return the number of workers that `n_jobs` stands for on a cluster.

    Raises
    ------
    ValueError
        If `n_jobs` is 0.
    """
    if n_jobs == 0:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(total + 1 + n_jobs, 1)


def no_context() -> AbstractContextManager[Any]:
    """Return a context manager that does nothing."""
    return nullcontext()
