"""Who reads which block: lending between two processes, and taking back.

A `Link` is one end of a channel between two processes.  Its owner side *lends* blocks
to the peer: it sends a token, and the descriptors of regions that the peer does not
have yet.  Its receiver side *opens* a token and gets a `View`, an object with the
buffer protocol on memory that was mapped once for the whole region.

How the owner learns that a view is gone, without a message: each direction of a link
has a *table* in shared memory with one byte for each loan (see ``tables``).  The owner
looks when it needs memory and at `Store.collect`: it searches the table for returned
slots (memchr: 100,000 live loans take some microseconds), marks them FREE and drops its
reference to the block.  A block whose last reference goes is reused by its store.

Guarantee: a block is never reused, and its memory never given back, while any process
can read it through a view.  A loan holds a reference to its `Block`; so it has to be
shown that a loan is taken back only when nobody holds a view of it or can still get
one.  A loan is one token, a token is opened at most once.

1. *Lend, open, drop.*  The owner writes LENT before it sends the token, so it cannot
   take a slot that it has lent for one RETURNED before (slots are reused only after
   they have been marked FREE).  The receiver writes RETURNED after the last use of
   the view (release order); the owner reads it (acquire) before it writes the block.
2. *Token in flight.*  The slot is LENT until the token is opened and dropped, or
   `discard`ed unopened.  If the peer dies first, the slot stays LENT and the loan
   ends with `close`, which is called once the peer is dead: nobody can open it then.
3. *Receiver dies.*  Holding views: as 2.  Just after RETURNED: as 1, the loan is taken
   back by whichever looks first.  The table outlives it: both processes map it.
4. *Owner dies.*  Nobody reuses anything any more.  The receiver's mappings keep all
   memory that it has; tokens already received can be opened until it calls
   `close`.  That gives back the memory of the dead peer that no view covers, and marks
   the regions orphaned; the last view on a block gives back the block's memory.
   Interleaving: (a) `close` marks, then counts the views of each block; (b) a
   deallocator counts down, then looks at the mark.  Both are sequentially consistent,
   so at least one of them sees the other and gives the memory back; twice is harmless,
   since nobody allocates there.
5. *The owner keeps using a block that it has lent* (a result that the worker keeps, an
   argument lent to several workers): other references to the `Block` keep it; each
   loan adds one.
6. *Passing on.*  A worker that lends a part of a view to its own workers sends the
   descriptor it received.  The loan holds the view, so the first owner's slot stays
   LENT until the last process in the chain has dropped it.  A region that is passed on
   is not marked `owned`: whoever receives it never gives its memory back.
7. *The receiver forks.*  Its views are the child's as well: see ``inheriting``.  No
   slot of them comes back before the child and its descendants have ended.
8. *The owner forks.*  The child's copies of links, stores and blocks are of an older
   epoch and touch neither tables nor memory.  It has no views of these blocks.

What comes from the peer is not trusted: descriptors and tokens that its `lend` cannot
have made raise `WireError` before anything is touched (`size_of`, `check_tokens`).  One
that was damaged into another buffer's place is not found out: it shows wrong bytes, or
ends that buffer's loan too early; nothing outside the region and the table is reached.

Nothing here rests on the GIL: loans and their lists are under the process's one mutex
(see ``segments``), tables are atomic bytes.  One thread at a time uses a given link;
its loans may be taken back by any thread.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport free, realloc
from libc.string cimport memchr

from fastjob._core.inheriting cimport has_heirs, is_forking, settle
from fastjob._core.regions cimport (
    GRANULE,
    GRANULE_BITS,
    Holders,
    Region,
    current_epoch,
    lock,
    unlock,
)
from fastjob._core.segments cimport Block, set_reclaim
from fastjob._core.shm cimport (
    errno,
    shm_add,
    shm_close,
    shm_load,
    shm_load64,
    shm_size,
    shm_store,
    shm_store64,
)
from fastjob._core.tables cimport (
    FREE,
    INHERITED,
    INHERITED_DROPPED,
    LENT,
    MAX_REGIONS,
    RETURNED,
    TABLE_BYTES,
    TABLE_SLOTS,
    Table,
    new_table,
)
from fastjob._core.views cimport View

import os

from fastjob._core.forks import register_at_fork
from fastjob._core.wire import WireError

cdef enum:
    DROP_AT_ONCE = 256

cdef void *first_link = NULL  # the open links of this process; guarded by the mutex


@cython.final
@cython.no_gc
cdef class Link:
    """This process's end of a channel on which blocks are lent, both ways.

    Parameters
    ----------
    keep_fds : bool
        Keep the descriptors of received regions, which mode ``'c'`` and passing a
        view on to a third process need.

    Attributes
    ----------
    outstanding : int
        Loans that have not been taken back.
    """

    def __cinit__(self, *, bint keep_fds=True):
        self.keep_fds = keep_fds
        self.numbers = {}
        self.unsent = []
        self.regions = []
        self.epoch = current_epoch()
        self.linked = True
        global first_link
        lock()
        self.next = first_link
        if self.next != NULL:
            (<Link>self.next).previous = <void *>self
        first_link = <void *>self
        unlock()

    def __dealloc__(self):
        # A link that was never closed: the peer may live, so its loans are kept.
        self.unlink()
        free(self.loans)
        free(self.unused)

    cdef void unlink(self) noexcept nogil:
        """Leave the registry."""
        global first_link
        if self.epoch != current_epoch():
            return
        lock()
        if self.linked:
            self.linked = False
            if self.previous != NULL:
                (<Link>self.previous).next = self.next
            else:
                first_link = self.next
            if self.next != NULL:
                (<Link>self.next).previous = self.previous
        unlock()

    cdef int check(self) except -1:
        if not self.linked or self.epoch != current_epoch():
            raise RuntimeError("a link was used after it was closed; "
                               "this is a bug in fastjob, please report it")
        return 0

    # The owner's side.

    cpdef bytes lend(self, list blocks):
        """Lend blocks to the peer: keep them until its views of them are gone.

        To be called when the message is about to be sent: a loan whose token does not
        reach the peer ends only with the link.  `take_fds` comes after it.

        Parameters
        ----------
        blocks : list of Block

        Returns
        -------
        bytes
            The tokens, for the peer's `open` or `discard`; 24 bytes each.
        """
        self.check()
        cdef bytes tokens = PyBytes_FromStringAndSize(NULL, len(blocks) * sizeof(Token))
        cdef Token *token = <Token *>PyBytes_AS_STRING(tokens)
        cdef Block block
        for block in blocks:
            token.offset = block.offset
            token.nbytes = block.nbytes
            token.region = self.number_of(block)
            token.slot = self.lend_one(block)
            token += 1
        return tokens

    cdef unsigned int number_of(self, Block block) except? 0xFFFFFFFF:
        """The number of the block's region on this link."""
        cdef Region region = block.region
        number = self.numbers.get(region)
        if number is not None:
            return number
        if region.fd < 0:
            raise ValueError("a view cannot be passed on without its descriptor")
        if self.lent is None:
            self.lent = new_table()
            self.unsent.append(self.lent.fd)
        if len(self.numbers) == MAX_REGIONS:
            raise OverflowError("too many regions on one link")
        number = len(self.numbers)
        self.lent.head.owned[number] = block.own
        self.numbers[region] = number
        self.unsent.append(region.fd)
        return number

    cdef unsigned int lend_one(self, Block block) except? 0xFFFFFFFF:
        cdef unsigned long long slot
        cdef int error = 0, saved = 0
        cdef void *grown
        cdef size_t size
        lock()
        slot = self.lent.head.high
        if self.unused_count:
            self.unused_count = self.unused_count - 1
            slot = self.unused[self.unused_count]
        elif slot == TABLE_SLOTS:
            error = 1
        else:
            saved = self.lent.reserve(slot)
            if saved:
                error = 2
            elif slot == self.loans_size:
                size = max(<size_t>64, self.loans_size * 2)
                grown = realloc(self.loans, size * sizeof(void *))
                if grown == NULL:
                    error = 3
                else:
                    self.loans = <void **>grown
                    grown = realloc(self.unused, size * sizeof(unsigned int))
                    if grown == NULL:
                        error = 3
                    else:
                        self.unused = <unsigned int *>grown
                        self.loans_size = size
        if not error:
            Py_INCREF(block)
            self.loans[slot] = <void *>block
            self.outstanding = self.outstanding + 1
            shm_store(self.lent.slots + slot, LENT)
            if slot == self.lent.head.high:
                shm_store64(&self.lent.head.high, slot + 1)
        unlock()
        if error == 1:
            raise OverflowError(f"more than {TABLE_SLOTS} buffers lent to one process")
        if error == 2:
            raise OSError(saved, f"cannot extend a table: {os.strerror(saved)}")
        if error == 3:
            raise MemoryError
        return <unsigned int>slot

    cpdef list take_fds(self):
        """Return the descriptors that the peer needs for the tokens made so far.

        They stay the link's, are valid until it is closed, and are to be sent with,
        or before, the message that holds the tokens.
        """
        fds = self.unsent
        self.unsent = []
        return fds

    cdef size_t drop_loans(self, void **dropped, size_t limit) noexcept nogil:
        """Take returned loans off the list, at most ``limit``; under the mutex."""
        cdef size_t count = 0, slot
        cdef unsigned char *found
        cdef unsigned char *start
        cdef unsigned char *end
        if self.lent is None:
            return 0
        start = self.lent.slots
        end = start + self.lent.head.high
        while count < limit:
            found = <unsigned char *>memchr(start, RETURNED, end - start)
            if found == NULL:
                break
            shm_load(found)  # acquire: what the receiver did is done
            slot = found - self.lent.slots
            dropped[count] = self.loans[slot]
            self.loans[slot] = NULL
            shm_store(found, FREE)
            self.unused[self.unused_count] = <unsigned int>slot
            self.unused_count = self.unused_count + 1
            count += 1
            start = found + 1
        self.outstanding = self.outstanding - count
        return count

    # The receiver's side.

    cpdef object give_fds(self, object fds):
        """Take the descriptors that came with a message, in order; they are ours now.
        """
        self.check()
        cdef Region region
        cdef Table table
        cdef size_t number
        remaining = list(fds)
        try:
            while remaining:
                fd = remaining.pop(0)
                if self.borrowed is None:
                    size_of(fd, True)
                    table = Table.__new__(Table)
                    table.map(fd)
                    table.drop_fd()     # or each dead peer's views would keep one
                    table.enlist()
                    self.borrowed = table
                    continue
                region = Region.__new__(Region)
                region.map(fd, size_of(fd, False))
                number = len(self.regions)
                if number < MAX_REGIONS and self.borrowed.head.owned[number]:
                    region.track()
                if not self.keep_fds:
                    region.fd = -1
                    shm_close(fd)
                self.regions.append(region)
        finally:
            for fd in remaining:
                shm_close(fd)

    cpdef list open(self, bytes tokens, str mode):
        """Open the buffers that the peer has lent.

        Parameters
        ----------
        tokens : bytes
            What the peer's `lend` returned; each token is opened or discarded once.
        mode : {'r', 'r+', 'w+', 'c'}
            As in `numpy.memmap`.

        Returns
        -------
        list of View
        """
        self.check()
        self.check_tokens(tokens)
        cdef Token *token = <Token *>PyBytes_AS_STRING(tokens)
        cdef size_t i
        cdef list views = []
        if mode == "w+":
            mode = "r+"
        if mode not in ("r", "r+", "c"):
            raise ValueError(f"mode must be 'r', 'r+', 'w+' or 'c', not {mode!r}")
        for i in range(len(tokens) // sizeof(Token)):
            views.append(self.open_one(token + i, mode))
        return views

    cdef int check_tokens(self, bytes tokens) except -1:
        """Refuse tokens that the peer's `lend` cannot have made."""
        cdef Token *token = <Token *>PyBytes_AS_STRING(tokens)
        cdef Region region
        cdef size_t i
        if len(tokens) % sizeof(Token):
            raise WireError("a part of a token came; "
                            "this is a bug in fastjob, please report it")
        for i in range(len(tokens) // sizeof(Token)):
            if token[i].region >= len(self.regions):
                raise WireError("a buffer came without its descriptor; "
                                "this is a bug in fastjob, please report it")
            region = self.regions[token[i].region]
            if (token[i].offset > region.size
                    or token[i].nbytes > region.size - token[i].offset
                    # Only these hold blocks; the others, parts of blocks.
                    or (region.holders != NULL and (token[i].offset == region.size
                                                    or token[i].offset % GRANULE))
                    or token[i].slot >= TABLE_SLOTS
                    # Behind these the file may have no memory yet.
                    or token[i].slot >= shm_load64(&self.borrowed.head.high)
                    or shm_load(self.borrowed.slots + token[i].slot)
                    not in (LENT, INHERITED)):
                raise WireError("a token does not describe a buffer; "
                                "this is a bug in fastjob, please report it")
        return 0

    cdef View open_one(self, Token *token, str mode):
        cdef View view = View.__new__(View)
        cdef Holders *holders
        cdef Region region = self.regions[token.region]
        view.region = region
        view.offset = token.offset
        view.nbytes = token.nbytes
        view.mode = mode
        view.writable = mode != "r"
        view.address = region.address + token.offset
        view.slot = token.slot
        if region.holders != NULL:
            holders = region.holders + (token.offset >> GRANULE_BITS)
            holders.granules = <unsigned int>(
                (max(token.nbytes, <unsigned long long>1) + GRANULE - 1)
                >> GRANULE_BITS)
            shm_add(&holders.views, 1)
            view.counted = True
        view.table = self.borrowed
        if is_forking():
            # A child that is being forked gets this view too.
            self.borrowed.pin_one(token.slot)
        if mode == "c":
            view.map_private()
        return view

    cpdef object discard(self, bytes tokens):
        """Return tokens that will not be opened."""
        self.check()
        self.check_tokens(tokens)
        cdef Token *token = <Token *>PyBytes_AS_STRING(tokens)
        cdef size_t i
        for i in range(len(tokens) // sizeof(Token)):
            self.borrowed.release(token[i].slot)

    cpdef object close(self):
        """End all loans, since the peer is dead; may be called again.

        Views that this process has opened stay valid.
        """
        cdef Region region
        cdef size_t slot, high = 0
        cdef unsigned char state
        cdef void *block
        if not self.linked or self.epoch != current_epoch():
            return
        self.unlink()
        # No other thread can reach the loans now.
        if self.lent is not None:
            high = self.lent.head.high
        for slot in range(high):
            block = self.loans[slot]
            state = shm_load(self.lent.slots + slot)
            if block != NULL and state != INHERITED and state != INHERITED_DROPPED:
                self.loans[slot] = NULL
                self.outstanding = self.outstanding - 1
                Py_DECREF(<object><PyObject *>block)
        self.lent = None
        self.numbers.clear()
        self.unsent.clear()
        for region in self.regions:
            if region.holders != NULL:
                region.orphan()
                if not has_heirs():
                    region.remove_unread()
        self.regions.clear()
        self.borrowed = None


cdef size_t size_of(int fd, bint table) except 0:
    """Bytes of a region, or a table, that has come; closes what cannot be one.

    No size is right for both.
    """
    cdef long long size = shm_size(fd)
    if size == TABLE_BYTES if table else size > 0 and size % GRANULE == 0:
        return size
    error = errno if size < 0 else 0
    shm_close(fd)
    if error:
        raise OSError(error, f"cannot map a region: {os.strerror(error)}")
    raise WireError(f"a descriptor of {size} bytes came as shared memory; "
                    "this is a bug in fastjob, please report it")


cdef int reclaim_all() except -1:
    """Take back every loan of this process that has been returned."""
    cdef void *dropped[DROP_AT_ONCE]
    cdef size_t count = DROP_AT_ONCE, i
    cdef void *link
    settle()
    while count == DROP_AT_ONCE:
        count = 0
        with nogil:
            lock()
            link = first_link
            while link != NULL and count < DROP_AT_ONCE:
                count += (<Link>link).drop_loans(dropped + count, DROP_AT_ONCE - count)
                link = (<Link>link).next
            unlock()
        for i in range(count):
            Py_DECREF(<object><PyObject *>dropped[i])
    return 0


def forget_links():
    """Disown all links, in a forked child; runs by itself after `os.fork`."""
    global first_link
    first_link = NULL


set_reclaim(reclaim_all)
register_at_fork(after_in_child=forget_links)
