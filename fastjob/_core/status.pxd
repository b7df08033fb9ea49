# The status page: one slot a worker, in memory shared by caller, nursery and worker.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef enum Life:
    STARTING = 0
    ALIVE = 1
    EXITED = 2
    FORK_FAILED = 3


cdef struct Slot:
    # Unclaimed tasks of the two batches a worker may hold: end << 32 | next.
    #   caller: stores (0, n) before it sends the batch; lowers `end` by
    #           compare-and-swap to take tasks back.
    #   worker: raises `next` by compare-and-swap to take a task.
    #   A word belongs to one batch from its sending to its final reply.
    uint64_t claim[2]
    # Worker: when the task it runs began, CLOCK_MONOTONIC ns; negative while it is
    # rebuilt from its pickle, since then; 0 between tasks, before the next is claimed.
    int64_t started
    # Worker: which of the two claim words the running batch uses.
    uint32_t running
    # Nursery: a `Life`; written before the socket is shut down.
    int32_t life
    # Nursery: process number, from the fork on.
    int32_t pid
    # Nursery: wait status (EXITED) or errno (FORK_FAILED).
    int32_t status
    # Nursery: peak resident memory in KiB, from wait4.
    int64_t peak
    # Caller: whether the worker is to note the next two, for a timeline.
    int64_t timed
    # Worker: processor time of its tasks, with that of their threads, ns.
    int64_t cpu
    # Worker: time it took to pickle results and to copy their buffers, ns.
    int64_t packed
    # Caller, on Windows: its handle of the worker process, from the start on.
    int64_t process
    # Pads the slot to two cache lines: neighbours never share one.
    int64_t spare[6]


cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t fj_load(const uint64_t *p)
    { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void fj_store(uint64_t *p, uint64_t v)
    { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline int fj_swap(uint64_t *p, uint64_t *old, uint64_t v)
    { return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE); }
    """
    uint64_t fj_load(const uint64_t *p) nogil
    void fj_store(uint64_t *p, uint64_t v) nogil
    bint fj_swap(uint64_t *p, uint64_t *old, uint64_t v) nogil


cdef inline uint32_t claim_next(uint64_t word) noexcept nogil:
    return <uint32_t>word


cdef inline uint32_t claim_end(uint64_t word) noexcept nogil:
    return <uint32_t>(word >> 32)


cdef inline uint64_t claim_word(uint32_t next, uint32_t end) noexcept nogil:
    return (<uint64_t>end << 32) | next


cdef inline int64_t claim_one(uint64_t *word) noexcept nogil:
    """Worker: take the next task of the batch; -1 if there is none left."""
    cdef uint64_t old = fj_load(word)
    while claim_next(old) < claim_end(old):
        if fj_swap(word, &old, old + 1):
            return claim_next(old)
    return -1


cdef inline uint32_t take_back(uint64_t *word, uint32_t most) noexcept nogil:
    """Caller: take up to `most` unclaimed tasks from the end; how many it got."""
    cdef uint64_t old = fj_load(word)
    cdef uint32_t left, got
    while claim_next(old) < claim_end(old):
        left = claim_end(old) - claim_next(old)
        got = min(left, most)
        if fj_swap(word, &old, claim_word(claim_next(old), claim_end(old) - got)):
            return got
    return 0


cdef class StatusPage:
    cdef Slot *slots
    cdef readonly int fd
    cdef readonly int n_slots
    cdef object __weakref__
    cdef int _reserve(self, size_t size) except -1
    cdef Slot *slot(self, int number) except NULL
