"""Tasks that follow each other on one worker, joined for the timeline.

An engine that runs single tasks asks here before and after each one.  A task of a
microsecond must not cost one more: so tasks are joined into a span, which is handed to
the recorder as one batch when the coarse clock has moved (by a tick, some
milliseconds), and no exact clock is read in between.  While it stands still, even the
coarse one is read around every sixteenth task only, as in ``pace.pxd``.  A task that
takes longer than a tick is a span of its own, with exact times.

Time between two tasks (a slow input, a slow reader of a stream) must not look like
work.  If the clock has moved since the last task ended, the span ends there.  Where
short tasks without pause turn into ones with pauses, up to fifteen pauses go unseen; in
a stream, whose reader may pause at any time, each task is looked at.
"""

from cython cimport final

from fastjob._core.libc cimport coarse_ns, now_ns
from fastjob._core.pace cimport TICK_NS

# Two reads of some 5 ns for so many tasks, of which the smallest take 120 ns.
cdef enum:
    FARTHEST = 16


@final
cdef class Spans:
    """The tasks that one worker runs for one call.

    Parameters
    ----------
    timeline : fastjob.recorder.CallTimeline
        Where they are reported.
    worker : int
        Process id, or native id of the thread.
    alone : bool
        Whether the worker does nothing between two tasks but take the next from the
        input, so that a pause counts as time of the input.
    """

    def __cinit__(self, timeline, long long worker, bint alone):
        self.batch = timeline.batch
        self.event = timeline.event
        self.worker = worker
        self.alone = alone
        self.stride = self.left = 1

    # A task is about to run: open a span, unless one is open and goes on.
    cdef int open(self, long long index) except -1:
        cdef long long now = coarse_ns()
        if self.n:
            if now - self.seen < TICK_NS:
                return 0
            self.write(max(self.start, self.seen))
            self.stride = self.left = 1
        self.start = now_ns()
        self.seen = now
        self.first = index
        self.waited = self.start - self.last if self.alone and self.last else 0
        return 0

    # A task has ended, and it is time to look at the clock.
    cdef int look(self) except -1:
        cdef long long now = coarse_ns()
        if now - self.seen >= TICK_NS:
            self.stride = 1
            self.write(now_ns())
        elif self.alone and self.stride < FARTHEST:
            self.stride *= 2
        self.seen = now
        self.left = self.stride
        return 0

    # The worker stops, or waits: what is open ends now, or where a pause began.
    cdef int flush(self) except -1:
        if self.n:
            if not self.alone and coarse_ns() - self.seen >= TICK_NS:
                self.write(max(self.start, self.seen))
            else:
                self.write(now_ns())
        return 0

    cdef int write(self, long long end) except -1:
        cdef long long n = self.n
        self.n = 0
        self.last = end
        self.batch(self.worker, self.start, end, n, self.first, self.waited)
        return 0

    # Something that is not a task: an error, a retry.
    cdef int tell(self, str kind, str text) except -1:
        self.event(kind, self.worker, now_ns(), text)
        return 0
