from libc.stdint cimport int64_t, uint32_t

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.call cimport Call, Counters
from fastjob._core.capture cimport Capture, Constant
from fastjob._core.lending cimport Link
from fastjob._core.results cimport ResultStream
from fastjob._core.status cimport Slot, StatusPage
from fastjob._core.wake cimport Wake
from fastjob._core.wire cimport Channel, Header


cdef class Batch:
    # Some tasks, from the moment they are taken from the input to their results.
    # Owner: the Dispatcher; in one place at a time: being filled, ready, or a peer's.
    cdef uint32_t number        # of the peer's; its parity says which claim word
    cdef list items             # args tuple; lone argument (column); or pickled bytes
    cdef Constant function      # of every task, or None if they differ
    cdef list functions         # Constant of each task, None for those inside the item
    cdef int64_t first          # index of the first task, if they are consecutive
    cdef list indices           # else the index of each
    cdef list refs              # constants that each item refers to (list or None)
    cdef list blocks            # out-of-band buffers of each item (list or None)
    cdef bint column
    cdef Py_ssize_t done        # tasks whose results have come
    cdef int64_t input_ns       # spent in taking its tasks from the input
    cdef int64_t pickle_ns      # in pickling what was left for the batch
    cdef int64_t sent_at
    cdef Py_ssize_t nbytes      # of what was sent, less what is shared
    cdef int deaths             # workers that died while they held it
    cdef object avoid           # the peer that failed its task

    cdef Py_ssize_t size(self) noexcept
    cdef int64_t index(self, Py_ssize_t at) except -1
    cdef Batch tail(self, Py_ssize_t start)
    cdef Batch only(self, Py_ssize_t at)
    cdef int separate(self) except -1
    cdef int take_refs(self, list refs, list blocks) except -1


cdef class Peer:
    # One worker process as its caller sees it. Owner: the thread that leased it.
    cdef readonly Channel channel
    cdef readonly StatusPage page
    cdef Slot *slot
    cdef readonly int number        # of the slot
    cdef readonly object profile    # which calls it can serve (initializer, ...)
    cdef readonly Link link         # shared memory lent either way
    cdef list batches               # at most two: running, queued
    cdef uint32_t sent              # batches sent so far
    cdef set known                  # numbers of the constants it has
    cdef object state               # what it was last told to adopt
    cdef bint fresh                 # has been told that a new call begins
    cdef public bint lost           # end of stream, or about to be killed
    cdef public bint retiring       # has said that it exits
    cdef bint timed_out             # killed, because its task took too long
    cdef object __weakref__


cdef class Dispatcher:
    cdef Call call
    cdef Counters counters
    cdef Capture capture
    cdef AutoBatch tuner
    cdef object pool
    cdef list peers
    cdef object tasks               # the input
    cdef bint passive               # taking from it runs no code of the user
    cdef bint exhausted
    cdef list ready                 # batches to be sent before any input is taken
    cdef int64_t taken, completed
    cdef dict attempts              # index -> times it has been run, if it failed
    cdef list out                   # results, in list mode
    cdef ResultStream stream        # or where they go
    cdef object state               # what every peer must have adopted
    cdef Wake wake                  # ends a wait; None without a stream
    cdef object last_f
    cdef Constant last_constant
    cdef int64_t serviced           # when the sockets were last looked at
    cdef double patience            # ms to wait before looking for stragglers again
    cdef long long forks            # of the process that runs the call
    cdef bint changed               # there is work or a worker that feed has not seen
    cdef int losses                 # workers lost since a task was last completed

    cdef int check_process(self) except -1
    cdef int loop(self) except -1
    cdef int feed(self) except -1
    cdef Batch next_batch(self, Peer peer)
    cdef Batch take(self, Py_ssize_t n)
    cdef int add(self, Batch batch, object task) except -1
    cdef bint has_other(self, Peer peer) except -1
    cdef bint someone_idle(self) except -1
    cdef bint unclaimed(self, Peer peer) noexcept
    cdef int send(self, Peer peer, Batch batch) except -1
    cdef int flush(self, Peer peer) except -1
    cdef list in_block(self, bytes data)
    cdef int define(self, Peer peer, Constant constant) except -1
    cdef bint steal(self, Peer thief) except -1
    cdef int service(self, int timeout) except -1
    cdef int receive(self, Peer peer) except -1
    cdef object unpacked(self, Peer peer, bytes body)
    cdef int reply(self, Peer peer, bytes body) except -1
    cdef int deliver(self, Batch batch, Py_ssize_t at, list results,
                     long long n_bytes) except -1
    cdef int lose(self, Peer peer) except -1
    cdef int fail(self, Batch batch, Py_ssize_t at, object error, object text,
                  double elapsed, Peer peer) except -1
    cdef int wait_time(self) except -2
    cdef int record(self, Peer peer, Batch batch, Py_ssize_t at, const Header *head,
                    int64_t decoded, long long n_bytes) except -1
    cdef int note(self, object kind, Peer peer, object text) except -1
    cdef int check_timeouts(self) except -1
