"""Transports of the cluster engine without a cluster.

``python tests/fake_cluster.py`` prints the table of docs/scaling.md.
"""

from __future__ import annotations

import heapq
from contextlib import nullcontext

from fastjob._core.call import Call
from fastjob._core.pickling import dumps
from fastjob.backends.cluster import CHECK_SECONDS, ClusterEngine, Killed, Lost
from fastjob.backends.cluster_calls import ClusterCalls, run_batch


class InlineTransport:
    """Runs each batch when the engine waits for one.

    Parameters
    ----------
    lose : set of int
        Tasks whose batches are lost.
    kill : set of int
        Tasks that kill their worker; the next batch in the queue was given to it too.
    """

    n_workers = 2

    def __init__(self, lose=(), kill=()):
        self.queue = []
        self.sent = []
        self.values = []
        self.cancelled = []
        self.closed = 0
        self.lose = lose
        self.kill = kill
        self.dead = []

    def submit(self, payload, shared, done):
        calls = ClusterCalls.arrived(payload, tuple(shared))
        indices = range(calls.first, calls.first + len(calls.items))
        self.sent.append((indices, len(payload)))
        job = [payload, shared, done, indices]
        self.queue.append(job)
        return job

    def fetch(self, job):
        if job in self.dead:
            raise Killed(certain=False)
        if any(index in self.lose for index in job[3]):
            raise Lost("the worker was struck by lightning")
        return run_batch(job[0], *job[1])

    def put(self, value):
        self.values.append(value)
        return value

    def cancel(self, jobs):
        self.cancelled += jobs

    def block(self, jobs, timeout):
        if self.queue:
            jobs = [self.queue.pop(0)]
            if any(index in self.kill for index in jobs[0][3]):
                jobs += self.queue[:1]
                del self.queue[:1]
                self.dead += jobs
            for job in jobs:
                job[2](job)

    def waiting(self):
        return nullcontext()

    def check(self):
        pass

    def close(self):
        self.closed += 1


class SimulatedTransport:
    """A cluster in virtual time: workers, and a scheduler that is one server.

    Nothing is run: a batch lasts as long as its tasks are said to, and each result is
    None.  The clock only moves while the engine waits.

    Parameters
    ----------
    n_workers : int
    task_seconds : float
    scheduler_seconds : float
        What the scheduler needs for one batch; it serves one at a time.
    latency : float
        Seconds from the scheduler to a worker, and from the worker to the caller.
    """

    def __init__(self, n_workers, task_seconds, scheduler_seconds=0.001, latency=0.005):
        self.n_workers = n_workers
        self.task_seconds = task_seconds
        self.scheduler_seconds = scheduler_seconds
        self.latency = latency
        self.now = 0.0
        self.scheduler_free = 0.0
        self.workers_free = [0.0] * n_workers
        self.busy = 0.0
        self.events = []
        self.n_batches = 0
        self.bytes = 0

    def submit(self, payload, shared, done):
        n_tasks = len(ClusterCalls.arrived(payload, tuple(shared)).items)
        self.n_batches += 1
        self.bytes += len(payload)
        self.scheduler_free = (
            max(self.now, self.scheduler_free) + self.scheduler_seconds
        )
        start = max(
            heapq.heappop(self.workers_free), self.scheduler_free + self.latency
        )
        end = start + n_tasks * self.task_seconds
        heapq.heappush(self.workers_free, end)
        self.busy += end - start
        job = (n_tasks, end - start)
        heapq.heappush(self.events, (end + self.latency, self.n_batches, done, job))
        return job

    def fetch(self, job):
        n_tasks, seconds = job
        return [NONE] * n_tasks, [], (0, 0, int(seconds * 1e9))

    def put(self, value):
        return value

    def cancel(self, jobs):
        self.events.clear()

    def block(self, jobs, timeout):
        # Only a wait before more is sent ends by itself; the others end to `check`.
        if timeout < CHECK_SECONDS and self.events[0][0] > self.now + timeout:
            self.now += timeout
        elif self.events:
            self.now, _, done, job = heapq.heappop(self.events)
            done(job)

    def waiting(self):
        return nullcontext()

    def check(self):
        pass

    def close(self):
        pass

    @property
    def efficiency(self):
        """Share of the time in which the workers were busy."""
        return self.busy / (self.n_workers * self.now)


NONE = dumps(None)


def simulate(n_workers, task_seconds, n_tasks):
    """Run a call over a cluster in virtual time; return its transport."""
    transport = SimulatedTransport(n_workers, task_seconds)
    call = Call(n_workers, ahead=2 * n_workers, max_nbytes=1000)
    results = ClusterEngine(transport, call).run(
        (abs, (i,), {}) for i in range(n_tasks)
    )
    assert results == [None] * n_tasks
    return transport


# Workers, tasks, seconds a task.
FIGURES = [
    (2, 20_000, 0.001),
    (2, 200, 0.02),
    (100, 1_000_000, 0.001),
    (100, 50_000, 0.02),
    (1_000, 400_000, 0.02),
    (1_000, 20_000, 1.0),
    (1_000, 10_000, 60.0),
    (10_000, 200_000, 1.0),
    (10_000, 100_000, 60.0),
]


def figures(n_workers, n_tasks, task_seconds):
    """Return a row of the table in docs/scaling.md."""
    transport = simulate(n_workers, task_seconds, n_tasks)
    length = (
        f"{task_seconds:g} s" if task_seconds >= 1 else f"{task_seconds * 1e3:g} ms"
    )
    return (
        f"| {n_workers:,} | {n_tasks:,} of {length} | {transport.n_batches:,} "
        f"| {transport.efficiency:.0%} |"
    )


if __name__ == "__main__":
    for row in FIGURES:
        print(figures(*row), flush=True)
