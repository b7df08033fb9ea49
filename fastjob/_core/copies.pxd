# Which buffers of the caller have a copy in shared memory that still equals them.

from fastjob._core.segments cimport Block


# A buffer that has been copied into a block.
cdef class Copy:
    cdef Block block
    cdef object owner        # weak reference to the array that owns the memory, or None
    cdef long long epoch     # when the block was last known to equal the buffer


cdef class Copies:
    # Owner: the thread of the call; other threads only let entries of `known` go, and
    # say so in `gone`.
    cdef long long limit        # bytes
    cdef readonly long long comparisons
    cdef dict known             # (address, nbytes) -> Copy
    cdef dict loose             # (address, nbytes) -> bytes; used once, oldest first
    cdef long long loose_bytes
    cdef object gone            # deque of keys whose arrays are gone

    cdef Block find(self, void *address, size_t nbytes, long long epoch)
    cdef int add(self, void *address, Block block, object owner,
                 long long epoch) except -1
    cdef int clear(self) except -1
    cdef int settle(self) except -1
    cdef int forget(self, object key) except -1
    cdef int fasten(self, object key) except -1
