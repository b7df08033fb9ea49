# The wire between a caller and one worker: frames on a stream socket.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastjob._core.libc cimport FJ_MAX_FDS


cdef enum Kind:
    # caller to worker
    STATE = 1       # body: the process state and call settings to adopt
    DEFINE = 2      # number: of a constant; body: its pickle
    FORGET = 3      # number: of a constant
    BATCH = 4       # number: of the batch; count: tasks; body: their arguments
    RESET = 5       # forget every constant
    # worker to caller
    REPLY = 16      # number: of the batch; count: results; stamp: busy ns; body
    NOTE = 17       # body: what a task says (`_pool/notes.py`); within a batch only
    KIND_LIMIT = 18


cdef enum Flag:
    COLUMN = 1      # BATCH: each item is the only argument of a task
    MIXED = 2       # BATCH: body is (items, functions, indices, tokens)
    FINAL = 4       # REPLY: nothing more comes for this batch
    FAILED = 8      # REPLY: body is (results, failures)
    BLOCK = 16      # the pickle lies in a block, whose token comes first in the body
    LOANS = 64      # tokens come first; REPLY: `extra` bytes; DEFINE: `count` of them
    APART = 128     # REPLY: a pickle for each result, one behind the other
    RETIRED = 32    # REPLY: the worker exits after this


cdef enum:
    # A pickle from this size on goes through shared memory: the copies into and out of
    # the socket's buffer cost more than those of a warm block from about here on.
    LONG_BODY = 256 << 10


# Numbers of constants that outlive a call; those of a call's own lie below.
cdef inline bint is_lasting(uint32_t number) noexcept nogil:
    return number >> 31


cdef struct Header:
    # 48 bytes, written by the sender, checked by the receiver
    uint32_t check          # depends on all the rest
    unsigned char kind
    unsigned char flags
    unsigned short n_fds    # descriptors that belong to this frame
    uint32_t number
    uint32_t count
    uint64_t size           # bytes of the body
    int64_t stamp
    int64_t extra           # BATCH: index of the first task; REPLY: bytes of tokens
    int64_t ended           # REPLY: when the last task ended, CLOCK_MONOTONIC ns


cdef class Channel:
    # One owner at a time: the thread that holds the lease, or the worker.
    cdef readonly int fd
    # Handle of the process at the other end, where descriptors do not travel.
    cdef int64_t process
    cdef char *out          # bytes not yet written: out[out_start:out_end]
    cdef size_t out_start, out_end, out_room
    cdef char *inp          # bytes read and not yet taken: inp[in_start:in_end]
    cdef size_t in_start, in_end, in_room
    cdef list fds_out       # to go with, or before, their frames
    cdef list fds_in        # received, not yet claimed by a frame
    cdef Header header      # of the frame that `next` found
    cdef readonly bint broken           # descriptors were lost, and the bytes with them
    cdef readonly long long n_sends, n_receives, bytes_sent, bytes_received

    cdef int put(self, Kind kind, int flags, uint32_t number, uint32_t count,
                 int64_t stamp, int64_t extra, const void *body, size_t size,
                 list fds, int64_t ended=*) except -1
    cdef bint pending(self) noexcept
    cdef int flush(self, bint wait) except -1
    cdef Py_ssize_t receive(self, bint wait) except -2
    cdef bint peek(self, Header *head) except -1
    cdef bytes next(self)
    cdef int fetch(self, const char *names) except -1
    cdef list take_fds(self)
    cdef void discard(self) noexcept
    cdef void _close(self) noexcept
