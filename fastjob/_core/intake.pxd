from libc.stdint cimport int64_t

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.batch cimport Batch
from fastjob._core.capture cimport Capture, Constant


cdef class Intake:
    # Owner: the thread of the call.
    cdef Capture capture
    cdef AutoBatch tuner
    cdef object tasks           # the iterator
    cdef bint streaming         # somebody reads results while this runs
    cdef bint examined          # whether the input is quiet has been found out
    cdef bint exhausted
    cdef bint return_errors     # a task that cannot be sent does not end the call
    cdef object refused         # why the task that was taken last cannot be sent
    cdef int64_t taken          # tasks so far; the index of the next one
    cdef object last_f
    cdef bint several           # tasks so far have several callables
    cdef Constant last_constant

    cdef int open(self, object tasks, bint streaming) except -1
    cdef int close(self) except -1
    cdef Batch begin(self)
    cdef bint fill(self, Batch batch, Py_ssize_t n, int64_t patience) except -1
    cdef bint add(self, Batch batch, object task) except -1
    cdef bint refuse(self, object error) except -1
