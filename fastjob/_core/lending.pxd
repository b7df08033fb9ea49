# Who reads which block: the tables in which receivers mark what they have dropped.

from fastjob._core.regions cimport Region
from fastjob._core.segments cimport Block

cdef enum:
    TABLE_HEADER = 4096
    TABLE_SLOTS = 16777216
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


# On the wire, in native byte order: sender and receiver are one machine.
cdef struct Token:
    unsigned long long offset  # in the region, bytes
    unsigned long long nbytes
    unsigned int region        # counted from 0 in the order sent over this link
    unsigned int slot


cdef class Table:
    cdef int fd
    cdef int epoch
    cdef TableHead *head
    cdef unsigned char *slots

    cdef int map(self, int fd) except -1
    cdef void release(self, unsigned int slot) noexcept nogil
    cdef void pin(self) noexcept nogil
    cdef void unpin(self) noexcept nogil


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


cdef class Link:
    # owner side
    cdef Table lent         # None until the first loan
    cdef void **loans       # by slot: an owned reference to the Block lent, or NULL
    cdef size_t loans_size
    cdef unsigned int *unused  # stack of FREE slots below high
    cdef size_t unused_count
    cdef dict numbers       # Region -> its number on this link
    cdef list unsent        # descriptors that the peer has yet to get
    cdef readonly size_t outstanding
    # receiver side
    cdef Table borrowed
    cdef list regions
    cdef bint keep_fds
    # registry of the process's open links, guarded by the mutex
    cdef void *next
    cdef void *previous
    cdef bint linked
    cdef int epoch

    cpdef bytes lend(self, list blocks)
    cpdef list take_fds(self)
    cpdef object give_fds(self, object fds)
    cpdef list open(self, bytes tokens, str mode)
    cpdef object discard(self, bytes tokens)
    cpdef object close(self)

    cdef int check(self) except -1
    cdef unsigned int number_of(self, Block block) except? 0xFFFFFFFF
    cdef unsigned int lend_one(self, Block block) except? 0xFFFFFFFF
    cdef View open_one(self, Token *token, str mode)
    cdef size_t drop_loans(self, void **dropped, size_t limit) noexcept nogil
    cdef void unlink(self) noexcept nogil
