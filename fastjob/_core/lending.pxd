# Who reads which block: lending between two processes, and taking back.

from fastjob._core.segments cimport Block
from fastjob._core.tables cimport Table
from fastjob._core.views cimport View


# On the wire, in native byte order: sender and receiver are one machine.
cdef struct Token:
    unsigned long long offset  # in the region, bytes
    unsigned long long nbytes
    unsigned int region        # counted from 0 in the order sent over this link
    unsigned int slot


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
    cdef int check_tokens(self, bytes tokens) except -1
    cdef View open_one(self, Token *token, str mode)
    cdef size_t drop_loans(self, void **dropped, size_t limit) noexcept nogil
    cdef void unlink(self) noexcept nogil
