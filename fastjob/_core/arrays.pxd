# How large buffers leave a pickle stream for shared memory, and come back.

from fastjob._core.copies cimport Copies
from fastjob._core.segments cimport Block, Store


cdef class Sharer:
    cdef readonly Store store
    cdef readonly long long min_nbytes
    cdef readonly bint reuse
    cdef public long long epoch
    cdef bint met_main          # a stream within the stream refers to __main__
    cdef public object pickler_class  # for the streams of frames, see reduce_frame
    cdef list taken
    cdef readonly set met        # ids of the arrays and frames in the stream
    cdef object reduced      # the buffer that pickle is about to ask about, if ours
    cdef Copies copies
    cdef dict files          # address of a memory-mapped file -> epoch of the check
    cdef object numpy        # the module, once somebody has imported it

    cpdef dict dispatch_table(self)
    cpdef list blocks(self)
    cdef tuple begin_inner(self)
    cdef int end_inner(self, tuple outer) except -1
    cpdef object clear(self)
    cdef object reduce_as(self, object array, object build, bint inside)
    cdef object reduce_file(self, object array)
    cdef bint is_small(self, long long nbytes) noexcept
    cdef Block share(self, void *address, size_t nbytes, object exporter)
