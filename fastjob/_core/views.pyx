"""Buffers of another process, readable here for as long as an object lives.

A `View` has the buffer protocol on memory that was mapped once for its whole region.
The last act of its deallocator is to mark its slot as returned (``tables``), without a
lock and without Python, since it may run in any thread, in a finalizer, and while the
interpreter shuts down.  If the owner is dead, nobody will reuse the block, and the
last view on it gives its memory back.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo

from fastjob._core.inheriting cimport has_heirs
from fastjob._core.regions cimport GRANULE, GRANULE_BITS, Holders, current_epoch
from fastjob._core.shm cimport errno, shm_add, shm_load, shm_map, shm_unmap

import os


@cython.final
@cython.no_gc
cdef class View:
    """A peer's buffer, kept from being reused for as long as this object lives.

    Attributes
    ----------
    mode : str
        ``'r'``: read-only; ``'r+'``: writable, shared; ``'c'``: writable, private.
    nbytes : int
    """

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.nbytes, not self.writable,
                          flags)

    def __len__(self):
        return self.nbytes

    def __dealloc__(self):
        cdef Holders *holders
        if self.private != NULL:
            shm_unmap(self.private, self.private_size)
        if self.table is None or self.table.epoch != current_epoch():
            return
        if self.counted:
            holders = self.region.holders + (self.offset >> GRANULE_BITS)
            if (shm_add(&holders.views, -1) == 0 and shm_load(&self.region.orphaned)
                    and not has_heirs()):
                self.region.remove(self.offset,
                                   <size_t>holders.granules << GRANULE_BITS)
        self.table.release(self.slot)

    cdef int map_private(self) except -1:
        """Point at a copy-on-write mapping of the buffer instead of the shared one."""
        cdef size_t start = self.offset & ~<size_t>(GRANULE - 1)
        cdef size_t size = self.offset + max(self.nbytes, <size_t>1) - start
        if self.region.fd < 0:
            raise ValueError("mode 'c' needs a link that keeps descriptors")
        cdef void *address = shm_map(self.region.fd, start, size, True)
        if address == NULL:
            raise OSError(errno, f"cannot map {size} bytes: {os.strerror(errno)}")
        self.private = address
        self.private_size = size
        self.address = <char *>address + (self.offset - start)
        return 0
