# Files of shared memory, where they lie, and what guards all that is known of them.

cdef enum:
    GRANULE_BITS = 16
    GRANULE = 65536  # bytes, 2**GRANULE_BITS; blocks start at multiples of it
    PAGE = 4096

cdef tuple MEMORY


# How many live views a receiving process has on the block that starts at a granule.
cdef struct Holders:
    unsigned int views     # atomic; changed by every view's birth and death
    unsigned int granules  # length of the block; written before the first view


cdef class Region:
    cdef readonly int fd       # -1 once closed
    cdef readonly size_t size  # bytes
    cdef char *address
    cdef Holders *holders      # one a granule; NULL in the owner
    cdef unsigned char orphaned  # atomic; the owner is dead, nobody allocates here
    # the list of this process's orphaned regions, guarded by the mutex
    cdef void *next
    cdef void *previous
    cdef int epoch             # in which it was orphaned

    cdef int map(self, int fd, size_t size) except -1
    cdef int track(self) except -1
    cdef void remove(self, size_t offset, size_t nbytes) noexcept nogil
    cdef void orphan(self) noexcept nogil
    cdef void unlist(self) noexcept nogil
    cdef void remove_unread(self) noexcept nogil


# A new, empty, unnamed file of `size` bytes; `place` None is anonymous memory.
cdef int open_file(str place, size_t size) except -1

cdef list fallback_folders()

cdef str no_room(str place, size_t nbytes, int error)

cdef void lock() noexcept nogil
cdef void unlock() noexcept nogil
cdef int current_epoch() noexcept nogil
cdef void enter_child() noexcept

# Give back what no view covers of regions whose owners are dead; under the mutex.
cdef void remove_all_unread() noexcept nogil
