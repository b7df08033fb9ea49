# The values that a task's arguments are made of, one level into small containers.

# How large the pickle of a value may be.
cdef enum Weight:
    LIGHT
    UNKNOWN     # an object whose class says how it is pickled
    HEAVY

cdef enum:
    # Pickles from this size on are looked at for an argument to share: a reference
    # costs 60 bytes and a comparison, so below some tens of kilobytes it gains nothing.
    SHARE_BYTES = 32 << 10


cdef class Parts:
    # Owner: the thread of the call, for as long as it captures one task.
    cdef list args          # the arguments as they are sent
    cdef dict named
    cdef readonly list places       # (container, key) of each value that is not plain
    cdef list opened        # (owner, key, container, type of the original)
    cdef dict copies        # id of an original -> its copy, whose members are places

    cdef int unfold(self, int least, dict known, dict explicit) except -1
    cdef tuple fold(self, object function)
    cdef set copied(self)


cdef bint plain(object value, int depth) noexcept
cdef Py_ssize_t only_open(tuple args) noexcept
cdef int weight(object value) except -1
cdef bint possibly_large(object value) except -1
