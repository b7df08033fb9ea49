cdef class Snapshot:
    cdef list parts         # (object, its type, what it held)
    cdef set owned          # addresses of attribute dicts
    cdef dict kinds         # class -> names of its slots
    cdef int _add(self, object obj, list stack, set seen) except -1
    cdef bint unchanged(self) except -1
    cdef set addresses(self)


cdef bint is_array(object kind) except -1
