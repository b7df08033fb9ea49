from fastjob._core.call cimport Call
from fastjob._core.peer cimport Peer


cdef class Crew:
    # Owner: the thread of the call.
    cdef Call call
    cdef object pool
    cdef object state               # what every peer must have adopted
    cdef list peers
    cdef long long forks            # of the process that runs the call
    cdef int losses                 # workers lost since a task last ended or failed

    cdef int check_process(self) except -1
    cdef int lease(self, set live) except -1
    cdef int leave(self, bint heavy) except -1
    cdef bint has_other(self, Peer peer) except -1
    cdef bint someone_idle(self) except -1
    cdef int replace(self, Peer peer) except -1
    cdef int settle(self) except -1
    cdef int abort(self) except -1
    cdef int note(self, object kind, Peer peer, object text) except -1
