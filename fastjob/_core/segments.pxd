# Memory that this process owns and shares: blocks of regions, and their store.

from libc.stdint cimport int64_t

from fastjob._core.regions cimport Region

cdef enum:
    CLASSES = 160


# A piece of a region; belongs to one store for as long as the store lives.
# All fields are guarded by the store's mutex while the extent is free, and belong to
# the one Block that has it otherwise.
cdef struct Extent:
    Extent *next      # in `returned`, or among the free ones of its class
    Extent *before    # among the warm and free ones of its class
    Extent *older     # warm and free ones, by the time they became free
    Extent *newer
    Extent *sibling   # all of the store's
    void *region      # borrowed; Store.regions holds the reference
    size_t offset     # in the region, bytes
    size_t warm       # bytes from the start that have memory behind them
    size_t mapped     # bytes from the start whose pages this process has mapped
    int64_t freed_at  # ns, monotonic
    int size_class
    int place         # index of the backing store that the region lies in


cdef class Store:
    cdef readonly long long warm_limit
    cdef readonly double idle_seconds
    cdef readonly long long copies
    cdef readonly long long copied_bytes
    cdef readonly long long live_blocks
    cdef readonly long long live_bytes
    cdef readonly long long warm_bytes
    cdef list regions
    cdef list places
    cdef int place
    cdef int epoch
    cdef void *returned        # atomic; Extents whose Block is gone
    cdef Extent *extents
    cdef Extent *warm[CLASSES]
    cdef Extent *cold[CLASSES]
    cdef Extent *oldest
    cdef Extent *newest
    cdef void *current         # region that new extents are carved from, or NULL
    cdef size_t carved         # bytes of it that are in use

    cpdef Block put(self, object buffer)
    cpdef Block allocate(self, size_t nbytes)
    cpdef bint collect(self)
    cpdef object close(self)

    cdef Block put_memory(self, const void *source, size_t nbytes)
    cdef Extent *take(self, size_t nbytes) except NULL
    cdef int grow(self, size_t capacity) except -1
    cdef int pass_over(self, int place, int error, size_t nbytes) except -1
    cdef void drain(self) noexcept nogil
    cdef Extent *pop_warm(self, int size_class, size_t nbytes) noexcept nogil
    cdef Extent *pop_cold(self, int size_class) noexcept nogil
    cdef Extent *carve(self, int size_class, Extent *extent) noexcept nogil
    cdef void unlink_warm(self, Extent *extent) noexcept nogil
    cdef void push_free(self, Extent *extent) noexcept nogil
    cdef Extent *pop_excess(self, int64_t now) noexcept nogil


cdef class Block:
    cdef readonly size_t nbytes
    cdef readonly size_t offset
    cdef readonly Region region
    cdef readonly bint own      # of a region of this process
    cdef object holder          # the Store, or the View that it is a part of
    cdef Extent *extent         # NULL unless own
    cdef char *address
    cdef int epoch


cdef Block part_of(object holder, Region region, size_t offset, size_t nbytes)

# Called by Store before it takes cold memory: gives back what the receivers of this
# process's blocks have dropped.  Set by the module `lending`.
ctypedef int (*Reclaim)() except -1
cdef void set_reclaim(Reclaim function) noexcept
