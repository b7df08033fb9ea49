# Raw locks, and the two ways in which fastjob uses them.
#
# LEAF: guards a few C fields for some nanoseconds.  Between lock_leaf and unlock_leaf
# no Python object is made, none is dropped for the last time, no Python code runs and
# the interpreter is not released.  So no destructor, no garbage collection and no
# switch of threads happens inside, and therefore a destructor may take a leaf lock,
# and a leaf lock may be taken without giving up the interpreter: its holder is always
# about to release it.
#
# BELL: a lock that is held except from the moment somebody rings it until the one
# thread that waits on it wakes.  It is rung at most once a wait; who may ring it is
# decided under a leaf lock.

from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock,
    PyThread_free_lock, PyThread_release_lock, PyThread_type_lock,
)


cdef extern from "pythread.h":
    ctypedef long long PY_TIMEOUT_T
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, PY_TIMEOUT_T microseconds,
                                    int intr_flag) nogil


cdef inline PyThread_type_lock new_leaf() except NULL:
    cdef PyThread_type_lock lock = PyThread_allocate_lock()
    if lock == NULL:
        raise MemoryError("cannot allocate a lock")
    return lock


cdef inline PyThread_type_lock new_bell() except NULL:
    cdef PyThread_type_lock bell = new_leaf()
    PyThread_acquire_lock(bell, NOWAIT_LOCK)
    return bell


cdef inline void free_lock(PyThread_type_lock lock) noexcept:
    if lock != NULL:
        PyThread_free_lock(lock)


cdef inline void lock_leaf(PyThread_type_lock lock) noexcept nogil:
    PyThread_acquire_lock(lock, WAIT_LOCK)


cdef inline void unlock_leaf(PyThread_type_lock lock) noexcept nogil:
    PyThread_release_lock(lock)


cdef inline void ring(PyThread_type_lock bell) noexcept nogil:
    PyThread_release_lock(bell)


# Take back what was rung and not waited for.  Unlike the waits below it does not
# release the interpreter, so it may be called with a leaf lock held.
cdef inline void silence(PyThread_type_lock bell) noexcept nogil:
    PyThread_acquire_lock(bell, NOWAIT_LOCK)


# Wait until the bell is rung; signals do not interrupt it.
cdef inline void await_bell(PyThread_type_lock bell) noexcept:
    with nogil:
        PyThread_acquire_lock(bell, WAIT_LOCK)


# Wait at most so many seconds; whether the bell was rung.  A signal ends the wait.
cdef inline bint await_bell_for(PyThread_type_lock bell, double seconds) noexcept:
    cdef PY_TIMEOUT_T microseconds = <PY_TIMEOUT_T>(seconds * 1e6)
    cdef int status
    if microseconds < 0:
        microseconds = 0
    with nogil:
        status = PyThread_acquire_lock_timed(bell, microseconds, 1)
    return status == 1  # PY_LOCK_ACQUIRED
