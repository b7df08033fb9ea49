# Buffers of another process, readable here for as long as an object lives.

from fastjob._core.regions cimport Region
from fastjob._core.tables cimport Table


cdef class View:
    cdef readonly Region region
    cdef readonly size_t offset
    cdef readonly size_t nbytes
    cdef readonly str mode
    cdef bint writable
    cdef char *address
    cdef void *private      # own copy-on-write mapping, or NULL
    cdef size_t private_size
    cdef bint counted       # in the region's holders
    cdef Table table
    cdef unsigned int slot

    cdef int map_private(self) except -1
