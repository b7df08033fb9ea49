"""Which buffers of the caller have a copy in shared memory that still equals them.

A call copies a buffer once, however many tasks have it.  This is its memory: by
address and length, which block holds a copy.

Guarantee: `find` returns a block only if it equals the buffer at this moment, byte for
byte.  Within one epoch nothing can have changed (see ``arrays``), if the array that
owned the memory is still alive: that is the weak reference.  Otherwise the two are
compared.  An exporter that was made for the occasion, as pyarrow's, has no owner whose
life could be watched; its buffer is compared each time.

How long copies are kept: as long as their arrays live, to the end of the call.  So
that many arrays that are used once do not all lie in memory twice, the copies that
have served one task, and those without an owner, are given up, oldest first, when they
exceed ``limit`` bytes.  One is always kept: an array larger than the limit may still
be the one that all tasks have.

An array's end may come in any thread.  It takes the entry out of `known`, at once, so
that the block is free, and leaves the key in `gone`; the accounts are the call's
thread's.  The key cannot belong to another array before that: the weak reference calls
before the memory is freed, and `settle` looks at `gone` before an entry is added.
"""

cimport cython
from libc.string cimport memcmp

from fastjob._core.segments cimport Block

from _weakref import ref
from collections import deque


@cython.final
cdef class Copy:
    """A buffer of the caller that has been copied into a block."""


@cython.final
cdef class Copies:
    """The copies that one call has made.

    Parameters
    ----------
    limit : int
        Bytes of copies to keep that have served one task only.

    Attributes
    ----------
    comparisons : int
        Buffers compared with their copies so far.
    """

    def __init__(self, long long limit):
        self.limit = limit
        self.known = {}
        self.loose = {}
        self.gone = deque()

    cdef Block find(self, void *address, size_t nbytes, long long epoch):
        """The block that equals a buffer, or None."""
        cdef bint same
        cdef Block block
        cdef Copy copy
        key = (<size_t>address, nbytes)
        copy = self.known.get(key)
        if copy is None:
            return None
        block = copy.block
        if copy.owner is None or copy.epoch != epoch or copy.owner() is None:
            self.comparisons += 1
            with nogil:
                same = memcmp(address, block.address, nbytes) == 0
            if not same:
                self.forget(key)
                return None
            copy.epoch = epoch
        if copy.owner is not None:
            self.fasten(key)
        return block

    cdef int add(self, void *address, Block block, object owner,
                 long long epoch) except -1:
        """Remember a block that equals a buffer; `owner` is an array or None."""
        cdef Copy copy = Copy()
        self.settle()
        key = (<size_t>address, block.nbytes)
        copy.block = block
        copy.epoch = epoch
        if owner is not None:
            copy.owner = ref(owner, Farewell(self.known, self.gone, key))
        self.known[key] = copy
        self.loose[key] = block.nbytes
        self.loose_bytes += block.nbytes
        while self.loose_bytes > self.limit and len(self.loose) > 1:
            self.forget(next(iter(self.loose)))
        return 0

    cdef int clear(self) except -1:
        """Let all copies go."""
        self.known.clear()
        self.loose.clear()
        self.gone.clear()
        self.loose_bytes = 0
        return 0

    cdef int settle(self) except -1:
        """Strike what other threads have let go off the accounts."""
        while self.gone:
            self.fasten(self.gone.popleft())
        return 0

    cdef int forget(self, object key) except -1:
        self.known.pop(key, None)
        self.fasten(key)
        return 0

    cdef int fasten(self, object key) except -1:
        """Count an entry no more among those that may be given up."""
        self.loose_bytes -= self.loose.pop(key, 0)
        return 0


@cython.final
cdef class Farewell:
    """Drops a copy when the array that owned the buffer is gone.

    Not a method of `Copies`, which a weak reference's callback would keep alive.
    """

    cdef dict known
    cdef object gone
    cdef tuple key

    def __init__(self, dict known, gone, tuple key):
        self.known = known
        self.gone = gone
        self.key = key

    def __call__(self, reference):
        cdef Copy copy = self.known.get(self.key)
        if copy is not None and copy.owner is reference:
            self.known.pop(self.key, None)
            self.gone.append(self.key)
