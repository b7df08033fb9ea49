from libc.stdint cimport int64_t

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.batch cimport Batch
from fastjob._core.call cimport Call, Counters
from fastjob._core.capture cimport Capture
from fastjob._core.crew cimport Crew
from fastjob._core.peer cimport Peer
from fastjob._core.results cimport ResultStream
from fastjob._core.wire cimport Header


cdef class Outcomes:
    # Owner: the thread of the call.
    cdef Call call
    cdef Counters counters
    cdef Capture capture
    cdef AutoBatch tuner
    cdef object overhear            # makes unpicklers that tell of the user's code
    cdef Crew crew
    cdef list again                 # batches to be run again are put here
    cdef int64_t completed          # tasks
    cdef dict attempts              # index -> times it has been run, if it failed
    cdef list out                   # results, in list mode
    cdef ResultStream stream        # or where they go

    cdef int expect(self, Py_ssize_t n) except -1
    cdef int came(self, Peer peer, Batch batch, Py_ssize_t at, const Header *head,
                  object content, Py_ssize_t n_body) except -1
    cdef int deliver(self, Batch batch, Py_ssize_t at, list results,
                     long long n_bytes) except -1
    cdef int fail(self, Batch batch, Py_ssize_t at, object error, object text,
                  double elapsed, Peer peer) except -1
    cdef int refuse(self, int64_t index, object error) except -1
    cdef int record(self, Peer peer, Batch batch, Py_ssize_t at, const Header *head,
                    int64_t decoded, long long n_bytes) except -1
    cdef object verdict(self, Batch culprit, Peer peer)
