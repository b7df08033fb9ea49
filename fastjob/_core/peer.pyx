"""One worker process, as its caller sees it: what it was sent, what it has not begun.

A peer belongs to the call that has leased it, and is used by that call's thread alone.
What it shares with the worker is its slot of the status page (``status.pyx``), its
socket (``wire.pyx``) and the memory that they lend each other (``lending.pyx``).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastjob._core.batch cimport Batch
from fastjob._core.capture cimport Constant
from fastjob._core.lending cimport Link
from fastjob._core.libc cimport POLLIN, now_ns, poll, pollfd
from fastjob._core.segments cimport Store
from fastjob._core.status cimport take_back as claim_back
from fastjob._core.status cimport (
    EXITED, FORK_FAILED, StatusPage, claim_end, claim_next, claim_word, fj_load,
    fj_store,
)
from fastjob._core.wire cimport (
    BATCH, BLOCK, COLUMN, DEFINE, FORGET, LOANS, LONG_BODY, MIXED, NOTE, REPLY, RESET,
    STATE, Channel, Header, is_lasting,
)

from _pickle import dumps as dumps_of_c

from fastjob._core.wire import WireError

cdef object dumps = dumps_of_c


cdef list in_block(bytes data, Store store):
    """A block for a pickle that is too long for the socket; None if it is not."""
    if PyBytes_GET_SIZE(data) < LONG_BODY:
        return None
    return [store.put(data)]


@cython.final
cdef class Peer:
    """A worker process, as its caller sees it.

    Parameters
    ----------
    channel : Channel
    page : StatusPage
    number : int
        The worker's slot in the page.
    profile : object
        What the worker was made for; compared by the pool when it leases.
    """

    def __init__(self, Channel channel, StatusPage page, int number, profile):
        self.channel = channel
        self.page = page
        self.slot = page.slot(number)
        self.number = number
        self.profile = profile
        # Descriptors of what workers lend are not kept: there may be many workers.
        self.link = Link(keep_fds=False)
        self.batches = []
        self.known = set()
        self.lasting = set()

    @property
    def pid(self):
        """Process number; 0 until the worker has been forked."""
        return self.slot.pid

    def fate(self):
        """How it ended: ``(life, pid, status, peak KiB)``."""
        life = "alive"
        if self.slot.life == EXITED:
            life = "ended"
        elif self.slot.life == FORK_FAILED:
            life = "unborn"
        return life, self.slot.pid, self.slot.status, self.slot.peak

    def usable(self):
        """Whether another call can have it; forgets what belongs to this one."""
        self.known.clear()
        self.fresh = False
        return not (self.lost or self.retiring or self.batches or self.channel.broken)

    def close(self):
        """Close the socket: the worker ends as soon as it is idle."""
        self.lost = True
        self.channel.close()

    def part(self, bint surely_dead=False):
        """Take back what the worker was lent, if it has ended; whether it has.

        Not before: it may hold an array on it, in a variable of its own, to the last.
        """
        if not (surely_dead or self.slot.life == EXITED
                or self.slot.life == FORK_FAILED):
            return False
        self.link.close()
        return True

    def forget(self):
        """In a forked child: let go, and touch nothing that is shared."""
        self.batches = []
        self.lost = True
        self.channel.close()

    cdef uint32_t unclaimed(self, Peer thief) noexcept:
        """How many tasks it has not begun that `thief` can have."""
        cdef Batch batch
        cdef uint64_t word
        cdef uint32_t left = 0
        for batch in self.batches:
            if batch.avoid is not None and batch.avoid is thief:
                continue
            word = fj_load(&self.slot.claim[batch.number & 1])
            if claim_end(word) > claim_next(word):
                left += claim_end(word) - claim_next(word)
        return left

    cdef list take_back(self, uint32_t want, Peer thief):
        """Take back up to `want` tasks that it has not begun, for `thief`."""
        cdef Batch batch
        cdef uint32_t got
        cdef list parts = []
        for batch in reversed(self.batches):
            if want == 0:
                break
            if batch.avoid is not None and batch.avoid is thief:
                continue
            got = claim_back(&self.slot.claim[batch.number & 1], want)
            if got:
                want -= got
                parts.append(batch.tail(batch.size() - got))
        return parts

    def take_all_back(self):
        """See that the worker begins no task any more."""
        cdef Batch batch
        for batch in self.batches:
            claim_back(&self.slot.claim[batch.number & 1], 0xFFFFFFFF)

    def poll_closed(self):
        """Whether the worker has closed its end while it was idle."""
        cdef pollfd waiter
        waiter.fd = self.channel.fd
        waiter.events = POLLIN
        return poll(&waiter, 1, 0) != 0

    # -- sending and reading ---------------------------------------------------

    cdef int define(self, Constant constant, Store store) except -1:
        """Send a constant, and those that it needs, unless it has them."""
        cdef Constant other
        cdef int flags = 0
        cdef bytes tokens
        if constant is None:
            return 0
        known = self.lasting if is_lasting(constant.number) else self.known
        if constant.number in known:
            return 0
        if constant.needs:
            for other in constant.needs:
                self.define(other, store)
        if type(constant.data) is bytes:
            block = in_block(constant.data, store)
            if block is not None:
                constant.data = block[0]    # for the other workers too
        blocks = constant.blocks
        if type(constant.data) is not bytes:
            flags |= BLOCK
            blocks = [constant.data, *(blocks or ())]
        if blocks is None:
            self.channel.put(DEFINE, 0, constant.number, 0, 0, 0,
                             PyBytes_AS_STRING(constant.data),
                             PyBytes_GET_SIZE(constant.data), None)
            known.add(constant.number)
            return 0
        tokens = self.link.lend(blocks)
        body = tokens if flags else tokens + constant.data
        self.channel.put(DEFINE, flags | LOANS, constant.number,
                         <uint32_t>PyBytes_GET_SIZE(tokens), 0, 0,
                         PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body),
                         self.link.take_fds())
        known.add(constant.number)
        return 0

    cdef int send(self, Batch batch, bytes state, Store store) except -1:
        """Hand a batch to a peer; what the socket does not take goes later."""
        cdef Constant constant
        cdef bytes body
        cdef int flags = 0
        cdef uint32_t n = <uint32_t>batch.size()
        cdef int64_t number = 0, began = now_ns()
        if not self.fresh:
            self.fresh = True
            self.channel.put(RESET, 0, 0, 0, 0, 0, NULL, 0, None)
            self.adopt(state)
        if batch.refs is not None:
            for refs in batch.refs:
                if refs is not None:
                    for constant in refs:
                        self.define(constant, store)
        if batch.functions is not None:
            for constant in batch.functions:
                self.define(constant, store)
        else:
            self.define(batch.function, store)
        if batch.column:
            flags |= COLUMN
        if (batch.functions is not None or batch.indices is not None
                or batch.blocks is not None):
            flags |= MIXED
            if batch.functions is None:
                functions = [batch.function.number] * n
            else:
                functions = [-1 if c is None else (<Constant>c).number
                             for c in batch.functions]
            items = batch.items
            if batch.column:
                items = [(x,) for x in items]
                flags &= ~COLUMN
            tokens = None
            if batch.blocks is not None:
                tokens = [None if b is None else self.link.lend(b)
                          for b in batch.blocks]
            body = dumps((items, functions, batch.indices, tokens), 5)
        else:
            number = batch.function.number
            body = dumps(batch.items, 5)
        block = in_block(body, store)
        if block is not None:
            flags |= BLOCK
            body = self.link.lend(block)
        batch.number = self.sent
        batch.done = 0
        batch.sent_at = now_ns()
        batch.pickle_ns = batch.sent_at - began
        batch.nbytes = PyBytes_GET_SIZE(body)
        self.sent += 1
        fj_store(&self.slot.claim[batch.number & 1], claim_word(0, n))
        self.batches.append(batch)
        self.channel.put(BATCH, flags, batch.number, n, number, batch.first,
                         PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body),
                         self.link.take_fds())
        self.flush()
        return 0

    cdef int measure(self, bint wanted) noexcept:
        """Whether the worker is to note what its tasks use, in this call."""
        self.slot.timed = wanted
        self.cpu, self.packed = self.slot.cpu, self.slot.packed
        return 0

    cdef int adopt(self, bytes state) except -1:
        """Tell the worker of the caller's state, unless it knows it."""
        if self.state != state:
            self.channel.put(STATE, 0, 0, 0, 0, 0, PyBytes_AS_STRING(state),
                             PyBytes_GET_SIZE(state), None)
        self.state = state
        return 0

    cdef int introduce(self, bytes state) except -1:
        """Tell a new worker that got no work, too: how long to wait for some, say."""
        if self.state is None:
            self.adopt(state)
            self.flush()
        return 0

    cdef int forget_constant(self, uint32_t number) except -1:
        """Have the worker drop a constant that no later task will refer to."""
        if number in self.known:
            self.known.remove(number)
            self.channel.put(FORGET, 0, number, 0, 0, 0, NULL, 0, None)
        return 0

    cdef int forget_unshared(self, set live) except -1:
        """Have the worker drop what ``fastjob.share`` no longer shares."""
        for number in self.lasting - live:
            self.lasting.remove(number)
            self.channel.put(FORGET, 0, number, 0, 0, 0, NULL, 0, None)
        return 0

    cdef int reset(self) except -1:
        """Have the worker drop all constants now; the next call would do it too."""
        self.channel.put(RESET, 0, 0, 0, 0, 0, NULL, 0, None)
        self.flush()
        return 0

    cdef int flush(self) except -1:
        """Write what the socket takes now."""
        try:
            self.channel.flush(False)
        except (BrokenPipeError, ConnectionResetError):
            # It has died. What it sent before is still to be read; then comes the
            # end of the stream, which is where its tasks are dealt with.
            self.channel.discard()
        return 0

    cdef bytes next(self):
        """The body of the worker's next whole frame; None if there is none."""
        cdef bytes body
        self.channel.process = self.slot.process
        body = self.channel.next()
        if body is not None and (self.channel.header.kind not in (REPLY, NOTE)
                                 or not self.batches):
            raise WireError("a reply that nothing was asked for")
        return body

    cdef object unpacked(self, bytes body):
        """The pickle of a reply, or the pickle and its buffers.

        To be called for every frame: it keeps the link in step with the worker's.
        """
        cdef Header head = self.channel.header
        cdef Py_ssize_t n_tokens = head.extra
        if head.n_fds:
            try:
                self.link.give_fds(self.channel.take_fds())
            except BaseException:
                self.retiring = True    # the link is no more in step with the worker's
                raise
        if not head.flags & LOANS:
            return body
        if not 0 <= n_tokens <= PyBytes_GET_SIZE(body):
            raise WireError("a reply without the tokens of its buffers")
        views = self.link.open(body[:n_tokens], "r+")
        if head.flags & BLOCK:
            if not views:
                raise WireError("a reply without the token of its block")
            return views[0], views[1:]
        return body[n_tokens:], views
