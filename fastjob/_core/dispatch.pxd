from libc.stdint cimport int64_t

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.batch cimport Batch
from fastjob._core.call cimport Call, Counters
from fastjob._core.capture cimport Capture
from fastjob._core.crew cimport Crew
from fastjob._core.intake cimport Intake
from fastjob._core.outcomes cimport Outcomes
from fastjob._core.peer cimport Peer
from fastjob._core.results cimport ResultStream
from fastjob._core.wake cimport Wake


cdef class Dispatcher:
    cdef Call call
    cdef Counters counters
    cdef Capture capture
    cdef AutoBatch tuner
    cdef Intake intake
    cdef Crew crew
    cdef Outcomes outcomes
    cdef list peers                 # of the crew
    cdef list ready                 # batches to be sent before any input is taken
    cdef ResultStream stream        # where results go, if not into a list
    cdef set live                   # numbers of what is shared across calls, or None
    cdef Wake wake                  # ends a wait; None without a stream
    cdef int64_t patience           # ns to wait before looking for stragglers again
    cdef bint changed               # there is work or a worker that feed has not seen

    cdef int loop(self) except -1
    cdef int feed(self) except -1
    cdef Batch next_batch(self, Peer peer)
    cdef int64_t allowed(self) except? -1
    cdef Batch take(self, Py_ssize_t n)
    cdef int fill(self, Batch batch, Py_ssize_t n) except -1
    cdef int send(self, Peer peer, Batch batch) except -1
    cdef bint steal(self, Peer thief) except -1
    cdef int service(self, int64_t timeout) except -1
    cdef int receive(self, Peer peer) except -1
    cdef int reply(self, Peer peer, bytes body) except -1
    cdef int leave_behind(self) except -1
    cdef int lose(self, Peer peer) except -1
    cdef int64_t wait_time(self) except -2
    cdef int check_timeouts(self) except -1
