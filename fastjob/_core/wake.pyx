"""Wake a thread that sleeps in ``poll``, from any thread and from a destructor."""

cimport cython

from fastjob._core.libc cimport fj_close, fj_ring, fj_silence

import os

from fastjob._core.sockets import stream_pair


@cython.final
cdef class Wake:
    """A descriptor that is readable once it has been called.

    The descriptor lives as long as the object, which both sides hold: nobody can write
    into one that has been closed and given to something else.
    """

    def __cinit__(self):
        self.fd = self.writer = -1
        if hasattr(os, "eventfd"):
            self.fd = self.writer = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self.fd, self.writer = stream_pair()

    def __dealloc__(self):
        if self.writer >= 0 and self.writer != self.fd:
            fj_close(self.writer)
        if self.fd >= 0:
            fj_close(self.fd)

    def __call__(self):
        """Make the descriptor readable."""
        fj_ring(self.writer)

    cdef void silence(self) noexcept:
        """Make the descriptor wait for the next call."""
        fj_silence(self.fd)
