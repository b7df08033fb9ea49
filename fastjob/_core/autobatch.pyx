"""How many tasks a batch should have: a pure state machine.

Durations measured in the workers go in, a size comes out; no clock, no input and no
worker is known here, so that a simulation drives it as well as the dispatch loop.

A batch costs some 100 us of processor time, half of it in either process, however few
tasks it has, and its results are seen only when it ends.  So a batch should last about
`BATCH_NS`: long enough that the cost is below 1 %, short enough that nobody waits for
it.  In a call that has taken long already it may last longer, a `PART` of that time:
who has waited for a second does not mind a moment, and the cost falls further.  Tasks
so short that taking them from the input is the slower part are cut by that instead
(`PRODUCE_NS`): while the caller collects a batch the workers must have the last one.

What keeps a wrong guess harmless is not here: a worker that is out of work gets the
tail of another worker's batch (see ``status.pyx``), and one that has worked on a batch
for long reports what it has.  So sizes need not shrink towards the end of the input,
and the estimate may follow the recent past at once: heavy tails and a change of pace
half-way cost one stolen tail, not a wait.
"""

cimport cython

cdef enum:
    # 10 ms: with 1 ms tasks the overhead measured 0.4 %, with 20 ms 0.3 %, while
    # the first progress report of a slow phase comes twice as late.
    BATCH_NS = 10_000_000
    # On two cores 1000 tasks of 1 ms took 63 batches a worker with 10 ms each, 1.4 % of
    # the time; growing to 40 ms they take 27 and 0.6 %.  Longer ones would report in
    # the middle anyway (`FLUSH_NS` in worker.pyx).
    PART = 10
    LONGEST_NS = 40_000_000
    # What a first batch may take if the function is known from an earlier call: what
    # waking one more worker costs.  See memory.pyx.
    START_NS = 50_000
    # 2 ms: 6000 tiny tasks.  Below 1 ms the cost of a batch shows (3 %); above 4 ms
    # the last batch, which no collecting overlaps, does.
    PRODUCE_NS = 2_000_000
    # A batch's arguments and results are held in memory by both processes.
    BATCH_BYTES = 1 << 20
    # From one size to the next; a single fast task says little about the rest.
    GROWTH = 8
    MOST = 1 << 20


@cython.final
cdef class AutoBatch:
    """Choose batch sizes.

    Parameters
    ----------
    n_jobs : int
        Workers that share the tasks.
    fixed : int, default 0
        A size that the user has set; 0 chooses.
    """

    def __init__(self, int n_jobs, long long fixed=0):
        self.n_jobs = n_jobs
        self.fixed = fixed
        self.size = fixed if fixed > 0 else 1
        self.probe = 2 * n_jobs if n_jobs < 8 else 16

    cdef void expect(self, double each_ns) noexcept:
        """Before the first report: what tasks took in an earlier call."""
        if each_ns > 0 and self.fixed == 0 and self.seen == 0:
            self.task_ns = each_ns
            self.size = max(1, min(MOST, <long long>(START_NS / each_ns)))

    cdef void ran(self, long long n, int64_t busy_ns, long long n_bytes) noexcept:
        cdef double each, weight
        if n <= 0:
            return
        each = <double>busy_ns / n
        # The first tasks of a call pay for imports and cold caches: they are
        # forgotten as soon as anything better is known.
        weight = 1.0 if self.seen <= self.probe else 0.5
        self.task_ns += weight * (each - self.task_ns)
        self.task_bytes += weight * (<double>n_bytes / n - self.task_bytes)
        self.seen += n
        self.busy_ns += busy_ns
        self._choose()

    cdef void produced(self, long long n, int64_t spent_ns) noexcept:
        cdef double each
        if n <= 0:
            return
        each = <double>spent_ns / n
        self.produce_ns += (1.0 if self.produce_ns == 0 else 0.25) * (
            each - self.produce_ns)

    cdef void _choose(self) noexcept:
        cdef double best
        if self.fixed > 0 or self.seen < self.probe:
            return
        best = self.busy_ns / (self.n_jobs * PART)
        best = max(BATCH_NS, min(LONGEST_NS, best)) / max(self.task_ns, 1.0)
        if self.produce_ns > 0:
            best = min(best, PRODUCE_NS / self.produce_ns)
        if self.task_bytes > 0:
            best = min(best, BATCH_BYTES / self.task_bytes)
        best = min(best, <double>(self.size * GROWTH))
        self.size = max(1, min(MOST, <long long>best))

    def recall(self, double each_ns):
        """Tell what the tasks took in an earlier call, before any is recorded."""
        self.expect(each_ns)

    def record(self, long long n, long long busy_ns, long long n_bytes=0):
        """Report that `n` tasks took `busy_ns` together, and moved `n_bytes`."""
        self.ran(n, busy_ns, n_bytes)

    def record_input(self, long long n, long long spent_ns):
        """Report that taking `n` tasks from the input took `spent_ns`."""
        self.produced(n, spent_ns)
