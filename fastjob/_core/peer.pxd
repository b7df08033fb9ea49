from libc.stdint cimport int64_t, uint32_t

from fastjob._core.batch cimport Batch
from fastjob._core.capture cimport Constant
from fastjob._core.lending cimport Link
from fastjob._core.segments cimport Store
from fastjob._core.status cimport Slot, StatusPage
from fastjob._core.wire cimport Channel


cdef class Peer:
    # One worker process as its caller sees it. Owner: the thread that leased it.
    cdef readonly Channel channel
    cdef readonly StatusPage page
    cdef Slot *slot
    cdef readonly int number        # of the slot
    cdef readonly object profile    # which calls it can serve (initializer, ...)
    cdef readonly Link link         # shared memory lent either way
    cdef list batches               # at most two: running, queued
    cdef uint32_t sent              # batches sent so far
    cdef set known                  # numbers of the constants it has of this call
    cdef set lasting                # and of those that outlive calls
    cdef object state               # what it was last told to adopt
    cdef bint fresh                 # has been told that a new call begins
    cdef public bint lost           # end of stream, or about to be killed
    cdef public bint retiring       # has said that it exits
    cdef bint timed_out             # killed, because its task took too long
    cdef int64_t cpu, packed        # of the slot, when a reply was last recorded
    cdef object __weakref__

    cdef uint32_t unclaimed(self, Peer thief) noexcept
    cdef list take_back(self, uint32_t want, Peer thief)
    cdef int define(self, Constant constant, Store store) except -1
    cdef int send(self, Batch batch, bytes state, Store store) except -1
    cdef int measure(self, bint wanted) noexcept
    cdef int adopt(self, bytes state) except -1
    cdef int introduce(self, bytes state) except -1
    cdef int forget_constant(self, uint32_t number) except -1
    cdef int forget_unshared(self, set live) except -1
    cdef int reset(self) except -1
    cdef int flush(self) except -1
    cdef bytes next(self)
    cdef object unpacked(self, bytes body)
