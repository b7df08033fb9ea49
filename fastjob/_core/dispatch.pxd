from libc.stdint cimport int64_t

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.batch cimport Batch
from fastjob._core.call cimport Call, Counters
from fastjob._core.capture cimport Capture
from fastjob._core.intake cimport Intake
from fastjob._core.peer cimport Peer
from fastjob._core.results cimport ResultStream
from fastjob._core.wake cimport Wake
from fastjob._core.wire cimport Header


cdef class Dispatcher:
    cdef Call call
    cdef Counters counters
    cdef Capture capture
    cdef AutoBatch tuner
    cdef Intake intake
    cdef object pool
    cdef list peers
    cdef list ready                 # batches to be sent before any input is taken
    cdef int64_t completed
    cdef dict attempts              # index -> times it has been run, if it failed
    cdef list out                   # results, in list mode
    cdef ResultStream stream        # or where they go
    cdef set live                   # numbers of what is shared across calls, or None
    cdef object state               # what every peer must have adopted
    cdef Wake wake                  # ends a wait; None without a stream
    cdef double patience            # ms to wait before looking for stragglers again
    cdef long long forks            # of the process that runs the call
    cdef bint changed               # there is work or a worker that feed has not seen
    cdef int losses                 # workers lost since a task was last completed

    cdef int check_process(self) except -1
    cdef int loop(self) except -1
    cdef int settle(self) except -1
    cdef int feed(self) except -1
    cdef Batch next_batch(self, Peer peer)
    cdef Batch take(self, Py_ssize_t n)
    cdef bint has_other(self, Peer peer) except -1
    cdef bint someone_idle(self) except -1
    cdef int send(self, Peer peer, Batch batch) except -1
    cdef bint steal(self, Peer thief) except -1
    cdef int service(self, int timeout) except -1
    cdef int receive(self, Peer peer) except -1
    cdef int reply(self, Peer peer, bytes body) except -1
    cdef int deliver(self, Batch batch, Py_ssize_t at, list results,
                     long long n_bytes) except -1
    cdef int lose(self, Peer peer) except -1
    cdef int fail(self, Batch batch, Py_ssize_t at, object error, object text,
                  double elapsed, Peer peer) except -1
    cdef int wait_time(self) except -2
    cdef int record(self, Peer peer, Batch batch, Py_ssize_t at, const Header *head,
                    int64_t decoded, long long n_bytes) except -1
    cdef int note(self, object kind, Peer peer, object text) except -1
    cdef int check_timeouts(self) except -1
