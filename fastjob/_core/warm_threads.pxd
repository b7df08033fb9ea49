# Threads that outlive a call.

from cython cimport final

from fastjob._core.locks cimport PyThread_type_lock


# What a leased thread works for.
cdef class Service:
    # Runs in the leased thread until there is nothing more to do; raises nothing.
    cdef int serve(self, WarmThread thread) except -1


@final
cdef class WarmThread:
    # Fixed when made.
    cdef long long epoch
    cdef long long generation

    # Rung by whoever takes the thread from a list of sleepers: the pool's, or that
    # of the service it is leased to.  A sleeping thread is in exactly one.
    cdef PyThread_type_lock bell

    # Written by whoever leases the thread, before it rings; then the thread's own.
    cdef Service service         # None tells the thread to end
    cdef double idle_timeout

    # For the service; guarded by its lock.
    cdef void *task              # a reference: what runs, where that can be abandoned
    cdef long long index
    cdef int attempt
    cdef double started
    cdef bint running            # inside a task
    cdef bint unwritten          # has tasks that the timeline does not know of yet
    cdef long long native_id     # set by the service if there is a timeline
    cdef bint abandoned          # the result of what runs is of no use any more

    cdef bint park(self) except -1


# Changes in a forked child and when the interpreter begins to exit: threads and
# services made before are then dead.
cdef long long current_epoch() noexcept

# Give the service one more thread.
cdef int lease(Service service, double idle_timeout) except -1
