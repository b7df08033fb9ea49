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
- **One payload a batch**, and large arguments once: see ``cluster_calls.py``.
- **Lost batches.**  What the cluster has lost (a worker died more often than its
  scheduler tolerates, data that was only there) is sent again in parts, so that one
  task that kills its worker is found and takes no other along.
- **Trials.**  A scheduler that counts the deaths of workers counts them against all
  that these workers had been given, not only against what they ran.  So a task that is
  suspected runs once more when nothing else of the call does, and is blamed only if its
  worker dies then too.  New batches wait meanwhile: a worker that dies costs seconds
  in any case, and what killed it would take along what came after.

A `Transport` is how one cluster is spoken to.  It may complete jobs in any thread.
"""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from time import monotonic

from fastjob import failure
from fastjob._core.autobatch import AutoBatch
from fastjob._core.pickling import loads
from fastjob.backends.batch import size_within
from fastjob.backends.callback import CallbackEngine
from fastjob.backends.cluster_calls import ClusterCalls, Parts
from fastjob.errors import ClusterError, TerminatedWorkerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
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
            """What it returned.  Raises `Lost` or `Killed` if there is nothing."""

        def put(self, value: Any) -> Any:
            """Give the cluster a value; what `submit` takes among ``shared``."""

        def cancel(self, jobs: list[Any]) -> None:
            """Drop jobs; what runs may go on where it cannot be stopped."""

        def block(self, jobs: Iterable[Any], timeout: float | None) -> None:
            """Wait for a job, if waiting must be made known to the cluster."""

        def waiting(self) -> AbstractContextManager[Any]:
            """Held while the call waits; a place on a worker may be given up."""

        def check(self) -> None:
            """Raise `ClusterError` if the cluster cannot be reached any more."""

        def close(self) -> None:
            """Forget what this call has put on the cluster."""


# What a batch lasts. A worker waits 1 ms (dask) or 2.5 ms (ray) for its next batch, and
# one of them has half a batch more than the others in the end: for 2 seconds of work
# that adds up to 105 ms at 80 ms a batch or 160, and less in between.
BATCH_NS = 125_000_000
# What it lasts longer for each worker: 500 batches a second are what one scheduler is
# given at most.  See docs/scaling.md for what this does at 10,000 workers.
PER_WORKER_NS = 2_000_000
# What the tuner's own batches last, at first. Later ones may last longer there, since
# idle workers take the tails of others; nobody does here.
TUNER_NS = 10_000_000
# What is sent before the first result, and how long that is waited for before as much
# is sent again.
FIRST_BATCHES = 64
RAMP_SECONDS = 0.05
# How long a result is waited for before it is asked whether the cluster is still there:
# not every client library ends its futures when it is not.
CHECK_SECONDS = 5.0
# Seconds between two questions to the cluster while no result comes.
ASK_SECONDS = 5.0
# How often a single task may be lost.
MOST_LOSSES = 3
# Parts in which a lost batch is sent again.  Finding the task that kills its worker
# takes a scheduler's whole patience with workers for each level: two for 1,000 tasks.
PARTS = 32


class Lost(Exception):
    """A batch whose outcome nobody will ever know."""


class Killed(Exception):
    """A batch that workers had when they died.

    Parameters
    ----------
    certain : bool
        Whether those workers had nothing else.
    """

    def __init__(self, certain: bool) -> None:
        self.certain = certain
        super().__init__(certain)


class Watch:
    """Asks now and then whether something is there, since it may come back.

    Parameters
    ----------
    ask : callable
        Returns what is wrong, an empty text if nothing is.
    patience : float
        Seconds that it may be wrong.
    """

    def __init__(self, ask: Callable[[], str], patience: float) -> None:
        self.ask = ask
        self.patience = patience
        self.asked = monotonic()
        self.since: float | None = None

    def wrong(self) -> str:
        """Return what has been wrong for too long; an empty text if nothing has."""
        now = monotonic()
        if now - self.asked < ASK_SECONDS:
            return ""
        self.asked = now
        reason = self.ask()
        if not reason:
            self.since = None
            return ""
        if self.since is None:
            self.since = now
        return reason if now - self.since >= self.patience else ""


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
        before = self.compute_batch_size()
        tuner.record(n_tasks, int(busy_ns / longer), int(n_bytes / longer))
        if tuner.seen >= tuner.probe and self.compute_batch_size() < 2 * before:
            self.steady = True

    def compute_batch_size(self) -> int:
        """Return how many tasks the next batch should hold."""
        return size_within(self.tuner, TUNER_NS)

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
        # Tasks to be tried alone, as `again` has them; and whether one is.
        self.suspects: deque[tuple[Any, Any, int]] = deque()
        self.trial = False
        self.first_batches = FIRST_BATCHES

    def _waits_for_first(self) -> bool:
        """Whether more batches wait until it is known how long they should be."""
        return not self.session.steady and len(self.in_flight) >= self.first_batches

    def _room(self) -> int:
        return 0 if self._waits_for_first() else super()._room()

    def _patience(self) -> float | None:
        patience = super()._patience()
        most = RAMP_SECONDS if self._waits_for_first() else CHECK_SECONDS
        return most if patience is None else min(patience, most)

    def _give_up(self) -> _Batch | None:
        self.session.transport.check()
        if self._waits_for_first():
            self.first_batches += FIRST_BATCHES
        return super()._give_up()

    def _fill(self, tasks: Iterator[Any]) -> None:
        if not self.suspects and not self.trial:
            super()._fill(tasks)
        elif not self.in_flight:
            calls, task, attempts = self.suspects.popleft()
            self.trial = True
            self._submit(calls, [task], attempts)

    def _wait(self) -> _Batch | None:
        if self.ready.empty():
            self.session.block(self._patience())
        return super()._wait()

    def _settle(self, batch: _Batch) -> list[tuple[int, list[Any]]]:
        self.session.forget(batch.calls)
        trial, self.trial = self.trial, False
        if isinstance(batch.error, (Lost, Killed)):
            batch.live = False
            if len(batch.tasks) > 1:
                self._split(batch)
                return []
            if self._acquit(batch, trial):
                return []
        if batch.error is None:
            results, _, (_, begin, end) = batch.outcome
            moved = sum(len(item[1]) for item in batch.calls.items)
            moved += sum(len(result) for result in results if result is not None)
            self.session.learn(len(results), end - begin, moved)
        return super()._settle(batch)

    def _split(self, batch: _Batch) -> None:
        """Send a batch again, in parts."""
        n = len(batch.tasks)
        step = -(-n // PARTS)
        for start in range(0, n, step):
            tasks = batch.tasks[start : start + step]
            part = batch.calls.part(start, start + step)  # type: ignore[attr-defined]
            self._submit(part, tasks, batch.attempts)

    def _acquit(self, batch: _Batch, trial: bool) -> bool:
        """Have a single task run again; False, and its error, if it may not.

        Parameters
        ----------
        batch : _Batch
            Has one task, and has not come back.
        trial : bool
            Whether nothing else of the call was in flight.
        """
        index = batch.first
        if isinstance(batch.error, Killed):
            if not (trial or batch.error.certain):
                self.suspects.append((batch.calls, batch.tasks[0], batch.attempts))
                return True
            function, args, kwargs = batch.tasks[0]
            name, shown = failure.shorten_parts(
                function, args, kwargs, self.call.show_values
            )
            blamed = TerminatedWorkerError(index, name, shown)
            blamed.__cause__ = batch.error.__cause__
            batch.error = blamed
            return False
        losses = self.losses[index] = self.losses.get(index, 0) + 1
        if losses < MOST_LOSSES:
            self._submit(batch.calls, batch.tasks, batch.attempts)
            return True
        batch.error = ClusterError(
            f"The cluster has lost task {index} {losses} times: {batch.error}."
        )
        return False


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
