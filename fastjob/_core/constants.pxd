from libc.stdint cimport uint32_t

cdef int define(uint32_t number, object data) except -1
cdef int forget(uint32_t number) except -1
cdef int reset() except -1
cdef dict known()
cpdef object constant(uint32_t number)
cpdef object member(uint32_t number, str name)
cpdef object copied(uint32_t number)
