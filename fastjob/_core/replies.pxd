from libc.stdint cimport int64_t, uint32_t

from fastjob._core.arrays cimport Sharer
from fastjob._core.lending cimport Link
from fastjob._core.status cimport Slot, StatusPage
from fastjob._core.wire cimport Channel, Header


cdef class Replies:
    # Owner: the worker's loop.
    cdef Channel channel
    cdef Link link
    cdef StatusPage page
    cdef Slot *slot
    cdef int64_t cpu        # processor time when the tasks of a reply began
    cdef object caller
    cdef object notes       # guards writing to the socket
    cdef Sharer results     # takes large buffers out of results; made when first needed
    cdef dict reducers      # for pickling results, once numpy is there
    cdef public bint show_values

    cdef bint lent(self, bint look) except -1
    cdef tuple failure(self, position, index, error, f, args, kwargs, int64_t since)
    cdef int send(self, Header head, list results, list failures, int flags,
                  int64_t busy) except -1
    cdef int put(self, Header head, int flags, uint32_t count, int64_t busy,
                 bytes data, list blocks, int64_t ended) except -1
