# How large buffers leave a pickle stream for shared memory, and come back.

from fastjob._core.segments cimport Block, Store


# A buffer of the caller that has been copied into a block.
cdef class Shared:
    cdef Block block
    cdef object owner        # weak reference to the array that owns the memory, or None
    cdef long long epoch     # when the block was last known to equal the buffer


cdef class Sharer:
    cdef readonly Store store
    cdef readonly long long min_nbytes
    cdef readonly bint reuse
    cdef public long long epoch
    cdef readonly long long comparisons
    cdef public object pickler_class  # for the streams of frames, see reduce_frame
    cdef list taken
    cdef object reduced      # the buffer that pickle is about to ask about, if ours
    cdef dict shared         # (address, nbytes) -> Shared
    cdef size_t unowned      # bytes of `shared` without an owner
    cdef dict files          # address of a memory-mapped file -> epoch of the check
    cdef object numpy        # the module, once somebody has imported it

    cpdef dict dispatch_table(self)
    cpdef list blocks(self)
    cpdef object clear(self)
    cdef object reduce_as(self, object array, object build, bint inside)
    cdef object reduce_file(self, object array)
    cdef bint is_small(self, long long nbytes) noexcept
    cdef Block share(self, void *address, size_t nbytes, object exporter)
    cdef Block known(self, Shared shared, void *address, size_t nbytes)
