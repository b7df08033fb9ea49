cdef class Wake:
    cdef readonly int fd
    cdef int writer
    cdef void silence(self) noexcept
