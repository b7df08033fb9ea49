from fastjob._core.call cimport Call
from fastjob._core.locks cimport PyThread_type_lock
from fastjob._core.pace cimport Pace
from fastjob._core.pending cimport Pending, Ring
from fastjob._core.results cimport ResultStream
from fastjob._core.warm_threads cimport Service, WarmThread


# Answers of `choose`.
cdef enum Whom:
    NOBODY
    SLEEPER
    NEWCOMER


cdef class Board(Service):
    # Fixed before the first thread is leased.
    cdef Call call
    cdef ResultStream results
    cdef long long window        # tasks taken and not completed; 0 is no limit
    cdef bint bounded            # whether the reader of the results limits it too
    cdef object on_batch
    cdef double idle_timeout

    # Belongs to whoever has set `pulling`.
    cdef object iterator

    # Guarded by lock.
    cdef PyThread_type_lock lock
    cdef bint pulling            # a thread is inside the input
    cdef bint exhausted          # the input has nothing more
    cdef bint stopped            # no task is to be started any more
    cdef bint reporting          # a thread is inside on_batch
    cdef Pace pace               # when the next report is due
    cdef long long taken         # tasks taken from the input
    cdef long long completed     # ... whose result has been put
    cdef long long reported      # ... and reported to on_batch
    cdef Ring pending            # taken and not started
    cdef void **serving          # the threads that serve this call, not owned
    cdef int n_serving
    cdef void **sleepers         # those of them that wait for work
    cdef int n_sleepers
    cdef int limit               # of leased: n_jobs, or one more if the input is slow
    cdef int leased              # threads that serve or are about to
    cdef int running             # threads inside a task, at most n_jobs
    cdef int waking              # leased or rung, and not come to the lock yet
    cdef int unwritten           # threads with tasks that are not in the timeline yet

    # With the lock held.
    cdef bint can_pull(self) noexcept
    cdef bint can_run(self) noexcept
    cdef bint is_finished(self) noexcept
    cdef int choose(self, void **sleeper) noexcept
    cdef void dismiss(self) noexcept
    cdef void enlist(self, WarmThread thread) noexcept
    cdef void forget(self, WarmThread thread) noexcept
    cdef int report(self) except -1

    # Without it.
    cdef int rouse(self, int whom, void *sleeper) except -1
    cdef int do_without(self, object error) except -1
    cdef int wake_one(self) except -1
    cdef int count_completed(self) except -1
    cdef int finish(self) except -1
    cdef int end_input(self) except -1
    cdef int fail(self, object error) except -1
    cdef int halt(self) except -1
    cdef int stop(self) except -1
    cdef void expose(self, WarmThread thread, tuple task, const Pending *entry,
                     double started) noexcept
    cdef bint claim(self, WarmThread thread) noexcept
