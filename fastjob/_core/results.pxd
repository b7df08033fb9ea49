# The queue of results between an engine's threads and the one who reads them.

from cython cimport final

from fastjob._core.locks cimport PyThread_type_lock


# One result that nobody has taken yet; value is NULL where none has arrived.
cdef struct Place:
    void *value
    long long nbytes


@final
cdef class ResultStream:
    # Fixed when made.
    cdef bint ordered
    cdef long long capacity
    cdef long long max_bytes
    cdef long long fork_count

    # Guarded by lock.
    cdef PyThread_type_lock lock
    cdef Place *places           # ring; position p is at places[p & mask]
    cdef long long mask          # size of the ring, a power of two, minus 1
    cdef long long head          # results handed out: position of the next one
    cdef long long arrived       # results stored so far, in all
    cdef long long held_bytes    # of the results stored and not handed out
    cdef bint finished           # no more results will come
    cdef bint closed             # the reader wants no more; or an error has ended it
    cdef bint starved            # the producer was refused room ...
    cdef long long refused_at    # ... when it had taken so many tasks
    cdef bint reading            # a thread is inside __next__ or take_all
    cdef bint waiting            # ... and waits on the bell ...
    cdef bint wants_all          # ... for the end, not for the next result
    cdef object error            # what the reader shall raise, or None
    cdef object on_room          # see ResultStream
    cdef object watch            # see ResultStream

    # Rung by whoever sets waiting to False.
    cdef PyThread_type_lock bell

    cpdef int put(self, long long index, object value, long long nbytes=*) except -1
    cpdef int put_many(self, long long first, list values, long long nbytes=*) except -1
    cpdef int put_scattered(self, list indices, list values,
                            long long nbytes=*) except -1
    cpdef int finish(self) except -1
    cpdef int fail(self, object error) except -1
    cpdef int close(self) except -1
    cpdef bint wanted(self) noexcept
    cpdef long long room(self, long long taken) noexcept
    cpdef list take_all(self)

    cdef int store(self, long long position, object value,
                   long long nbytes) noexcept
    cdef bint enlarge(self) noexcept
    cdef void announce(self) noexcept
    cdef bint ready(self, bint wants_all) noexcept
    cdef bint has_recovered(self) noexcept
    cdef int begin_reading(self) except -1
    cdef int check_process(self) except -1
    cdef int wait(self, bint wants_all) except -1
    cdef int sleep(self, object watch) except -1


@final
cdef class ResultIterator:
    cdef ResultStream stream


cdef int raise_end(object error) except -1


# A function that, called from compiled code, makes the interpreter handle signals and
# exceptions set by other threads.
cdef object handle_pending
