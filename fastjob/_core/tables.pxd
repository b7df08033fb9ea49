# The tables in which receivers mark what they have dropped.

cdef enum:
    TABLE_HEADER = 4096
    TABLE_SLOTS = 16777216
    TABLE_BYTES = 16781312  # TABLE_HEADER + TABLE_SLOTS
    MAX_REGIONS = 2048

# The states of a slot, one byte each; who writes them, and what they mean:
# RETURNED: the receiver's deallocator (and how the memory starts); the owner may take
#     the loan back.
# LENT: the owner, when it lends; in flight, or viewed by the receiver alone.
# INHERITED: the receiver, before it forks; its children may have views too.
# INHERITED_DROPPED: the receiver's deallocator; only its children may have views.
# FREE: the owner, taking the loan back; nobody has a view or a token.
cdef enum Slot:
    RETURNED = 0
    LENT = 1
    INHERITED = 2
    INHERITED_DROPPED = 3
    FREE = 255


# Shared: the head of a table.
cdef struct TableHead:
    unsigned long long high  # slots in use so far; written by the owner, only grows
    unsigned char owned[MAX_REGIONS]  # 1: a region of the owner itself; written before
    # the region is sent


# The first and the last of the forks that a slot was visible to, see ``inheriting``.
cdef struct Span:
    unsigned int first
    unsigned int last


cdef unsigned int ANY  # no fork has a number as large as this


cdef class Table:
    cdef int fd
    cdef int epoch
    cdef TableHead *head
    cdef unsigned char *slots
    # by slot, of those that were there at the last fork; the receiver's own; guarded by
    # the mutex
    cdef Span *spans
    cdef size_t spans_size
    # the list of this process's borrowed tables, guarded by the mutex
    cdef void *next
    cdef void *previous
    cdef bint listed

    cdef int map(self, int fd) except -1
    cdef void drop_fd(self) noexcept nogil
    cdef int reserve(self, unsigned long long slot) noexcept nogil
    cdef int clear(self, size_t start, size_t size) noexcept nogil
    cdef void enlist(self) noexcept nogil
    cdef void unlist(self) noexcept nogil
    cdef void release(self, unsigned int slot) noexcept nogil
    cdef void pin(self, unsigned int fork) noexcept nogil
    cdef void pin_one(self, unsigned int slot) noexcept nogil
    cdef void unpin(self, unsigned int *living, size_t n) noexcept nogil
    cdef void grow(self, size_t size) noexcept nogil


# A table for what this process lends, with its head reserved.
cdef Table new_table()

# All tables of loans to this process that it has mapped; under the mutex.
cdef bint any_borrowed() noexcept nogil
cdef void pin_all(unsigned int fork) noexcept nogil
cdef void unpin_all(unsigned int *living, size_t n) noexcept nogil
cdef void forget_borrowed() noexcept nogil
