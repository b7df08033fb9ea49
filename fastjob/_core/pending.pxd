# The tasks of a call over threads that have been taken from the input and not started:
# a ring that grows, oldest first.
#
# One owner: whoever holds the lock of the call.  Putting a task in takes a reference,
# taking it out hands that over.  Nothing here runs code of the user but `pending_drop`,
# which is therefore called on a ring that nobody else sees any more.

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.ref cimport Py_DECREF, Py_INCREF


cdef struct Pending:
    void *task           # a reference, owned by the ring
    long long index
    int attempt          # 1 for the first


cdef struct Ring:
    Pending *places      # task i is at places[i & mask]; NULL task: empty
    long long mask       # size, a power of two, minus 1
    long long head       # the oldest
    long long n


cdef inline bint pending_make(Ring *ring) noexcept:
    ring.places = <Pending *>PyMem_RawCalloc(16, sizeof(Pending))
    ring.mask = 15
    ring.head = ring.n = 0
    return ring.places != NULL


# False: no memory.
cdef inline bint pending_put(Ring *ring, tuple task, long long index,
                             int attempt) noexcept:
    cdef long long i, size = ring.mask + 1
    cdef Pending *wider
    cdef Pending *place
    if ring.n == size:
        wider = <Pending *>PyMem_RawCalloc(2 * size, sizeof(Pending))
        if wider == NULL:
            return False
        for i in range(ring.head, ring.head + size):
            wider[i & (2 * size - 1)] = ring.places[i & ring.mask]
        PyMem_RawFree(ring.places)
        ring.places = wider
        ring.mask = 2 * size - 1
    place = &ring.places[(ring.head + ring.n) & ring.mask]
    Py_INCREF(task)
    place.task = <void *>task
    place.index = index
    place.attempt = attempt
    ring.n += 1
    return True


# Take out the oldest; there is one.
cdef inline Pending pending_take(Ring *ring) noexcept:
    cdef Pending *place = &ring.places[ring.head & ring.mask]
    cdef Pending entry = place[0]
    place.task = NULL
    ring.head += 1
    ring.n -= 1
    return entry


cdef inline void pending_drop(Ring *ring) noexcept:
    cdef long long i
    if ring.places == NULL:
        return
    for i in range(ring.mask + 1):
        if ring.places[i].task != NULL:
            Py_DECREF(<object>ring.places[i].task)
    PyMem_RawFree(ring.places)
    ring.places = NULL
    ring.n = 0
