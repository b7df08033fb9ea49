# Tasks that follow each other on one worker, joined for the timeline.
# One owner, the thread that runs the tasks: no lock.

from cython cimport final


@final
cdef class Spans:
    cdef object batch        # of the call's timeline
    cdef object event
    cdef readonly long long worker
    cdef bint alone          # between two tasks there is nothing but the input
    cdef long long seen      # what the coarse clock said last, ns
    cdef int stride          # tasks between two reads of it
    cdef int left            # ... of which so many are still to come
    cdef long long first     # index of the first task of the span that is open
    cdef long long n         # tasks in it; 0 is no open span
    cdef long long start     # ns
    cdef long long last      # end of the span before, ns; 0 if there is none
    cdef long long waited    # ns between that and the start of this one

    # A task is about to run.
    cdef inline int begin(self, long long index) except -1:
        if self.n and self.left != self.stride:
            return 0  # the clock was not read when the last task ended
        return self.open(index)

    # It has ended.
    cdef inline int done(self) except -1:
        self.n += 1
        self.left -= 1
        return 0 if self.left > 0 else self.look()

    cdef int open(self, long long index) except -1
    cdef int look(self) except -1
    cdef int flush(self) except -1
    cdef int write(self, long long end) except -1
    cdef int tell(self, str kind, str text) except -1
