from libc.stdint cimport uint32_t

from fastjob._core.arrays cimport Sharer
from fastjob._core.parts cimport Parts
from fastjob._core.snapshot cimport Snapshot


cdef class Constant:
    # A callable or a shared object of one call. One owner: the thread of the call.
    cdef readonly uint32_t number
    cdef readonly object value      # held, so that its address stays its identity
    cdef object data                # its pickle, or the block that holds it
    cdef Py_ssize_t nbytes          # of the pickle and its buffers
    cdef readonly list blocks       # out-of-band buffers of the pickle, or None
    cdef readonly list needs        # constants that its pickle refers to
    cdef Snapshot snapshot          # None: compare by pickling again
    cdef dict names                 # what it holds of __main__, by name
    cdef Constant beside            # the function of the task that it was pickled for
    cdef set arrays                 # identities of the arrays and frames in its pickle
    cdef set inside                 # identities of what it is made of, once asked for
    cdef dict apart                 # by number: constants with no object in common
    cdef readonly long long uses
    cdef long long checked          # epoch of the last comparison


cdef class Copied:
    # Stands in a task's arguments for an object of which the task gets a copy.
    cdef uint32_t number
    cdef readonly object value


cdef class Capture:
    cdef dict functions         # id (or ids) -> Constant
    cdef dict repeated          # id -> Constant: small, and copied for each task
    cdef object last_alone      # what might be repeated by the next task
    cdef dict shared            # id -> Constant
    cdef dict explicit          # the same, for what the user has shared
    cdef dict candidates        # by number: shared, used once so far, oldest first
    cdef long long candidate_bytes
    cdef dict kept              # by number: shared, used more often, last used last
    cdef long long kept_bytes
    cdef long long keep_bytes   # above this, some of them are given up
    cdef readonly long long epoch       # raised whenever the caller's code may have run
    cdef bint quiet             # taking a task from the input runs none of it
    cdef bint lends             # a constant has buffers in shared memory
    cdef list expired           # shared constants given up, for the workers to forget
    cdef readonly uint32_t n_constants
    cdef readonly long long n_pickles   # pickles made, for the counts
    cdef readonly long long bytes_pickled
    cdef readonly Sharer sharer     # takes large buffers out of the pickles
    cdef dict reducers          # dispatch table with the sharer's, once numpy is there
    cdef frozenset array_types  # those of arrays and frames
    cdef int n_libraries        # of those that the table depends on
    cdef Constant current       # the function of the task being captured, or None
    cdef dict names             # what the last pickle holds of __main__
    cdef set met                # ids of the arrays and frames in the last pickle
    cdef list refs              # constants that the task being captured refers to
    cdef list used              # those of them that stand in the place of a value
    cdef list blocks            # and its out-of-band buffers

    cdef dict table(self)
    cdef Constant function(self, object f)
    cdef object arguments(self, long long index, object f, object with_function,
                          tuple args, object kwargs)
    cdef Constant _new(self, object value, object data, list blocks, list needs)
    cdef tuple with_copy(self, tuple args)
    cdef int _repeat(self, object value) except -1
    cdef Py_ssize_t _refer_to_known(self, Parts parts) except -1
    cdef object _reference(self, Constant c)
    cdef int _put_alone(self, Parts parts) except -1
    cdef bint _aliased(self, Parts parts) except -1
    cdef set _inside(self, Constant c)
    cdef bint _apart(self, Constant a, Constant b) except -1
    cdef tuple _with_shared(self, Parts parts, object function, object data,
                            object blocks)
    cdef bint _is_array(self, object value) except -1
    cdef set _arrays(self, Parts parts)
    cdef bint _open(self, object value) except -1
    cpdef int next_epoch(self) except -1
    cdef int _take_out(self, Constant c) except -1
    cdef int _give_up(self, Constant c) except -1
    cdef int _make_room(self) except -1
    cdef bint _unchanged(self, Constant c) except -1
