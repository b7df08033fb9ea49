# Some tasks, from the moment they are taken from the input to their results.

from libc.stdint cimport int64_t, uint32_t

from fastjob._core.capture cimport Constant


cdef class Batch:
    # Some tasks, from the moment they are taken from the input to their results.
    # Owner: the Dispatcher; in one place at a time: being filled, ready, or a peer's.
    cdef uint32_t number        # of the peer's; its parity says which claim word
    cdef list items             # args tuple; lone argument (column); or pickled bytes
    cdef Constant function      # of every task, or None if they differ
    cdef list functions         # Constant of each task, None for those inside the item
    cdef int64_t first          # index of the first task, if they are consecutive
    cdef list indices           # else the index of each
    cdef list refs              # constants that each item refers to (list or None)
    cdef list blocks            # out-of-band buffers of each item (list or None)
    cdef bint column
    cdef Py_ssize_t done        # tasks whose results have come
    cdef int64_t input_ns       # spent in taking its tasks from the input
    cdef int64_t pickle_ns      # in pickling what was left for the batch
    cdef int64_t sent_at
    cdef Py_ssize_t nbytes      # of what was sent, less what is shared
    cdef int deaths             # workers that died while they held it
    cdef object avoid           # the peer that failed its task

    cdef Py_ssize_t size(self) noexcept
    cdef int64_t index(self, Py_ssize_t at) except -1
    cdef Batch tail(self, Py_ssize_t start)
    cdef Batch only(self, Py_ssize_t at)
    cdef tuple described(self, Py_ssize_t at, bint show_values)
    cdef int separate(self) except -1
    cdef int take_refs(self, list refs, list blocks) except -1
